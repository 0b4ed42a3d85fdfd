"""The frame index of a video, and the backends that decode chosen frames of it."""

import itertools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from simple_multimodal.media.container import (
    MAX_FRAMES,
    MAX_PIXELS,
    REORDER_PICTURES,
    check_media_file,
    decode_pictures,
    find_video_stream,
    open_media,
)
from simple_multimodal.media.errors import MediaError


@dataclass(frozen=True)
class FrameIndex:
    """
    What a full decode of a video puts out: how many frames, when, and how large.

    Frame `i` is the `i`-th picture in the decoder's output order. A file that yields fewer frames than its header
    promises is indexed as what it yields.

    Args:
        num_frames (`int`):
            Number of frames, at least 1.
        seconds (`np.ndarray` of shape `(num_frames,)`, `float64`):
            Presentation time of each frame, in seconds from the earliest one; never descending. Where a file's time
            stamps contradict the output order (some AVI files store none for pictures out of order), the times are
            sorted: the `i`-th frame has the `i`-th smallest time. Read-only.
        width (`int`):
            Width of a frame in pixels, after rotation.
        height (`int`):
            Height of a frame in pixels, after rotation.
        duration_seconds (`float`):
            Time from the first frame's start to the last frame's end, in seconds.
        start_seconds (`float`, *optional*, defaults to 0.0):
            Time of the first frame on the container's clock, in seconds.
        is_in_presentation_order (`bool`, *optional*, defaults to `True`):
            Whether the time stamps agreed with the output order.
        path (`str`, *optional*, defaults to `"video"`):
            The file, for messages.
    """

    num_frames: int
    seconds: np.ndarray
    width: int
    height: int
    duration_seconds: float
    start_seconds: float = 0.0
    is_in_presentation_order: bool = True
    path: str = "video"


class VideoBackend(Protocol):
    """Reads chosen frames of a video file; safe to call from several threads and after a fork."""

    def index(self, path: str | os.PathLike[str]) -> FrameIndex:
        """
        Indexes the frames of a video file.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            `FrameIndex`: Number, times and size of its frames.

        Raises:
            MediaError: The file cannot be read, or holds no frame.
        """
        ...

    def frames(self, path: str | os.PathLike[str], positions: Sequence[int], index: FrameIndex) -> np.ndarray:
        """
        Decodes the frames at some positions.

        Args:
            path (`str` or `os.PathLike`): The file.
            positions (`Sequence[int]`): Frame numbers in `[0, index.num_frames)`, in any order, repeats allowed.
            index (`FrameIndex`): What `index(path)` returned.

        Returns:
            `np.ndarray` of shape `(len(positions), height, width, 3)`, `uint8`: RGB, rotation of the file applied.

        Raises:
            MediaError: The file cannot be read, or yields other frames than those indexed.
            ValueError: A position is outside the file.
        """
        ...


def check_positions(positions: Sequence[int], index: FrameIndex) -> None:
    """
    Checks that frame numbers are inside the video.

    Args:
        positions (`Sequence[int]`): Frame numbers, at least one.
        index (`FrameIndex`): The index of the video.

    Raises:
        ValueError: There is no position, or one is outside `[0, index.num_frames)`.
    """
    if len(positions) == 0:
        raise ValueError(f"{index.path!r}: no frame positions were given; give at least one")
    outside = [position for position in positions if not 0 <= position < index.num_frames]
    if outside:
        raise ValueError(
            f"{index.path!r}: frame positions {outside} are outside the video; allowed are 0 to {index.num_frames - 1}"
        )


class FrameIndexCache:
    """
    Keeps the indices of recently used files; a file that changed (size or modification time) is indexed anew.

    Args:
        max_files (`int`): How many indices are kept; the least recently used goes first.
    """

    def __init__(self, max_files: int):
        self.max_files = max_files
        self.indices: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
        self.lock = threading.Lock()

    def reset_lock(self) -> None:
        """Replaces the lock: in a forked child, the thread that held it does not exist."""
        self.lock = threading.Lock()

    def get(self, path: str | os.PathLike[str], build: Callable[[str | os.PathLike[str]], FrameIndex]) -> FrameIndex:
        """
        Returns the index of a file, building it where it is not known yet.

        Args:
            path (`str` or `os.PathLike`): The file.
            build (`Callable`): Makes the index of a path. Two threads that ask for the same new file both build it.

        Returns:
            `FrameIndex`: The index.

        Raises:
            MediaError: The file is not a regular file with content, or `build` fails.
        """
        status = check_media_file(path)
        key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
        with self.lock:
            if key in self.indices:
                self.indices.move_to_end(key)
                return self.indices[key]
        index = build(path)
        with self.lock:
            self.indices[key] = index
            while len(self.indices) > self.max_files:
                self.indices.popitem(last=False)
        return index


