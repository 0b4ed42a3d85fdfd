"""Read features of frames (`.npy`): numbers that another program computed for each frame of a video."""

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from simple_multimodal.media.container import check_media_file
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.pose import (
    HEAD_BYTES,
    PoseHeader,
    are_finite,
    read_numbers,
    read_pose_header,
    segment_frames,
    warn_of_trailing_bytes,
)


@dataclass(frozen=True)
class FeatureHeader:
    """
    What a file of features says about them.

    Args:
        path (`str`): The file.
        num_frames (`int`): Number of frames, at least 1.
        size (`int`): Number of features of a frame, at least 1.
        rate (`float`): Frames per second, which the file does not contain.
        dtype (`np.dtype`): Type of the numbers in the file.
        is_by_frame (`bool`): Whether the features of a frame are next to each other in the file.
        data_offset (`int`): Where the features begin in the file, in bytes.
        num_trailing_bytes (`int`): Number of bytes after the features, which are not read.
    """

    path: str
    num_frames: int
    size: int
    rate: float
    dtype: np.dtype
    is_by_frame: bool
    data_offset: int
    num_trailing_bytes: int

    @property
    def content(self) -> str:
        """Description of the features, such as `"npy, 1024 float32 per frame"`."""
        return f"npy, {self.size} {self.dtype.name} per frame"

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last one, in seconds."""
        return self.num_frames / self.rate


class FrameFeatures(NamedTuple):
    """
    The frames of a segment of a file of features.

    Args:
        header (`FeatureHeader`): Header of the file.
        values (`np.ndarray` of shape `(num_frames, size)`): Features, `float32`.
        offset_seconds (`float`): Time of the first frame from the start of the segment, in seconds; at most 0.
    """

    header: FeatureHeader
    values: np.ndarray
    offset_seconds: float


def is_feature_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is read as features, by its name; otherwise it is a pose file."""
    return os.fspath(path).lower().endswith(".npy")


def read_feature_header(path: str | os.PathLike[str], rate: float) -> FeatureHeader:
    """
    Read the header of a `.npy` file with features, and compare the number of frames with the size of the file.

    Args:
        path (`str` or `os.PathLike`): The file.
        rate (`float`): Its number of frames per second.

    Returns:
        `FeatureHeader`: The header.

    Raises:
        MediaError: The file cannot be opened, is not a `.npy` file, is cut off, or does not hold floating-point
            numbers of shape `(frames, size)`.
    """
    check_media_file(path)
    with open(path, "rb") as file:
        return _read_header(file, os.fspath(path), rate)


def read_header(path: str | os.PathLike[str], rate: float) -> PoseHeader | FeatureHeader:
    """
    Read the header of a pose file, or of features, whichever the file's name says; no points are read.

    Args:
        path (`str` or `os.PathLike`): The file.
        rate (`float`): Number of frames per second of features.

    Raises:
        MediaError: See [`read_pose_header`] and [`read_feature_header`].
    """
    return read_feature_header(path, rate) if is_feature_file(path) else read_pose_header(path)


def read_frame_features(
    path: str | os.PathLike[str],
    rate: float,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> FrameFeatures:
    """
    Read a segment of a `.npy` file with features. Only its bytes are read, unless the file is in Fortran's order.
    Pickled objects are never loaded.

    Args:
        path (`str` or `os.PathLike`): The file.
        rate (`float`): Its number of frames per second.
        start_seconds (`float`, *optional*): Start in seconds from the first frame; default 0.
        end_seconds (`float`, *optional*): End (exclusive) in seconds; default the end of the file. See
            [`segment_frames`].

    Returns:
        `FrameFeatures`: The frames of the segment.

    Raises:
        ValueError: The segment is not allowed.
        MediaError: The header is invalid, see [`read_feature_header`]; the segment starts after the end; or a feature
            is infinite or not a number, as `float32`.
    """
    check_media_file(path)
    with open(path, "rb") as file:
        header = _read_header(file, os.fspath(path), rate)
        first, stop = segment_frames(header.path, header.num_frames, rate, start_seconds, end_seconds)
        if header.is_by_frame:
            offset = header.data_offset + first * header.size * header.dtype.itemsize
            numbers = read_numbers(file, header.path, offset, (stop - first) * header.size, header.dtype)
            values = numbers.reshape(-1, header.size)
        else:
            count = header.num_frames * header.size
            numbers = read_numbers(file, header.path, header.data_offset, count, header.dtype)
            values = numbers.reshape(header.size, header.num_frames).T[first:stop]
    with np.errstate(over="ignore"):  # found below
        values = np.ascontiguousarray(values, dtype=np.float32)
    if not are_finite(values):
        raise MediaError(f"{header.path!r}: has features that are infinite or not a number; compute them again")
    if header.num_trailing_bytes:
        warn_of_trailing_bytes(header.path, header.num_trailing_bytes)
    return FrameFeatures(header, values, first / rate - (start_seconds or 0.0))


def _read_header(file: BinaryIO, path: str, rate: float) -> FeatureHeader:
    size = os.fstat(file.fileno()).st_size
    head = io.BytesIO(file.read(min(HEAD_BYTES, size)))  # where a promise of many bytes allocates none
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(head)
    except Exception as error:  # numpy evaluates the header as a literal of Python, which fails in many ways
        reason = " ".join(str(error).split())[:100]
        raise MediaError(f"{path!r}: is not a .npy file that can be read: {reason}") from error
    if dtype.hasobject:
        raise MediaError(
            f"{path!r}: holds Python objects, which are never loaded; save its features with np.save(path, "
            "np.asarray(features, dtype=np.float32))"
        )
    if dtype.kind != "f" or len(shape) != 2 or min(shape) < 1:
        raise MediaError(
            f"{path!r}: holds {dtype} of shape {shape}; features are floating-point numbers of shape (frames, size), "
            "at least one of each"
        )
    trailing = size - head.tell() - shape[0] * shape[1] * dtype.itemsize
    if trailing < 0:
        raise MediaError(f"{path!r}: ends {-trailing} bytes before the end of its features; copy it again")
    return FeatureHeader(path, *shape, rate, dtype, not is_fortran, head.tell(), trailing)
