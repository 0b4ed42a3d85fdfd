"""The Audio Spectrogram Transformer as an audio encoder."""

from copy import deepcopy
from typing import Any

import torch
from transformers import ASTForAudioClassification, ASTModel, PreTrainedConfig

from simple_multimodal.errors import InputError
from simple_multimodal.models.audio.windows import check_window, column_steps, shortest_remainder, split_windows
from simple_multimodal.models.base import Conversion, Encoder, EncoderOutput
from simple_multimodal.models.patches import interpolate_grid


def ast_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the number of patches, which may overlap, of one window over (frequency, time)."""
    return (
        (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1,
        (config.max_length - config.patch_size) // config.time_stride + 1,
    )


class ASTAudioEncoder(Encoder, ASTModel):
    """
    The Audio Spectrogram Transformer ([Gong et al., 2021](https://huggingface.co/papers/2104.01778)). Audio longer
    than a window is split into several, which the tower sees one at a time; the stock pipeline truncates it.

    Args:
        config ([`ASTConfig`]): Sizes of the tower; `num_mel_bins` and `max_length` are those of a window.
    """

    modality = "audio"
    model_type = "audio-spectrogram-transformer"
    pretrained_class = ASTForAudioClassification
    pretrained_names = {"audio_spectrogram_transformer.": "encoder."}
    uses_own_processor = True

    @classmethod
    def processor_values(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the size of a window, and how much audio a further one must hold."""
        size = {"num_mel_bins": config.num_mel_bins, "num_frames": config.max_length}
        return {"min_window_frames": shortest_remainder(config.patch_size), **size}

    @classmethod
    def fit_config(cls, config: PreTrainedConfig, num_mel_bins: int, num_frames: int) -> PreTrainedConfig:
        """
        Copy the config for windows of this size.

        Raises:
            ValueError: If a window is smaller than a patch.
        """
        if min(num_mel_bins, num_frames) < config.patch_size:
            raise InputError(
                f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but a patch of "
                f"the audio tower is {config.patch_size} by {config.patch_size}. Raise num_mel_bins or num_frames of "
                "the processor."
            )
        config = deepcopy(config)
        config.num_mel_bins, config.max_length = num_mel_bins, num_frames
        return config

    @property
    def tokens_per_step(self) -> int:
        """Patches per column."""
        return ast_grid(self.config)[0]

    def time_steps(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """Return the patch columns, counted through all windows; see [`Encoder.time_steps`]."""
        return column_steps(num_tokens, *ast_grid(self.config), device=device)

    def check_inputs(self, num_mel_bins: int, num_frames: int) -> None:
        """Raise a `ValueError` if the tower's window is not `num_mel_bins` by `num_frames`."""
        check_window(num_mel_bins, num_frames, (self.config.num_mel_bins, self.config.max_length))

    def forward(
        self, audio_values: torch.Tensor, audio_attention_mask: torch.Tensor, audio_seconds: torch.Tensor
    ) -> EncoderOutput:
        """
        Args:
            audio_values (`torch.FloatTensor` of shape `(batch_size, 1, num_mel_bins, num_windows * num_frames)`):
                Normalised log-mel.
            audio_attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * num_frames)`): `True` = real.
            audio_seconds (`torch.FloatTensor` of shape `(batch_size, num_windows * num_frames)`):
                Time of each frame's centre in the segment, in seconds.

        Returns:
            [`EncoderOutput`]: Tokens window by window, in a window row by row over (frequency, time), without the
            class and distillation tokens, which have no time.
        """
        config, batch_size = self.config, len(audio_values)
        windows = split_windows(audio_values, 1, config.num_mel_bins, config.max_length)
        states = ASTModel.forward(self, windows[:, 0].transpose(1, 2).to(self.dtype)).last_hidden_state[:, 2:]

        def per_token(frames: torch.Tensor) -> torch.Tensor:
            """Group values per frame `(batch_size, frames)` by patch: `(batch_size, num_tokens, frames per patch)`."""
            patches = frames.view(batch_size, -1, config.max_length).unfold(2, config.patch_size, config.time_stride)
            return patches[:, :, None].expand(-1, -1, ast_grid(config)[0], -1, -1).flatten(1, 3)

        return EncoderOutput(
            tokens=states.reshape(batch_size, -1, states.shape[-1]),
            mask=per_token(audio_attention_mask).any(dim=-1),
            seconds=per_token(audio_seconds).mean(dim=-1),
        )

    def convert_pretrained(
        self, name: str, source: torch.Tensor, target: torch.Tensor, source_config: PreTrainedConfig
    ) -> Conversion | None:
        """Convert position tables of another window by bicubic interpolation over the grid."""
        if name != "encoder.embeddings.position_embeddings" or source.shape[-1] != target.shape[-1]:
            return None
        grid, own_grid = ast_grid(source_config), ast_grid(self.config)
        if grid == own_grid:
            return None
        table = interpolate_grid(source[0, 2:], (1, *grid), (1, *own_grid))
        tensor = torch.cat([source[:, :2].float(), table[None]], dim=1)
        return Conversion(tensor, f"interpolated from {grid[0]}x{grid[1]} to {own_grid[0]}x{own_grid[1]} patches")
