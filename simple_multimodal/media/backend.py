"""The video backend protocol, and code shared by the backends on other libraries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from av.video.frame import VideoFrame

from simple_multimodal.errors import InputError
from simple_multimodal.media.conversion import FrameConverter
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex

if TYPE_CHECKING:  # commands that only decode on the CPU run without torch
    import torch

TOLERANCE_SECONDS = 1e-3  # time stamps are whole ticks; frames are further apart than this
REMEDY = "use the pyav backend"


class VideoBackend(Protocol):
    """
    Reads chosen frames of a video file; safe to call from several threads and, on a CPU, after a fork.

    Attributes:
        device (`str`): Device of the frames, such as `"cpu"` or `"cuda:0"`.
    """

    device: str

    def frames(
        self,
        path: str | os.PathLike[str],
        positions: Sequence[int],
        index: FrameIndex,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray | torch.Tensor:
        """
        Decode the frames at the given positions.

        Args:
            path (`str` or `os.PathLike`): The file.
            positions (`Sequence[int]`): Frame numbers in `[0, index.num_frames)`, in any order, repeats allowed.
            index (`FrameIndex`): The index of the video, from `index_video`.
            size (`tuple[int, int]`, *optional*): Height and width to scale to with swscale's bilinear kernel, which
                averages when it shrinks; by default the video's own.

        Returns:
            `np.ndarray` of shape `(len(positions), 3, height, width)`, `uint8`: RGB, rotation of the file applied.
            A backend that decodes on a device returns a `torch.ByteTensor` there.

        Raises:
            MediaError: The file cannot be read, or its frames differ from the indexed ones.
            ValueError: A position is outside the file.
        """
        ...


def check_positions(positions: Sequence[int], index: FrameIndex) -> None:
    """
    Check that frame numbers are inside the video.

    Args:
        positions (`Sequence[int]`): Frame numbers, at least one.
        index (`FrameIndex`): The index of the video.

    Raises:
        ValueError: There is no position, or one is outside `[0, index.num_frames)`.
    """
    if len(positions) == 0:
        raise InputError(f"{index.path!r}: no frame positions were given; give at least one")
    outside = [position for position in positions if not 0 <= position < index.num_frames]
    if outside:
        raise InputError(
            f"{index.path!r}: frame positions {outside} are outside the video; allowed are 0 to {index.num_frames - 1}"
        )


class PeerReader(Protocol):
    """A video that another library has open."""

    @property
    def num_frames(self) -> int:
        """Number of frames that the library counts."""
        ...

    def read(self, positions: list[int]) -> tuple[np.ndarray, np.ndarray | torch.Tensor]:
        """Return times in seconds from the first frame, and the frames, `(len(positions), height, width, 3)`."""
        ...


def read_checked(
    open_reader: Callable[[], PeerReader],
    positions: Sequence[int],
    index: FrameIndex,
    *,
    library: str,
    errors: tuple[type[Exception], ...],
) -> np.ndarray | torch.Tensor:
    """
    Read frames with another library, and refuse a file if the frames would differ from those of a full decode.

    Args:
        open_reader (`Callable`): Function that opens the file.
        positions (`Sequence[int]`): Frame numbers.
        index (`FrameIndex`): The index of the video.
        library (`str`): Name of the library, for messages.
        errors (`tuple[type[Exception], ...]`): Exceptions that the library raises.

    Returns:
        The frames as the library returns them, `uint8` of shape `(len(positions), height, width, 3)`: RGB.

    Raises:
        MediaError: The library fails, or its number, times or order of frames differ from a full decode.
        ValueError: A position is outside the file.
    """
    check_positions(positions, index)
    chosen = [int(position) for position in positions]
    if not index.is_in_presentation_order:
        raise MediaError(
            f"{index.path!r}: {library} orders frames by time stamp, and those of this file are out of order; {REMEDY}"
        )
    try:
        reader = open_reader()
        num_frames = reader.num_frames
        if num_frames == index.num_frames:  # otherwise decord would hang or repeat a frame at the end
            seconds, frames = reader.read(chosen)
    except errors as error:
        raise MediaError(f"{index.path!r}: {library} cannot decode it: {error}") from error
    if num_frames != index.num_frames:
        raise MediaError(
            f"{index.path!r}: {library} counts {num_frames} frames but a full decode yields {index.num_frames}; "
            f"{REMEDY}"
        )
    if not np.allclose(seconds, index.seconds[chosen], rtol=1e-6, atol=TOLERANCE_SECONDS):
        raise MediaError(f"{index.path!r}: {library} gives the frames other times than a full decode; {REMEDY}")
    shape = (index.height, index.width, 3)
    if tuple(frames.shape[1:]) != shape:
        raise MediaError(
            f"{index.path!r}: {library} returned frames of shape {tuple(frames.shape[1:])}, not {shape}; {REMEDY}"
        )
    return frames


def to_planes(frames: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """
    Return frames of another library as [`VideoBackend.frames`] does.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, `uint8`): RGB.
        size (`tuple[int, int]`, *optional*): Height and width to scale to with swscale's bilinear kernel.

    Returns:
        `np.ndarray` of shape `(num_frames, 3, height, width)`, `uint8`.
    """
    if size is None:
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    convert = FrameConverter(size)
    scaled = np.empty((len(frames), 3, *size), np.uint8)
    for frame, out in zip(frames, scaled, strict=True):
        convert(VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"), out)
    return scaled
