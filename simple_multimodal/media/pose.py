"""Read and write pose files (`.pose`, versions 0.1 and 0.2): the points of people in each frame of a video."""

import functools
import logging
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.media.container import check_media_file
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.sampling import check_segment
from simple_multimodal.output_folder import write_atomically

logger = logging.getLogger(__name__)

NUM_DIMS = {"XYC": 2, "XYZC": 3}
"""Number of coordinates of a point by the format of its component; C is the confidence."""

# Limits on hostile input: more objects than these would take more memory than the file itself.
MAX_COMPONENTS = 64
MAX_POINTS = 4096
MIN_RATE, MAX_RATE = 0.1, 1000.0  # in frames per second

HEAD_BYTES = 2**16  # read at first; the header of MediaPipe Holistic has 15 KB
MILLISECONDS_RATIO = 500  # a segment this many times longer than its file was not meant in seconds

_VERSION_AND_SIZE = struct.Struct("<fHHHH")  # version; width, height, depth; number of components
_COUNTS = struct.Struct("<HHH")  # points, limbs, colours of a component
_LENGTH = struct.Struct("<H")  # of a string, in bytes
_BODY = {0.1: struct.Struct("<HHH"), 0.2: struct.Struct("<fIH")}  # rate, frames, people
_COLOUR = struct.pack("<HHH", 255, 255, 255)  # of all points; programs that draw a component need one


@dataclass(frozen=True)
class PoseComponent:
    """
    A part of a skeleton, such as a hand.

    Args:
        name (`str`): Its name, such as `"LEFT_HAND_LANDMARKS"`.
        format (`str`): Meaning of the numbers of a point: `"XYC"` or `"XYZC"`.
        points (`tuple[str, ...]`): Names of its points.
        limbs (`np.ndarray` of shape `(num_limbs, 2)`): Lines to draw, `uint16`: the points at both ends, counted
            within the component. Limbs with an end that does not exist are left out.
    """

    name: str
    format: str
    points: tuple[str, ...]
    limbs: np.ndarray = field(compare=False)


@dataclass(frozen=True)
class PoseHeader:
    """
    What a pose file says about its points.

    Args:
        path (`str`): The file.
        version (`float`): Version of the format: 0.1 or 0.2.
        width, height, depth (`int`): Size of the video in pixels; 0 if unknown.
        components (`tuple[PoseComponent, ...]`): The parts of the skeleton, in the order of their points.
        rate (`float`): Frames per second.
        num_frames (`int`): Number of frames, at least 1.
        num_people (`int`): Number of people in every frame, at least 1.
        data_offset (`int`): Where the points begin in the file, in bytes.
        num_trailing_bytes (`int`): Number of bytes after the points, which are not read.
    """

    path: str
    version: float
    width: int
    height: int
    depth: int
    components: tuple[PoseComponent, ...]
    rate: float
    num_frames: int
    num_people: int
    data_offset: int
    num_trailing_bytes: int

    @property
    def num_points(self) -> int:
        """Number of points of a person."""
        return sum(len(component.points) for component in self.components)

    @property
    def num_dims(self) -> int:
        """Number of coordinates of a point: 2 or 3."""
        return max(NUM_DIMS[component.format] for component in self.components)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the points: frames, people, points, coordinates."""
        return self.num_frames, self.num_people, self.num_points, self.num_dims

    @property
    def content(self) -> str:
        """Description of the points, such as `"pose 0.2, 576 points, 320x240"`."""
        people = f"{self.num_people} people with " if self.num_people > 1 else ""
        return f"pose {self.version}, {people}{self.num_points} points, {self.width}x{self.height}"

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last one, in seconds."""
        return self.num_frames / self.rate


class Pose(NamedTuple):
    """
    The frames of a segment of a pose file.

    Args:
        header (`PoseHeader`): Header of the file.
        data (`np.ndarray` of shape `(num_frames, num_people, num_points, num_dims)`): Coordinates, `float32`.
        confidence (`np.ndarray` of shape `(num_frames, num_people, num_points)`): Confidences, `float32`; 0 where a
            point is missing, whose coordinates have no meaning.
        offset_seconds (`float`): Time of the first frame from the start of the segment, in seconds; 0 or, since that
            frame may begin before the segment does, less.
    """

    header: PoseHeader
    data: np.ndarray
    confidence: np.ndarray
    offset_seconds: float


