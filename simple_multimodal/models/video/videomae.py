"""VideoMAE as a video encoder, with the decoder of masked video modelling."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, VideoMAEConfig, VideoMAEForPreTraining, VideoMAEPreTrainedModel
from transformers import initialization as init
from transformers.models.videomae.modeling_videomae import VideoMAEEncoder, VideoMAELayer, VideoMAEPatchEmbeddings
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Conversion, Encoder, EncoderOutput
from simple_multimodal.models.patches import (
    interpolate_grid,
    normalize_pixels,
    sinusoidal_sequence,
    take_patches,
    to_pair,
    visible_patches,
)


def video_grid(config: PreTrainedConfig) -> tuple[int, int, int]:
    """
    Return the number of patches of a clip over (time, height, width).

    Raises:
        ValueError: If the patches do not tile the clip, or the pixels are not RGB.
    """
    height, width = to_pair(config.image_size)
    frames, tubelet, patch = config.num_frames, config.tubelet_size, config.patch_size
    if not isinstance(patch, int) or height % patch or width % patch or height < patch or width < patch:
        raise InputError(
            f"The video tower takes frames of {height} by {width} pixels in patches of {patch}. The patch size must "
            "be an integer, and height and width multiples of it: change the size of the video processor, or "
            "image_size or patch_size in the video config."
        )
    if frames % tubelet or frames < tubelet:
        raise InputError(
            f"The video tower takes {frames} frames in groups of {tubelet}. The number of frames must be a multiple "
            f"of tubelet_size: change num_frames of the video processor and the video config, for example to "
            f"{max(frames // tubelet, 1) * tubelet}."
        )
    if config.num_channels != 3:
        raise InputError(f"The video tower takes RGB frames, but num_channels is {config.num_channels}. Set it to 3.")
    return frames // tubelet, height // patch, width // patch


class VideoMAEVideoDecoder(VideoMAEPreTrainedModel):
    """
    The decoder of VideoMAE: visible tokens and mask tokens in, pixels of the masked patches out.

    Args:
        config ([`VideoMAEConfig`]): Sizes of the tower and, as `decoder_*`, of this decoder.
    """

    def __init__(self, config: VideoMAEConfig):
        super().__init__(config)
        size = config.decoder_hidden_size
        layer_config = deepcopy(config)
        layer_config.hidden_size = size
        layer_config.num_attention_heads = config.decoder_num_attention_heads
        layer_config.intermediate_size = config.decoder_intermediate_size
        self.encoder_to_decoder = nn.Linear(config.hidden_size, size, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.position_embeddings = nn.Buffer(torch.zeros(1, math.prod(video_grid(config)), size))
        self.decoder_layers = nn.ModuleList(
            VideoMAELayer(layer_config) for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, 3 * config.tubelet_size * config.patch_size**2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoMAEVideoDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)  # as the authors; stock: zeros
            init.copy_(module.position_embeddings, sinusoidal_sequence(*module.position_embeddings.shape[1:])[None])

    def forward(self, visible: EncoderOutput, masked_patches: torch.Tensor) -> torch.Tensor:
        """
        Args:
            visible ([`EncoderOutput`]): Output of the encoder for the same `masked_patches`.
            masked_patches (`torch.LongTensor` of shape `(batch_size, num_masked)`): Their positions, ascending.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_masked, 3 * tubelet_size * patch_size**2)`: Values of the
            masked patches, in order.
        """
        table = self.position_embeddings.expand(len(masked_patches), -1, -1)
        visible_positions = visible_patches(masked_patches, table.shape[1])
        states = self.encoder_to_decoder(visible.tokens) + take_patches(table, visible_positions)
        masked_states = self.mask_token + take_patches(table, masked_patches)
        states = torch.cat([states, masked_states], dim=1)  # (batch, visible then masked, size)
        for layer in self.decoder_layers:
            states = layer(states)
        return self.head(self.norm(states[:, visible_positions.shape[1] :]))


class VideoPatchEmbeddings(nn.Module):
    """Patch projection and fixed positions of a clip, named as in VideoMAE; the table is saved with the weights."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.grid = video_grid(config)
        self.patch_embeddings = VideoMAEPatchEmbeddings(config)
        self.position_embeddings = nn.Buffer(torch.zeros(1, math.prod(self.grid), config.hidden_size))

    def forward(self, pixels: torch.Tensor, visible_positions: torch.Tensor | None) -> torch.Tensor:
        """Embed `(batch_size, num_frames, 3, height, width)` as `(batch_size, num_visible, hidden_size)`."""
        states = self.patch_embeddings(pixels) + self.position_embeddings
        return states if visible_positions is None else take_patches(states, visible_positions)


class VideoMAEVideoEncoder(Encoder, VideoMAEPreTrainedModel):
    """
    VideoMAE ([Tong et al., 2022](https://huggingface.co/papers/2203.12602)).

    Args:
        config ([`VideoMAEConfig`]): Sizes of the tower, which takes exactly `num_frames` frames of `image_size`.
        image_mean, image_std (`Sequence[float]`, *optional*, default to those of ImageNet):
            Normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.
    """

    modality = "video"
    model_type = "videomae"
    pretrained_class = VideoMAEForPreTraining
    pretrained_names = {
        "videomae.": "encoder.",
        "encoder_to_decoder.": "decoder.encoder_to_decoder.",
        "mask_token": "decoder.mask_token",
        "decoder.": "decoder.",
    }
    decoder_class = VideoMAEVideoDecoder

    def __init__(
        self,
        config: VideoMAEConfig,
        *,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        super().__init__(config)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.embeddings = VideoPatchEmbeddings(config)
        self.encoder = VideoMAEEncoder(config)
        self.layernorm = (
            None if config.use_mean_pooling else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoPatchEmbeddings):
            init.copy_(module.position_embeddings, sinusoidal_sequence(*module.position_embeddings.shape[1:])[None])

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames and their size."""
        height, width = to_pair(config.image_size)
        return {"num_frames": config.num_frames, "size": {"height": height, "width": width}}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy a VideoMAE config for clips of `num_frames` frames of `height` by `width` pixels.

        Raises:
            ValueError: If the patches do not tile the clip.
        """
        config = deepcopy(config)
        config.num_frames = num_frames
        config.image_size = height if height == width else [height, width]
        video_grid(config)
        return config

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """Number of patches of a clip over (time, height, width)."""
        return self.embeddings.grid

    @property
    def num_patches(self) -> int:
        """Number of patches, and hence of tokens, of a clip."""
        return math.prod(self.patch_grid)

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens of one time step, which a tubelet spans."""
        return math.prod(self.patch_grid[1:])

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's clips are not `num_frames` frames of `height` by `width` pixels."""
        expected = (self.config.num_frames, *to_pair(self.config.image_size))
        if (num_frames, height, width) != expected:
            raise InputError(
                f"The clips have {num_frames} frames of {height} by {width} pixels, but the video tower takes "
                f"{expected[0]} frames of {expected[1]} by {expected[2]}. Set num_frames and size of the video "
                "processor to these, or num_frames and image_size in the video config to what the clips have."
            )

    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        video_seconds: torch.Tensor,
        masked_patches: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating-point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.
            masked_patches (`torch.LongTensor` of shape `(batch_size, num_masked)`, *optional*):
                Positions, ascending. Only the other patches are encoded and returned.

        Returns:
            [`EncoderOutput`]: Tokens in the order (time, height, width).
        """
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        self.check_inputs(num_frames, height, width)
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        time, *space = self.embeddings.grid
        seconds = video_seconds.view(batch_size, time, -1).mean(dim=-1).repeat_interleave(math.prod(space), dim=1)
        visible = None
        if masked_patches is not None:
            visible = visible_patches(masked_patches, self.num_patches)
            seconds = seconds.gather(1, visible)
        kernel = self.embeddings.patch_embeddings.projection.weight
        states = self.encoder(self.embeddings(pixels.to(kernel.dtype), visible)).last_hidden_state
        if self.layernorm is not None:
            states = self.layernorm(states)
        return EncoderOutput(states, torch.ones_like(seconds, dtype=torch.bool), seconds)

    @torch.no_grad()
    def patch_targets(self, pixel_values_videos: torch.Tensor, masked_patches: torch.Tensor) -> torch.Tensor:
        """
        Return the targets of the decoder: pixels of the masked patches in units of 0 to 1, normalised per patch and
        channel if `norm_pix_loss`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_masked, 3 * tubelet_size * patch_size**2)`.
        """
        if pixel_values_videos.dtype == torch.uint8:
            frames = pixel_values_videos / 255
        else:
            channels = zip(pixel_values_videos.unbind(dim=2), self.image_mean, self.image_std, strict=True)
            frames = torch.stack([values * std + mean for values, mean, std in channels], dim=2)
        (time, height, width), size = self.embeddings.grid, self.config.patch_size
        patches = frames.view(len(frames), time, -1, 3, height, size, width, size).permute(0, 1, 4, 6, 2, 5, 7, 3)
        patches = patches.reshape(len(frames), time * height * width, -1)  # (batch, patches, frame row column channel)
        targets = take_patches(patches, masked_patches)
        if self.config.norm_pix_loss:
            targets = targets.unflatten(-1, (-1, 3))
            std, mean = torch.std_mean(targets, dim=-2, keepdim=True)
            targets = ((targets - mean) / (std + 1e-6)).flatten(2)
        return targets

    @classmethod
    def computed_tensors(cls, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Return the sinusoidal tables of a stock VideoMAE, which no checkpoint holds."""
        length = math.prod(video_grid(config))
        return {
            "encoder.embeddings.position_embeddings": sinusoidal_sequence(length, config.hidden_size)[None],
            "decoder.position_embeddings": sinusoidal_sequence(length, config.decoder_hidden_size)[None],
        }

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """Convert position tables of another grid: bicubic over space, linear over time."""
        if name not in ("encoder.embeddings.position_embeddings", "decoder.position_embeddings"):
            return None
        grid, own_grid = video_grid(source_config), self.embeddings.grid
        if grid == own_grid or source.shape[-1] != target.shape[-1]:
            return None
        sizes = " to ".join("x".join(map(str, sizes)) for sizes in (grid, own_grid))
        return Conversion(interpolate_grid(source[0], grid, own_grid)[None], f"interpolated from {sizes} patches")
