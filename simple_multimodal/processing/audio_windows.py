"""Which windows of fixed length cover the audio of a clip: one rule for every front end."""

from typing import Literal, NamedTuple

import numpy as np
import torch

AudioCrop = Literal["start", "random"]
"""Which part is kept of audio that is longer than a model takes."""


class WindowPlan(NamedTuple):
    """Consecutive windows over the frames of a clip's audio.

    Args:
        first_frame (`int`): where the first window starts; above 0 only where audio is cropped.
        num_windows (`int`): how many follow each other, at least one.
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
    Cover audio by windows.

    Args:
        num_frames (`int`): frames of the audio, 0 or more; any unit of time that windows are counted in will do.
        window_frames (`int`): frames of a window.
        min_window_frames (`int`, *optional*, defaults to 1): a further window opens only for a remainder of at least
            this many frames; a shorter one is left out. Audio that is shorter as a whole still has its one window.
        max_windows (`int`, *optional*): most windows. Longer audio is cropped to as many; by default it is not.
        crop (`str`, *optional*, defaults to `"start"`): the stretch that is kept then. `"start"`: the first windows;
            `"random"`: one that `generator` draws, every frame as its start equally likely, or without a generator
            the one in the middle.
        generator (`np.random.Generator`, *optional*): of the sample, in training.

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
    Which windows of a batch hold audio, so that a tower need not run on others.

    Args:
        attention_mask (`torch.BoolTensor` of shape `(batch_size, num_windows * window_frames)`): `True` = real.
        window_frames (`int`): frames of a window.

    Returns:
        The values of `AUDIO_WINDOW_KEYS`. If no window holds audio, the very first is named all the same: a tower
        that never runs would leave its parameters without gradients, in this process alone.
    """
    holds = attention_mask.unflatten(1, (-1, window_frames)).any(dim=2)
    windows = holds.nonzero()
    return windows if len(windows) else windows.new_zeros(1, 2), tuple(holds.sum(dim=1).tolist())
