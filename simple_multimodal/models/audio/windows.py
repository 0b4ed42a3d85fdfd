"""Shared parts of audio encoders: the windows of a batch, and the time of their tokens."""

from collections.abc import Sequence

import torch

from simple_multimodal.errors import InputError
from simple_multimodal.models.base import Encoder, EncoderOutput, mean_direction

SHORTEST_REMAINDER_SECONDS = 0.16
"""No window is opened for less audio: encoders pad a track by some 50 ms, so many clips of ten seconds have 10.05."""


def shortest_remainder(patch_frames: int = 1, *, hop_seconds: float = 0.01) -> int:
    """Return the fewest frames of audio after the last whole window that get a window of their own: those of a patch
    in time, and of `SHORTEST_REMAINDER_SECONDS`. This is the `min_window_frames` of a tower's processor.
    """
    return max(patch_frames, round(SHORTEST_REMAINDER_SECONDS / hop_seconds))


def check_window(num_mel_bins: int, num_frames: int, expected: tuple[int, int]) -> None:
    """Raise a `ValueError` if a processor's window is not the tower's: `expected` mel bins and frames."""
    if (num_mel_bins, num_frames) != expected:
        raise InputError(
            f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but the audio "
            f"tower takes {expected[0]} by {expected[1]}. Set num_mel_bins and num_frames of the processor to these."
        )


def split_windows(audio_values: torch.Tensor, channels: int, num_mel_bins: int, num_frames: int) -> torch.Tensor:
    """
    Split a batch into windows as rows: `(batch_size, channels, num_mel_bins, length)` → `(batch_size * num_windows,
    channels, num_mel_bins, num_frames)`.

    Raises:
        ValueError: If the values are not windows of this size.
    """
    batch_size, own_channels, own_bins, length = audio_values.shape
    if own_bins != num_mel_bins or length % num_frames or own_channels != channels:
        raise InputError(
            f"audio_values has shape {tuple(audio_values.shape)}, but the audio tower takes (batch_size, {channels}, "
            f"{num_mel_bins}, a multiple of {num_frames}): make the processor's num_mel_bins and num_frames equal to "
            "those in the audio config."
        )
    windows = audio_values.view(batch_size, channels, num_mel_bins, -1, num_frames).permute(0, 3, 1, 2, 4)
    return windows.reshape(-1, channels, num_mel_bins, num_frames)


def column_steps(num_tokens: int, height: int, width: int, *, device: torch.device | None = None) -> torch.Tensor:
    """Return the columns of grids of `height` by `width` tokens, row by row in each window, counted through all
    windows; `torch.LongTensor` of shape `(num_tokens,)`.
    """
    numbers = torch.arange(num_tokens, device=device)
    return numbers // (height * width) * width + numbers % width


def take_windows(values: torch.Tensor, windows: torch.Tensor, num_windows: int, *, dim: int = 1) -> torch.Tensor:
    """
    Select some windows of a batch as rows of their own.

    Args:
        values (`torch.Tensor` of shape `(batch_size, ..., num_windows * n, ...)`): Tensor with `n` values in each
            window along `dim`.
        windows (`torch.LongTensor` of shape `(num_taken, 2)`): Row and window of each, all different.
        num_windows (`int`): Number of windows of a row.
        dim (`int`, *optional*, defaults to 1): Axis along which the windows follow each other.

    Returns:
        `torch.Tensor` of shape `(num_taken, ..., n, ...)`.
    """
    rows = values.unflatten(dim, (num_windows, -1)).movedim(dim, 1).flatten(0, 1)
    return rows.index_select(0, _numbers(windows, num_windows))


def put_windows(values: torch.Tensor, windows: torch.Tensor, batch_size: int, num_windows: int) -> torch.Tensor:
    """Invert [`take_windows`] along the second axis: `(num_taken, n, ...)` to `(batch_size, num_windows * n, ...)`,
    with zeros in the windows that were not taken.
    """
    rows = values.new_zeros(batch_size * num_windows, *values.shape[1:])
    rows = rows.index_copy(0, _numbers(windows, num_windows), values)
    return rows.unflatten(0, (batch_size, num_windows)).flatten(1, 2)


def _numbers(windows: torch.Tensor, num_windows: int) -> torch.Tensor:
    """Return row and window as one number."""
    return windows[:, 0] * num_windows + windows[:, 1]


def encode_windows(encoder: Encoder, inputs: Sequence[torch.Tensor], windows: torch.Tensor) -> EncoderOutput:
    """
    Run an audio encoder on only some windows of a batch.

    Args:
        encoder ([`Encoder`]): Audio encoder, which sees each window by itself.
        inputs (`Sequence[torch.Tensor]`): Inputs of the encoder for the whole batch.
        windows (`torch.LongTensor` of shape `(num_taken, 2)`): Row and window of each.

    Returns:
        [`EncoderOutput`] of the whole batch: zeros, and `False` in the mask, for the other windows.

    Raises:
        ValueError: If the values are not windows of the encoder's size.
    """
    values, mask, *others = inputs
    batch_size, num_windows = len(values), values.shape[-1] // encoder.window_frames
    if num_windows * encoder.window_frames != values.shape[-1]:
        raise InputError(
            f"audio_values has {values.shape[-1]} frames, but a window of the audio tower has {encoder.window_frames}"
            ": make the processor's num_frames equal to that in the audio config."
        )
    output = encoder(
        take_windows(values, windows, num_windows, dim=3),
        *(take_windows(frames, windows, num_windows) for frames in (mask, *others)),
    )

    def put(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else put_windows(part, windows, batch_size, num_windows)

    embedding = output.embedding
    if embedding is not None:
        parts = put_windows(embedding[:, None], windows, batch_size, num_windows)
        embedding = mean_direction(parts, mask.unflatten(1, (num_windows, -1)).sum(dim=-1))
    return EncoderOutput(
        tokens=put_windows(output.tokens, windows, batch_size, num_windows),
        mask=put_windows(output.mask, windows, batch_size, num_windows),
        seconds=put(output.seconds),
        class_tokens=put(output.class_tokens),
        embedding=embedding,
        num_steps=None if output.num_steps is None else num_windows * output.num_steps,
    )