def read_pose_header(path: str | os.PathLike[str]) -> PoseHeader:
    """
    Read the header of a pose file, and compare the number of frames with the size of the file. No points are read.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `PoseHeader`: The header.

    Raises:
        MediaError: The file cannot be opened, is not a pose file of version 0.1 or 0.2, or is cut off; or it has no
            frames, no people, no points or no valid rate.
    """
    check_media_file(path)
    with open(path, "rb") as file:
        return _read_header(file, os.fspath(path))


def read_pose(
    path: str | os.PathLike[str], *, start_seconds: float | None = None, end_seconds: float | None = None
) -> Pose:
    """
    Read a segment of a pose file; only its bytes are read. Bytes after the points are ignored, with a warning.

    Args:
        path (`str` or `os.PathLike`): The file.
        start_seconds (`float`, *optional*): Start in seconds from the first frame; default 0.
        end_seconds (`float`, *optional*): End (exclusive) in seconds; default the end of the file. See
            [`segment_frames`].

    Returns:
        `Pose`: The frames of the segment.

    Raises:
        ValueError: The segment is not allowed.
        MediaError: The header is invalid, see [`read_pose_header`]; the segment starts after the end; or a point that
            is not missing, or a confidence, is infinite or not a number.
    """
    check_media_file(path)
    with open(path, "rb") as file:
        header = _read_header(file, os.fspath(path))
        first, stop = segment_frames(header.path, header.num_frames, header.rate, start_seconds, end_seconds)
        num_frames, num_people, num_points, num_dims = header.shape
        frame = num_people * num_points  # points
        offset = header.data_offset + 4 * frame * num_dims * first
        data = read_numbers(file, header.path, offset, (stop - first) * frame * num_dims)
        offset = header.data_offset + 4 * frame * (num_dims * num_frames + first)
        confidence = read_numbers(file, header.path, offset, (stop - first) * frame)
    data = data.reshape(-1, num_people, num_points, num_dims)
    confidence = confidence.reshape(-1, num_people, num_points)
    if not (are_finite(confidence) and (are_finite(data) or np.isfinite(data[confidence != 0]).all())):
        raise MediaError(f"{header.path!r}: has points that are infinite or not a number; estimate its poses again")
    if header.num_trailing_bytes:
        warn_of_trailing_bytes(header.path, header.num_trailing_bytes)
    return Pose(header, data, confidence, first / header.rate - (start_seconds or 0.0))


def write_pose(
    path: str | os.PathLike[str],
    data: np.ndarray,
    confidence: np.ndarray,
    *,
    components: Sequence[PoseComponent],
    rate: float,
    width: int,
    height: int,
    depth: int = 0,
) -> None:
    """
    Write a pose file of version 0.2; the same arguments give the same bytes.

    Args:
        path (`str` or `os.PathLike`): File to write, atomically.
        data (`np.ndarray` of shape `(num_frames, num_people, num_points, num_dims)`): Coordinates, x and y in pixels.
        confidence (`np.ndarray` of shape `(num_frames, num_people, num_points)`): Confidences; 0 for a missing point.
        components (`Sequence[PoseComponent]`): Parts of the skeleton, in the order of their points.
        rate (`float`): Frames per second.
        width, height, depth (`int`): Size of the video in pixels; 0 if unknown.

    Raises:
        ValueError: The shapes do not fit the components, or there are no frames, people or points, **or** the rate is
            out of range.
    """
    num_points = sum(len(component.points) for component in components)
    num_dims = max((NUM_DIMS[component.format] for component in components), default=0)
    expected = (*confidence.shape[:2], num_points, num_dims)
    if data.shape != expected or confidence.shape != expected[:3] or 0 in expected:
        raise InputError(
            "`data` and `confidence` must have the shapes (frames, people, points, dims) and (frames, people, "
            f"points), with {num_points} points and {num_dims} dims as in `components`, got {data.shape} and "
            f"{confidence.shape}."
        )
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"`rate` must be {MIN_RATE:g} to {MAX_RATE:g} frames per second, got {rate!r}.")
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        file.write(_VERSION_AND_SIZE.pack(0.2, width, height, depth, len(components)))
        for component in components:
            file.write(_text_bytes(component.name) + _text_bytes(component.format))
            file.write(_COUNTS.pack(len(component.points), len(component.limbs), 1))
            file.write(b"".join(map(_text_bytes, component.points)))
            file.write(component.limbs.astype("<u2").tobytes() + _COLOUR)
        file.write(_BODY[0.2].pack(rate, len(data), data.shape[1]))
        file.write(data.astype("<f4").tobytes() + confidence.astype("<f4").tobytes())


