"""Shared parts of image towers as video encoders: every frame runs through the tower by itself."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Encoder, EncoderOutput, mean_direction
from simple_multimodal.models.patches import normalize_pixels
from simple_multimodal.models.times import time_embedding

DEFAULT_NUM_FRAMES = 12
"""Default number of frames of a clip, as in CLIP4Clip (Luo et al. 2021)."""


class FrameTransformer(nn.Module):
    """
    Lets the frames of a clip attend to each other before their embeddings are averaged, as `seqTransf` of
    [CLIP4Clip](https://huggingface.co/papers/2104.08860): the output of CLIP layers over the embeddings and their
    times is added to the embeddings. It is multiplied by a gate that starts at zero
    ([Bachlechner et al., 2020](https://huggingface.co/papers/2003.04887)): untrained, it changes nothing.

    Args:
        size (`int`): Size of the embeddings, even.
        num_layers (`int`): Number of layers; CLIP4Clip has 4.
    """

    def __init__(self, size: int, num_layers: int):
        super().__init__()
        config = CLIPTextConfig(
            hidden_size=size,
            intermediate_size=4 * size,
            num_attention_heads=size // 64 if size % 64 == 0 else 1,
            num_hidden_layers=num_layers,
            attn_implementation="sdpa",
        )
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(num_layers))
        self.gate = nn.Parameter(torch.zeros(size))

    def forward(self, embeddings: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.FloatTensor` of shape `(batch_size, num_frames, size)`): Frame embeddings of any length.
            seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_frames, size)`.
        """
        size = embeddings.shape[-1]
        states = F.normalize(embeddings, dim=-1) * size**0.5  # as large as the sines of the time
        states = states + time_embedding(seconds, size).to(states.dtype)
        for layer in self.layers:
            states = layer(states, attention_mask=None)
        return embeddings + self.gate * states


class ImageEncoder(Encoder):
    """
    Base of video encoders that encode one frame at a time. A subclass also inherits from the stock tower and defines
    `encode_images`.

    A clip's embedding is the mean of its frame embeddings, each scaled to length one first: the parameter-free form
    (`meanP`) of [CLIP4Clip](https://huggingface.co/papers/2104.08860), or with `frame_pooling_layers` after a
    [`FrameTransformer`] (`seqTransf`).

    Args:
        config (`PreTrainedConfig`): Sizes of the tower. It takes any number of frames, and frames of any size that its
            patches tile.
        image_mean, image_std (`Sequence[float]`, *optional*, default to those of ImageNet):
            Normalisation of `uint8` pixels, per RGB channel, in units of 0 to 1.
        frame_pooling_layers (`int`, *optional*, defaults to 0): Number of layers of the [`FrameTransformer`], if any.
        stock_settings: Further arguments of the stock class, such as `add_pooling_layer`.

    Raises:
        ValueError: If there are such layers, but the tower pools no embedding.
    """

    modality = "video"
    sub_config = "vision_config"
    tokens_are_all = False
    uses_own_processor = True

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        frame_pooling_layers: int = 0,
        **stock_settings: Any,
    ):
        super().__init__(config, **stock_settings)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.frame_transformer = None
        if frame_pooling_layers > 0:
            size = self.embedding_size(config)
            if size is None:
                raise InputError(
                    f"`frame_pooling_layers` is {frame_pooling_layers}, but this {self.model_type!r} has no head that "
                    "pools a frame embedding. Set it to 0."
                )
            self.frame_transformer = FrameTransformer(size, frame_pooling_layers)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # of the stock class
        if isinstance(module, FrameTransformer):
            init.zeros_(module.gate)

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the number of frames and their size."""
        return {"num_frames": DEFAULT_NUM_FRAMES, "size": config.image_size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy the config, in which nothing has to change: position tables are interpolated in every pass.

        Raises:
            ValueError: If the patches do not tile the frames, or the pixels are not RGB.
        """
        patch = config.patch_size
        if not isinstance(patch, int) or height % patch or width % patch:
            raise InputError(
                f"The clips have frames of {height} by {width} pixels, but the video tower cuts them into patches of "
                f"{patch}. Height and width must be multiples of an integer patch size: set size of the video "
                "processor (video_size) accordingly."
            )
        if config.num_channels != 3:
            raise InputError(f"The video tower must take RGB frames, but num_channels is {config.num_channels}.")
        return deepcopy(config)

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's patches do not tile frames of `height` by `width` pixels."""
        self.fit_config(self.config, num_frames, height, width)

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Run the tower.

        Args:
            pixels (`torch.FloatTensor` of shape `(num_images, 3, height, width)`): Normalised pixels.

        Returns:
            Tokens `(num_images, num_tokens, hidden_size)`, as the stock tower's `last_hidden_state`, and embeddings
            `(num_images, embedding_size)`, if it has any.
        """
        raise NotImplementedError

    def forward(self, pixel_values_videos: torch.Tensor, video_seconds: torch.Tensor) -> EncoderOutput:
        """
        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`):
                `uint8` pixels, normalised here; a floating-point tensor is taken as already normalised.
            video_seconds (`torch.FloatTensor` of shape `(batch_size, num_frames)`): Time of each frame in the segment.

        Returns:
            [`EncoderOutput`]: Tokens frame by frame; in each frame a class token first, if there is one.
        """
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        self.check_inputs(num_frames, height, width)
        pixels = normalize_pixels(pixel_values_videos, self.image_mean, self.image_std)
        tokens, embedding = self.encode_images(pixels.flatten(0, 1).to(self.dtype))
        seconds = video_seconds.repeat_interleave(tokens.shape[1], dim=1)
        if embedding is not None:
            frames = embedding.unflatten(0, (batch_size, num_frames))
            if self.frame_transformer is not None:
                frames = self.frame_transformer(frames, video_seconds)
            embedding = mean_direction(frames)
        return EncoderOutput(
            tokens.reshape(batch_size, -1, tokens.shape[-1]),
            torch.ones_like(seconds, dtype=torch.bool),
            seconds,
            embedding=embedding,
            num_steps=num_frames,
        )


class FrameEncoder(ImageEncoder):
    """
    Base of frame encoders that provide tokens but no embedding, so that the tokens of a frozen one can be stored as
    features ([features.md](docs/features.md)). The number of tokens per frame is found by running the tower without
    values, on the meta device; `fit_config` stores it.

    Args:
        config (`PreTrainedConfig`): Sizes of the tower; also `frame_size` (height and width) and
            `tokens_per_frame`, which `fit_config` stores there.
        settings: As in [`ImageEncoder`].
    """

    tokens_are_all = True

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_frames: int, height: int, width: int) -> PreTrainedConfig:
        """
        Copy the config for frames of this size.

        Raises:
            ValueError: If the tower does not take them.
        """
        config = super().fit_config(config, num_frames, height, width) if cls.has_patches(config) else deepcopy(config)
        try:
            with torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights(), torch.no_grad():
                tokens, _ = cls(config).eval().encode_images(torch.empty(1, 3, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"The clips have RGB frames of {height} by {width} pixels, which the video tower {cls.model_type!r} "
                f"does not take: {str(error).rstrip('.')}. Set size of the video "
                "processor (video_size) to one that it takes."
            ) from error
        config.frame_size, config.tokens_per_frame = [height, width], tokens.shape[1]
        return config

    @classmethod
    def has_patches(cls, config: PreTrainedConfig) -> bool:
        """Return whether frames are cut into patches of the config's `patch_size`, which must tile them."""
        return "patch_size" in config.to_dict()

    @property
    def tokens_per_step(self) -> int:
        """Number of tokens of a frame."""
        return self.config.tokens_per_frame

    def check_inputs(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` if the tower's frames are not of `height` by `width` pixels."""
        own = self.config.to_dict().get("frame_size")
        if own is not None and own != [height, width]:
            raise InputError(
                f"The clips have frames of {height} by {width} pixels, but the video tower takes {own[0]} by "
                f"{own[1]}. Set size of the video processor (video_size) to that."
            )
