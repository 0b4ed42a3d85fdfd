"""Cover the audio of a clip with windows of fixed length: one rule for every front end."""

from typing import Literal, NamedTuple

import numpy as np
import torch

AudioCrop = Literal["start", "random"]
"""Part to keep of audio that is longer than the model's input."""


class WindowPlan(NamedTuple):
    """Consecutive windows over the frames of a clip's audio.

    Args:
        first_frame (`int`): Start of the first window; above 0 only if audio is cropped.
        num_windows (`int`): Number of windows, at least one.
    """

    first_frame: int
    num_windows: int


def plan_windows(
    num_frames: int,
    window_frames: int,
    *,
    min_window_frames: int = 1,
    max_windows: int | None = None,
    crop: AudioCrop = "start",
    generator: np.random.Generator | None = None,
) -> WindowPlan:
    """
    Cover audio with windows.

    Args:
        num_frames (`int`): Number of frames of the audio, 0 or more; in any unit of time.
        window_frames (`int`): Number of frames in a window.
        min_window_frames (`int`, *optional*, defaults to 1): Smallest remainder, in frames, that gets a window of its
            own; a shorter one is dropped. Shorter audio still has one window.
        max_windows (`int`, *optional*): Maximum number of windows, to which longer audio is cropped. By default audio
            is not cropped.
        crop (`str`, *optional*, defaults to `"start"`): Part to keep of cropped audio. `"start"`: the first windows;
            `"random"`: a random part chosen with `generator`, which starts at any frame with equal probability, or
            the middle without a generator.
        generator (`np.random.Generator`, *optional*): Generator of the sample, in training.

    Returns:
        [`WindowPlan`].
    """
    num_windows, remainder = divmod(num_frames, window_frames)
    num_windows = max(num_windows + (remainder >= max(min_window_frames, 1)), 1)
    if max_windows is None or num_windows <= max_windows:
        return WindowPlan(0, num_windows)
    spare = num_frames - max_windows * window_frames
    if crop == "start":
        return WindowPlan(0, max_windows)
    return WindowPlan(spare // 2 if generator is None else int(generator.integers(spare + 1)), max_windows)


def windows_with_audio(attention_mask: torch.Tensor, window_frames: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """
    Find the windows of a batch that contain audio, so that a tower need not run on the others.

    Args:
        attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * window_frames)`): `True` for real
            frames.
        window_frames (`int`): Number of frames in a window.

    Returns:
        The values of `AUDIO_WINDOW_KEYS`. If no window contains audio, the first one is still included: without it
        the tower would not run, and its parameters would have no gradients in this process only.
    """
    holds = attention_mask.unflatten(1, (-1, window_frames)).any(dim=2)
    windows = holds.nonzero()
    return windows if len(windows) else windows.new_zeros(1, 2), tuple(holds.sum(dim=1).tolist())
