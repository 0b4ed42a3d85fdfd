"""ViT-MAE as an audio encoder over log-mel patches, with the decoder of masked audio modelling."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEPreTrainedModel
from transformers import initialization as init
from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer, ViTMAEPatchEmbeddings

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import column_steps, shortest_remainder, split_windows
from simple_multimodal.models.base import Conversion, Encoder, EncoderOutput
from simple_multimodal.models.patches import interpolate_grid, sinusoidal_grid, take_patches, to_pair, visible_patches


def audio_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """
    Return the number of patches of one window over (frequency, time).

    Raises:
        ValueError: If the patches do not tile the window.
    """
    height, width = to_pair(config.image_size)
    patch = config.patch_size
    if not isinstance(patch, int) or height % patch or width % patch or height < patch or width < patch:
        raise InputError(
            f"The audio tower has windows of {height} mel bins by {width} frames and patches of {patch}. The patch "
            "size must be an integer, and bins and frames multiples of it: change num_mel_bins or num_frames of "
            "the audio processor, or image_size or patch_size in the audio config."
        )
    return height // patch, width // patch


class ViTMAEAudioDecoder(ViTMAEPreTrainedModel):
    """
    The decoder of ViT-MAE: visible tokens and mask tokens in, values of the masked patches out.

    Args:
        config ([`ViTMAEConfig`]): Sizes of the tower and, as `decoder_*`, of this decoder.
    """

    def __init__(self, config: ViTMAEConfig):
        super().__init__(config)
        self.grid = audio_grid(config)
        size = config.decoder_hidden_size
        layer_config = deepcopy(config)
        layer_config.hidden_size = size
        layer_config.num_attention_heads = config.decoder_num_attention_heads
        layer_config.intermediate_size = config.decoder_intermediate_size
        self.decoder_embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.decoder_pos_embed = nn.Buffer(torch.zeros(1, 1 + math.prod(self.grid), size))
        self.decoder_layers = nn.ModuleList(ViTMAELayer(layer_config) for _ in range(config.decoder_num_hidden_layers))
        self.decoder_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(size, config.patch_size**2 * config.num_channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTMAEAudioDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(
                module.decoder_pos_embed, sinusoidal_grid(*module.grid, module.decoder_pos_embed.shape[-1])[None]
            )

    def forward(self, visible: EncoderOutput, masked_patches: torch.Tensor) -> torch.Tensor:
        """
        Args:
            visible ([`EncoderOutput`]): Output of the encoder for the same `masked_patches`.
            masked_patches (`torch.LongTensor` of shape `(batch_size, num_masked)`): Positions of the masked patches,
                as the encoder takes them.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_masked, patch_size**2 * num_channels)`: Values of the
            masked patches, in order.
        """
        batch_size, num_patches = len(masked_patches), math.prod(self.grid)
        windows = batch_size * visible.class_tokens.shape[1]
        masked_positions = masked_patches.view(windows, -1) % num_patches
        visible_positions = visible_patches(masked_positions, num_patches)

        states = self.decoder_embed(visible.tokens.reshape(windows, -1, visible.tokens.shape[-1]))
        class_states = self.decoder_embed(visible.class_tokens.reshape(windows, 1, -1))
        size = states.shape[-1]
        mask_tokens = self.mask_token.to(states.dtype).expand(windows, num_patches, size)
        states = mask_tokens.scatter(1, visible_positions[..., None].expand(-1, -1, size), states)
        states = torch.cat([class_states, states], dim=1) + self.decoder_pos_embed  # (windows, 1 + patches, size)
        for layer in self.decoder_layers:
            states = layer(states)
        states = take_patches(self.decoder_norm(states)[:, 1:], masked_positions)
        predictions = self.decoder_pred(states)  # (windows, masked per window, patch values)
        return predictions.reshape(batch_size, -1, predictions.shape[-1])


class AudioPatchEmbeddings(nn.Module):
    """Patch projection, class token and fixed positions of one window, named as in ViT-MAE."""

    def __init__(self, config: ViTMAEConfig):
        super().__init__()
        self.grid = audio_grid(config)
        self.patch_embeddings = ViTMAEPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Buffer(torch.zeros(1, 1 + math.prod(self.grid), config.hidden_size))

    def forward(self, windows: torch.Tensor, visible_positions: torch.Tensor | None) -> torch.Tensor:
        """Embed `(num_windows, channels, bins, frames)` as `(num_windows, 1 + num_visible, size)`, class first."""
        states = self.patch_embeddings(windows) + self.position_embeddings[:, 1:]
        if visible_positions is not None:
            states = take_patches(states, visible_positions)
        class_token = self.cls_token + self.position_embeddings[:, :1]
        return torch.cat([class_token.to(states.dtype).expand(len(states), -1, -1), states], dim=1)


class ViTMAEAudioEncoder(Encoder, ViTMAEPreTrainedModel):
    """
    ViT-MAE ([He et al., 2021](https://huggingface.co/papers/2111.06377)) over the patches of a log-mel spectrogram, as
    [Audio-MAE](https://huggingface.co/papers/2207.06405) uses it.

    Long audio is several windows side by side; the tower sees one window at a time. `config.image_size` is
    `(num_mel_bins, num_frames)` of a window, any multiples of the patch size. The attention inside a window includes
    padding frames: windows have one fixed length, so that the result does not depend on the rest of the batch.

    Args:
        config ([`ViTMAEConfig`]): Sizes of the tower.
    """

    modality = "audio"
    model_type = "vit_mae"
    pretrained_class = ViTMAEForPreTraining
    pretrained_names = {"vit.": "encoder.", "decoder.": "decoder."}
    decoder_class = ViTMAEAudioDecoder

    def __init__(self, config: ViTMAEConfig):
        super().__init__(config)
        self.embeddings = AudioPatchEmbeddings(config)
        self.layers = nn.ModuleList(ViTMAELayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AudioPatchEmbeddings):
            kernel = module.patch_embeddings.projection.weight
            bound = math.sqrt(6 / (kernel.shape[0] + kernel[0].numel()))  # Xavier over the flattened patch, as in MAE
            init.uniform_(kernel, -bound, bound)
            init.normal_(module.cls_token, std=self.config.initializer_range)
            table = sinusoidal_grid(*module.grid, module.position_embeddings.shape[-1])
            init.copy_(module.position_embeddings, table[None])

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the size of a window, and how much audio a further one must hold; the size of a square RGB image says
        nothing about audio.
        """
        bins, frames = to_pair(config.image_size)
        size = {"num_mel_bins": bins, "num_frames": frames} if config.num_channels == 1 or bins != frames else {}
        return {"min_window_frames": shortest_remainder(to_pair(config.patch_size)[1]), **size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy a ViT-MAE config, possibly one for images, for log-mel windows of this size.

        Raises:
            ValueError: If the patches do not tile the window.
        """
        config = deepcopy(config)
        config.num_channels = 1
        config.image_size = [num_mel_bins, num_frames]
        audio_grid(config)
        return config

    @property
    def num_patches(self) -> int:
        """Number of patches, and so of tokens, of one window."""
        return math.prod(self.embeddings.grid)

    @property
    def tokens_per_step(self) -> int:
        """Patches per column."""
        return self.embeddings.grid[0]

    def time_steps(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """Return the patch columns, counted through all windows; see [`Encoder.time_steps`]."""
        return column_steps(num_tokens, *self.embeddings.grid, device=device)

    def check_inputs(self, num_mel_bins: int, num_frames: int) -> None:
        """Raise a `ValueError` if the tower's window is not `num_mel_bins` by `num_frames`."""
        expected = to_pair(self.config.image_size)
        if (num_mel_bins, num_frames) != expected:
            raise InputError(
                f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but the audio "
                f"tower takes {expected[0]} by {expected[1]}. Set num_mel_bins and num_frames of the processor to "
                f"these, or image_size in the audio config to [{num_mel_bins}, {num_frames}]."
            )

    def split_windows(self, audio_values: torch.Tensor) -> torch.Tensor:
        """Split `(batch_size, channels, bins, length)` to `(batch_size * num_windows, channels, bins, num_frames)`."""
        return split_windows(audio_values, self.config.num_channels, *to_pair(self.config.image_size))

    def per_token(self, frames: torch.Tensor) -> torch.Tensor:
        """Group values per frame `(batch_size, frames)` by patch: `(batch_size, num_tokens, frames per patch)`."""
        height, width = self.embeddings.grid
        columns = frames.view(len(frames), -1, 1, width, self.config.patch_size)  # (batch, windows, 1, width, frames)
        return columns.expand(-1, -1, height, -1, -1).flatten(1, 3)

    def token_mask(self, audio_attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Return which tokens stand for audio: those with at least one real frame.

        Args:
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, num_windows * num_patches)`.
        """
        return self.per_token(audio_attention_mask).any(dim=-1)

    def forward(
        self,
        audio_values: torch.Tensor,
        audio_attention_mask: torch.Tensor,
        audio_seconds: torch.Tensor,
        masked_patches: torch.Tensor | None = None,
    ) -> EncoderOutput:
        """
        Args:
            audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_mel_bins, num_windows * num_frames)`):
                Normalised log-mel.
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.
            audio_seconds (`torch.FloatTensor` of shape `(batch_size, num_windows * num_frames)`):
                Time of each frame's centre in the segment, in seconds.
            masked_patches (`torch.LongTensor` of shape `(batch_size, num_masked)`, *optional*):
                Positions among the `num_windows * num_patches` of a row, ascending, the same number per window. Only
                the other patches are encoded and returned.

        Returns:
            [`EncoderOutput`]: Tokens window by window, in a window row by row over (frequency, time).
        """
        batch_size = len(audio_values)
        windows = self.split_windows(audio_values).to(self.embeddings.cls_token.dtype)
        mask, seconds = self.token_mask(audio_attention_mask), self.per_token(audio_seconds).mean(dim=-1)
        visible = None
        if masked_patches is not None:
            visible = visible_patches(masked_patches.view(len(windows), -1) % self.num_patches, self.num_patches)
            mask, seconds = (values.view(len(visible), -1).gather(1, visible) for values in (mask, seconds))
        states = self.embeddings(windows, visible)
        for layer in self.layers:
            states = layer(states)
        states = self.layernorm(states)  # (windows of the batch, 1 + tokens per window, hidden)
        return EncoderOutput(
            tokens=states[:, 1:].reshape(batch_size, -1, states.shape[-1]),
            mask=mask.view(batch_size, -1),
            seconds=seconds.view(batch_size, -1),
            class_tokens=states[:, 0].view(batch_size, -1, states.shape[-1]),
        )

    def patch_targets(self, audio_values: torch.Tensor, masked_patches: torch.Tensor) -> torch.Tensor:
        """
        Return the targets of the decoder: the values of the masked patches, normalised per patch if `norm_pix_loss`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_masked, patch_size**2 * num_channels)`.
        """
        (height, width), size = self.embeddings.grid, self.config.patch_size
        windows = self.split_windows(audio_values)
        patches = windows.view(len(windows), -1, height, size, width, size).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(len(windows), height * width, -1)  # (windows, patches, values)
        targets = take_patches(patches, masked_patches.view(len(windows), -1) % self.num_patches)
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
            targets = (targets - mean) / (variance + 1e-6).sqrt()
        return targets.reshape(len(audio_values), -1, targets.shape[-1])

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """
        Interpolate position tables bicubically over the grid. From RGB to one channel, sum the kernel of the patches
        over the channels and average the decoder's prediction, as if the log-mel were a greyscale image.
        """
        if name in ("encoder.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
            grid, own_grid = audio_grid(source_config), self.embeddings.grid
            if grid == own_grid or source.shape[-1] != target.shape[-1]:
                return None
            table = interpolate_grid(source[0, 1:], (1, *grid), (1, *own_grid))
            tensor = torch.cat([source[:, :1].float(), table[None]], dim=1)
            return Conversion(tensor, f"interpolated from {grid[0]}x{grid[1]} to {own_grid[0]}x{own_grid[1]} patches")
        channels = source_config.num_channels
        if self.config.num_channels != 1 or channels == 1 or self.config.patch_size != source_config.patch_size:
            return None
        if name == "encoder.embeddings.patch_embeddings.projection.weight":
            return Conversion(source.sum(dim=1, keepdim=True), f"summed over {channels} channels")
        if name in ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias"):
            return Conversion(source.unflatten(0, (-1, channels)).mean(dim=1), f"averaged over {channels} channels")
        return None
