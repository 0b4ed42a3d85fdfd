"""Choose the frames of a video that make up a clip."""

import math
from typing import Literal, get_args

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex

SamplingStrategy = Literal["uniform", "jittered", "dense", "alpro"]
SAMPLING_STRATEGIES: tuple[SamplingStrategy, ...] = get_args(SamplingStrategy)


def check_segment(start_seconds: float | None, end_seconds: float | None) -> None:
    """
    Check the bounds of a half-open segment `[start_seconds, end_seconds)`.

    Args:
        start_seconds (`float`, *optional*): Start in seconds; `None` means 0.
        end_seconds (`float`, *optional*): End in seconds; `None` means the end of the file.

    Raises:
        ValueError: A bound is negative or not a number, or the segment is empty.
    """
    start = 0.0 if start_seconds is None else start_seconds
    end = math.inf if end_seconds is None else end_seconds
    if not 0 <= start < math.inf or not start < end:  # false for NaN as well
        raise InputError(
            f"the segment [{start_seconds}, {end_seconds}) is not allowed: give 0 <= start_seconds < end_seconds"
        )


def sample_positions(
    index: FrameIndex,
    num_frames: int,
    strategy: SamplingStrategy = "uniform",
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    stride: int = 1,
    generator: np.random.Generator | None = None,
) -> list[int]:
    """
    Choose the frames of a clip.

    Candidates are the frames that begin in `[start_seconds, end_seconds)`, or, if none does, the frame on screen at
    its start. The strategies are:

    - `"uniform"`: the centre of each of `num_frames` equal parts;
    - `"jittered"`: one random frame of each of the same parts (as in temporal segment networks,
      https://arxiv.org/abs/1608.00859);
    - `"dense"`: `num_frames` frames, `stride` apart; from the centre, or with a `generator` from a random start;
    - `"alpro"`: every `count // num_frames`-th of the `count` frames, starting at the first, as in ALPRO's evaluation
      (Li et al. 2022); the step is rounded down, so the end of the segment may never be sampled.

    If the segment is too short, frames are repeated: `"uniform"` and `"jittered"` repeat evenly, `"dense"` repeats the
    last frame, `"alpro"` returns only the first frame.

    Args:
        index (`FrameIndex`): The index of the video.
        num_frames (`int`): Number of frames of the clip, at least 1.
        strategy (`str`, *optional*, defaults to `"uniform"`): `"uniform"`, `"jittered"`, `"dense"` or `"alpro"`.
        start_seconds (`float`, *optional*): Start of the segment, in seconds from the first frame; default 0.
        end_seconds (`float`, *optional*): End of the segment (exclusive), in seconds; default the end of the video.
        stride (`int`, *optional*, defaults to 1): Distance between neighbouring frames of a `"dense"` clip, in frames.
        generator (`np.random.Generator`, *optional*): Source of randomness: required by `"jittered"`, optional with
            `"dense"`, unused by the others.

    Returns:
        `list[int]`: `num_frames` frame numbers in `[0, index.num_frames)`, never descending.

    Raises:
        ValueError: An argument is not allowed.
        MediaError: The segment begins after the end of the video.

    Example:

    ```python
    >>> sample_positions(index, 4)  # of a video of 100 frames
    [12, 37, 62, 87]
    >>> sample_positions(index, 4, "dense", stride=2)
    [46, 48, 50, 52]
    ```
    """
    if num_frames < 1:
        raise InputError(f"num_frames is {num_frames}; give at least 1")
    if stride < 1:
        raise InputError(f"stride is {stride}; give at least 1")
    if strategy not in SAMPLING_STRATEGIES:
        raise InputError(
            f"there is no frame sampling strategy {strategy!r}; allowed are {', '.join(SAMPLING_STRATEGIES)}"
        )
    first, stop = segment_positions(index, start_seconds, end_seconds)
    count = stop - first
    if strategy == "uniform":
        return [first + (2 * part + 1) * count // (2 * num_frames) for part in range(num_frames)]
    if strategy == "alpro":
        return [first + part * (count // num_frames) for part in range(num_frames)]
    if strategy == "jittered":
        if generator is None:
            raise InputError("the 'jittered' strategy samples frames at random: give a generator, or use 'uniform'")
        offsets = (np.arange(num_frames) + generator.random(num_frames)) * count / num_frames
        return [first + min(int(offset), count - 1) for offset in offsets]
    room = max(count - (num_frames - 1) * stride - 1, 0)  # the latest start of a clip that fits
    offset = room // 2 if generator is None else int(generator.integers(room + 1))
    return [first + min(offset + step * stride, count - 1) for step in range(num_frames)]


def segment_positions(
    index: FrameIndex, start_seconds: float | None = None, end_seconds: float | None = None
) -> tuple[int, int]:
    """
    Find the frames of a half-open segment of a video.

    Args:
        index (`FrameIndex`): The index of the video.
        start_seconds (`float`, *optional*): Start in seconds from the first frame; default 0.
        end_seconds (`float`, *optional*): End (exclusive) in seconds; default the end of the video.

    Returns:
        `tuple[int, int]`: Number of the first frame, and the number after the last; at least one frame.

    Raises:
        ValueError: The segment is not allowed.
        MediaError: The segment begins after the end of the video.
    """
    check_segment(start_seconds, end_seconds)
    start = 0.0 if start_seconds is None else start_seconds
    if start > 0 and start >= index.duration_seconds:
        raise MediaError(
            f"{index.path!r}: the segment starts at {start} s, after the video's end at {index.duration_seconds:.3f} s"
        )
    first = int(np.searchsorted(index.seconds, start, side="left"))
    stop = index.num_frames if end_seconds is None else int(np.searchsorted(index.seconds, end_seconds, side="left"))
    if first >= stop:  # no frame begins in the segment: use the one on screen at its start
        first = max(int(np.searchsorted(index.seconds, start, side="right")) - 1, 0)
        stop = first + 1
    return first, stop
