"""What audio encoders share: the windows of a batch, and the time of their tokens."""

import torch

SHORTEST_REMAINDER_SECONDS = 0.16
"""No window opens for less audio: encoders pad a track by some 50 ms, so that many a clip of ten seconds has 10.05."""


def shortest_remainder(patch_frames: int = 1, *, hop_seconds: float = 0.01) -> int:
    """Frames that audio behind the last whole window needs for a window of its own: those of a patch in time, and of
    `SHORTEST_REMAINDER_SECONDS`. The `min_window_frames` of a tower's processor.
    """
    return max(patch_frames, round(SHORTEST_REMAINDER_SECONDS / hop_seconds))


def check_window(num_mel_bins: int, num_frames: int, expected: tuple[int, int]) -> None:
    """Raise a `ValueError` if a processor's window is not the tower's: `expected` mel bins and frames."""
    if (num_mel_bins, num_frames) != expected:
        raise ValueError(
            f"The audio processor makes windows of {num_mel_bins} mel bins by {num_frames} frames, but the audio "
            f"tower takes {expected[0]} by {expected[1]}. Set num_mel_bins and num_frames of the processor to these."
        )


def split_windows(audio_values: torch.Tensor, channels: int, num_mel_bins: int, num_frames: int) -> torch.Tensor:
    """
    Windows as rows: `(batch_size, channels, num_mel_bins, length)` → `(batch_size * num_windows, channels,
    num_mel_bins, num_frames)`.

    Raises:
        `ValueError` if the values are no windows of this size.
    """
    batch_size, own_channels, own_bins, length = audio_values.shape
    if own_bins != num_mel_bins or length % num_frames or own_channels != channels:
        raise ValueError(
            f"audio_values has shape {tuple(audio_values.shape)}, but the audio tower takes (batch_size, {channels}, "
            f"{num_mel_bins}, a multiple of {num_frames}): make the processor's num_mel_bins and num_frames equal to "
            "those in the audio config."
        )
    windows = audio_values.view(batch_size, channels, num_mel_bins, -1, num_frames).permute(0, 3, 1, 2, 4)
    return windows.reshape(-1, channels, num_mel_bins, num_frames)


def column_steps(num_tokens: int, height: int, width: int, *, device: torch.device | None = None) -> torch.Tensor:
    """The columns of grids of `height` by `width` tokens, row by row in each window, counted through all windows;
    `torch.LongTensor` of shape `(num_tokens,)`.
    """
    numbers = torch.arange(num_tokens, device=device)
    return numbers // (height * width) * width + numbers % width