_index_cache = FrameIndexCache(max_files=4096)
if sys.platform != "win32":  # Windows cannot fork
    os.register_at_fork(after_in_child=_index_cache.reset_lock)


def index_video(path: str | os.PathLike[str]) -> FrameIndex:
    """
    Indexes a video by decoding it once with PyAV, without colour conversion; all backends share this index.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `FrameIndex`: Number, times and size of its frames; kept in memory for the next call.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    return _index_cache.get(path, _decode_index)


def _decode_index(path: str | os.PathLike[str]) -> FrameIndex:
    """Decodes a whole video for its index."""
    name = os.fspath(path)
    with open_media(path) as container:
        stream = require_video_stream(container, path)
        frame_seconds = 1 / stream.average_rate if stream.average_rate else Fraction(0)
        time_base = tick_seconds(stream)
        ticks: list[int] = []
        last_ticks = 0
        for picture in decode_pictures(container, stream):
            if not ticks:
                width, height = picture.width, picture.height
                if is_transposed(display_matrix(picture)):
                    width, height = height, width
            if len(ticks) == MAX_FRAMES:
                raise MediaError(f"{name!r}: has more than {MAX_FRAMES} frames; cut the file into shorter ones")
            ticks.append(time_stamp(picture, ticks, frame_seconds / time_base))
            last_ticks = picture.duration or 0
    if not ticks:
        raise MediaError(
            f"{name!r}: not one frame of its {stream.codec_context.name} video can be decoded (damaged, or "
            f"pictures of more than {MAX_PIXELS} pixels)"
        )
    start = earliest_ticks(ticks)
    seconds = frame_times(ticks, start, time_base)
    last_seconds = float(last_ticks * time_base) or float(frame_seconds)
    return FrameIndex(
        num_frames=len(ticks),
        seconds=seconds,
        width=width,
        height=height,
        duration_seconds=float(seconds[-1]) + last_seconds,
        start_seconds=float(start * time_base),
        is_in_presentation_order=all(early <= late for early, late in itertools.pairwise(ticks)),
        path=name,
    )


def video_start_seconds(container: InputContainer) -> float | None:
    """
    Finds when the first frame of a video is shown, on the container's clock: the zero of the video's timeline.

    Decodes the first few pictures only, and agrees with `FrameIndex.start_seconds`.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.

    Returns:
        `float` or `None`: The time in seconds; `None` where the file has no video that can be decoded.
    """
    stream = find_video_stream(container)
    if stream is None:
        return None
    time_base = tick_seconds(stream)
    step = 1 / (stream.average_rate * time_base) if stream.average_rate else Fraction(0)
    ticks: list[int] = []
    for picture in itertools.islice(decode_pictures(container, stream), REORDER_PICTURES):
        ticks.append(time_stamp(picture, ticks, step))
    return float(earliest_ticks(ticks) * time_base) if ticks else None


def require_video_stream(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    """
    Returns the video stream of an open file, or says why there is none.

    Args:
        container (`av.container.InputContainer`): The open file.
        path (`str` or `os.PathLike`): Its path, for the message.

    Returns:
        `av.video.stream.VideoStream`: The stream.

    Raises:
        MediaError: The file has no video stream that can be decoded.
    """
    stream = find_video_stream(container)
    if stream is None:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        raise MediaError(f"{os.fspath(path)!r}: has no video stream that can be decoded (streams: {found})")
    return stream


def tick_seconds(stream: VideoStream) -> Fraction:
    """
    Returns the unit of a stream's time stamps.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.

    Returns:
        `Fraction`: Length of a tick, in seconds.
    """
    assert stream.time_base is not None  # every stream that FFmpeg reads has one
    return stream.time_base


def time_stamp(picture: VideoFrame, earlier: Sequence[int], step: Fraction) -> int:
    """
    Returns a picture's time stamp; one without gets that of a frame of average length after the picture before it.

    Args:
        picture (`av.VideoFrame`): The picture.
        earlier (`Sequence[int]`): Time stamps of the pictures before it, in ticks of the stream's time base.
        step (`Fraction`): Average length of a frame, in the same ticks.

    Returns:
        `int`: The time stamp, in ticks.
    """
    if picture.pts is not None:
        return picture.pts
    return earlier[-1] + round(step) if earlier else 0


def earliest_ticks(ticks: Sequence[int]) -> int:
    """
    Returns the earliest time stamp of a video, looking no further than pictures can be reordered.

    Args:
        ticks (`Sequence[int]`): Time stamps in output order, at least one.

    Returns:
        `int`: The earliest of the first `REORDER_PICTURES`.
    """
    return min(ticks[:REORDER_PICTURES])


def frame_times(ticks: Sequence[int], start: int, time_base: Fraction) -> np.ndarray:
    """
    Turns time stamps into ascending times from the start.

    Args:
        ticks (`Sequence[int]`): Time stamps in output order.
        start (`int`): The time stamp that becomes 0.
        time_base (`Fraction`): Length of a tick in seconds.

    Returns:
        `np.ndarray` of shape `(len(ticks),)`, `float64`: Seconds, sorted, at least 0. Read-only.
    """
    from_start = np.maximum(np.sort(np.asarray(ticks, dtype=np.int64)) - start, 0)
    seconds = from_start.astype(np.float64) * time_base.numerator / time_base.denominator
    seconds.setflags(write=False)  # it is shared by every user of the cached index
    return seconds


def display_matrix(picture: VideoFrame) -> tuple[int, int, int, int]:
    """
    Reads how a picture is to be turned or mirrored for display.

    Args:
        picture (`av.VideoFrame`): A decoded picture.

    Returns:
        `tuple[int, int, int, int]`: `a, b, c, d` of FFmpeg's display matrix: the pixel at `(x, y)`, `y` downwards, is
        shown at `(a * x + c * y, b * x + d * y)` up to scale and shift.
    """
    side_data = picture.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    assert isinstance(side_data, SideData)
    a, b, _, c, d, _, _, _, _ = np.frombuffer(bytes(side_data), dtype=np.int32).tolist()
    return a, b, c, d


def is_transposed(matrix: tuple[int, int, int, int]) -> bool:
    """
    Says whether a display matrix (nearest multiple of 90 degrees) swaps width and height.

    Args:
        matrix (`tuple[int, int, int, int]`): From `display_matrix`.

    Returns:
        `bool`: Whether it does.
    """
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def apply_display_matrix(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """
    Turns and mirrors a picture for display, by multiples of 90 degrees.

    Args:
        picture (`np.ndarray` of shape `(height, width, 3)`): The picture as coded.
        matrix (`tuple[int, int, int, int]`): From `display_matrix`.

    Returns:
        `np.ndarray`: A view of shape `(height, width, 3)`, or `(width, height, 3)` where the matrix transposes.
    """
    a, b, c, d = matrix
    if is_transposed(matrix):
        picture = picture.transpose(1, 0, 2)  # rows are now x, columns y
        x_sign, y_sign = c, b
    else:
        x_sign, y_sign = a, d
    if x_sign < 0:
        picture = picture[:, ::-1]
    if y_sign < 0:
        picture = picture[::-1]
    return picture


VIDEO_BACKENDS = ("pyav", "torchcodec", "decord")


def get_video_backend(name: str) -> VideoBackend:
    """
    Returns the video backend of a name.

    Args:
        name (`str`): `"pyav"` (always there), `"torchcodec"` or `"decord"` (extras).

    Returns:
        `VideoBackend`: The backend; it keeps no file open and can be pickled.

    Raises:
        ValueError: There is no backend of that name.
        ImportError: The backend's package is not installed, or does not load.
    """
    if name == "pyav":
        from simple_multimodal.media.pyav_backend import PyAVBackend

        return PyAVBackend()
    if name == "torchcodec":
        from simple_multimodal.media.torchcodec_backend import TorchCodecBackend

        return TorchCodecBackend()
    if name == "decord":
        from simple_multimodal.media.decord_backend import DecordBackend

        return DecordBackend()
    raise ValueError(f"there is no video backend {name!r}; allowed are {', '.join(VIDEO_BACKENDS)}")