def _text_bytes(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def segment_frames(
    path: str, num_frames: int, rate: float, start_seconds: float | None, end_seconds: float | None
) -> tuple[int, int]:
    """
    Find the frames that are on screen in a half-open segment `[start_seconds, end_seconds)`: from `floor(start_seconds
    * rate)` to `ceil(end_seconds * rate)`, or to the last one. A pose-format reader chooses the same frames.

    Args:
        path (`str`): The file, for messages.
        num_frames (`int`): Number of its frames.
        rate (`float`): Frames per second.
        start_seconds (`float`, *optional*): Start in seconds from the first frame; default 0.
        end_seconds (`float`, *optional*): End (exclusive) in seconds; default the end of the file.

    Returns:
        `tuple[int, int]`: Number of the first frame, and the number after the last; at least one frame.

    Raises:
        ValueError: The segment is not allowed.
        MediaError: The segment starts after the end of the file, or is so much longer that it is in milliseconds.
    """
    check_segment(start_seconds, end_seconds)
    start = 0.0 if start_seconds is None else start_seconds
    duration = num_frames / rate
    if start * rate >= num_frames:
        hint = "; give seconds instead of milliseconds" if start < 1000 * duration else ""
        raise MediaError(f"{path!r}: the segment starts at {start} s, after the end at {duration:.3f} s{hint}")
    first = math.floor(start * rate)
    if end_seconds is None or math.isinf(end_seconds):
        return first, num_frames
    if end_seconds > MILLISECONDS_RATIO * duration:
        raise MediaError(
            f"{path!r}: the segment ends at {end_seconds} s, but the file at {duration:.3f} s; "
            "give seconds instead of milliseconds, or no end"
        )
    return first, max(min(math.ceil(end_seconds * rate), num_frames), first + 1)


def read_numbers(file: BinaryIO, path: str, offset: int, count: int, dtype: np.dtype | str = "<f4") -> np.ndarray:
    """
    Read numbers from a place in an open file, whose size has been checked.

    Args:
        file (`BinaryIO`): The file.
        path (`str`): Its path, for messages.
        offset (`int`): Where they begin, in bytes.
        count (`int`): How many to read.
        dtype (`np.dtype` or `str`, *optional*, defaults to `"<f4"`): Their type in the file.

    Returns:
        `np.ndarray` of shape `(count,)`: The numbers.

    Raises:
        MediaError: The file has become shorter.
    """
    file.seek(offset)
    numbers = np.fromfile(file, dtype, count)
    if len(numbers) < count:
        raise MediaError(f"{path!r}: was cut off while it was read")
    return numbers


def are_finite(numbers: np.ndarray) -> bool:
    """Return whether all numbers are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = numbers.sum()  # takes a third of the time, and is finite only if they are
    return bool(np.isfinite(total) or np.isfinite(numbers).all())


@functools.lru_cache(maxsize=4096)
def warn_of_trailing_bytes(path: str, num_bytes: int) -> None:
    """Log, once per file, that the bytes at its end are ignored."""
    logger.warning("%r: the %d bytes at its end, which its header does not mention, are ignored", path, num_bytes)


class _TooShortError(Exception):
    """A header continues after the bytes that were read."""


class _Cursor:
    """A place in the bytes of a header."""

    def __init__(self, head: bytes):
        self.head = head
        self.place = 0

    def skip(self, length: int) -> int:
        """Advance, and return the place before."""
        before = self.place
        self.place += length
        if self.place > len(self.head):
            raise _TooShortError
        return before

    def unpack(self, fields: struct.Struct) -> tuple:
        return fields.unpack_from(self.head, self.skip(fields.size))

    def text(self) -> str:
        (length,) = self.unpack(_LENGTH)
        return self.head[self.skip(length) : self.place].decode()


def _read_header(file: BinaryIO, path: str) -> PoseHeader:
    """Read as much of an open file as its header needs."""
    size = os.fstat(file.fileno()).st_size
    length = HEAD_BYTES
    while True:
        file.seek(0)
        cursor = _Cursor(file.read(min(length, size)))
        try:
            return _parse_header(cursor, path, size)
        except _TooShortError:
            if length >= size:
                raise MediaError(f"{path!r}: the pose file ends within its header; copy it again") from None
        except UnicodeDecodeError:
            raise MediaError(f"{path!r}: is not a pose file: a name in its header is not UTF-8") from None
        length *= 4


def _parse_header(cursor: _Cursor, path: str, size: int) -> PoseHeader:
    number, width, height, depth, num_components = cursor.unpack(_VERSION_AND_SIZE)
    version = next((known for known in _BODY if abs(number - known) < 5e-4), None)
    if version is None:
        raise MediaError(
            f"{path!r}: is not a pose file of version 0.1 or 0.2: its version would be {number:.6g}; videos belong in "
            "the column `video`, and the names of files of features end in .npy"
        )
    components = _parse_components(cursor, num_components, path)
    num_points = sum(len(component.points) for component in components)
    if num_points == 0:
        raise MediaError(f"{path!r}: its header names no points")
    rate, num_frames, num_people = cursor.unpack(_BODY[version])
    if not MIN_RATE <= rate <= MAX_RATE:  # false for NaN as well
        raise MediaError(
            f"{path!r}: has {rate:g} frames per second; {MIN_RATE:g} to {MAX_RATE:g} are allowed; "
            "write it again with the rate of its video"
        )
    if num_people == 0:
        raise MediaError(f"{path!r}: has no people; write one person with confidence 0 where nobody was found")
    num_dims = max(NUM_DIMS[component.format] for component in components)
    frame_bytes = 4 * num_people * num_points * (num_dims + 1)
    room, remainder = divmod(size - cursor.place, frame_bytes)
    # Version 0.1 counts in 16 bits, with 0 for more; then the size of the file is the count.
    if version == 0.1 and remainder == 0 and room > num_frames:
        num_frames = room
    if num_frames == 0:
        raise MediaError(f"{path!r}: has no frames")
    if num_frames > room:
        raise MediaError(
            f"{path!r}: promises {num_frames} frames, but has the bytes of {room}; copy it again, or estimate its "
            "poses again"
        )
    trailing = size - cursor.place - num_frames * frame_bytes
    return PoseHeader(
        path, version, width, height, depth, components, float(rate), num_frames, num_people, cursor.place, trailing
    )


_recent: tuple[tuple[bytes, tuple[PoseComponent, ...]], ...] = ()
"""Bytes and content of the latest headers: the files of a data set have the same one, and it takes longer to parse
than the points take to read. A header is reused only for equal bytes, so threads cannot exchange theirs; the tuple is
replaced as a whole.
"""


def _parse_components(cursor: _Cursor, num_components: int, path: str) -> tuple[PoseComponent, ...]:
    global _recent
    begin = cursor.place
    for known, components in _recent:
        if len(components) == num_components and cursor.head.startswith(known, begin):
            cursor.skip(len(known))
            return components
    if num_components > MAX_COMPONENTS:
        raise MediaError(f"{path!r}: its header has {num_components} components; at most {MAX_COMPONENTS} are allowed")
    parsed = []
    num_points = 0
    for _ in range(num_components):
        component = _parse_component(cursor, MAX_POINTS - num_points, path)
        num_points += len(component.points)
        parsed.append(component)
    components = tuple(parsed)
    if cursor.place - begin <= HEAD_BYTES:
        _recent = ((cursor.head[begin : cursor.place], components), *_recent[:7])
    return components


def _parse_component(cursor: _Cursor, max_points: int, path: str) -> PoseComponent:
    name, point_format = cursor.text(), cursor.text()
    if point_format not in NUM_DIMS:
        raise MediaError(
            f"{path!r}: its component {name[:50]!r} has points of the format {point_format[:20]!r}; "
            f"{' and '.join(NUM_DIMS)} can be read"
        )
    num_points, num_limbs, num_colours = cursor.unpack(_COUNTS)
    if num_points > max_points:
        raise MediaError(f"{path!r}: its header has more than {MAX_POINTS} points")
    points = tuple([cursor.text() for _ in range(num_points)])
    limbs = np.frombuffer(cursor.head, "<u2", 2 * num_limbs, cursor.skip(4 * num_limbs)).reshape(-1, 2)
    cursor.skip(6 * num_colours)
    limbs = limbs[(limbs < num_points).all(axis=1)].astype(np.uint16)
    limbs.setflags(write=False)
    return PoseComponent(name, point_format, points, limbs)
