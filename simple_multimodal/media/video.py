"""The video backends by name, and single files to look at."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.media.backend import REMEDY, VideoBackend
from simple_multimodal.media.decord_backend import DecordBackend
from simple_multimodal.media.index_cache import index_video, with_index
from simple_multimodal.media.pyav_backend import PyAVBackend

VIDEO_BACKENDS = ("pyav", "torchcodec", "decord")
DECODE_DEVICES = ("cpu", "cuda")


def decoder_name(video_backend: str, decode_device: str) -> str:
    """Return what decodes frames, such as `"pyav"` or `"torchcodec on cuda"`; the pixels of others differ."""
    return video_backend if decode_device == "cpu" else f"{video_backend} on {decode_device}"


def get_video_backend(name: str, *, is_like_decord: bool = False, decode_device: str = "cpu") -> VideoBackend:
    """
    Return the video backend of a name.

    Args:
        name (`str`): `"pyav"` (always there), `"torchcodec"` or `"decord"` (extras).
        is_like_decord (`bool`, *optional*, defaults to `False`): Whether frames have the pixels that decord's
            `VideoReader(path, width=..., height=...)` scales to, which `"pyav"` alone can give.
        decode_device (`str`, *optional*, defaults to `"cpu"`): `"cpu"`, or `"cuda"`, with `"torchcodec"` alone.

    Returns:
        `VideoBackend`: The backend; it keeps no file open and can be pickled.

    Raises:
        ValueError: There is no backend of that name, it cannot scale like decord, or it cannot decode on the device;
            the message says why.
        ImportError: The backend's package is not installed, or does not load.
    """
    if decode_device not in DECODE_DEVICES:
        raise InputError(f"--decode_device is {decode_device!r}; allowed are {', '.join(DECODE_DEVICES)}")
    if decode_device != "cpu" and name != "torchcodec" and name in VIDEO_BACKENDS:
        raise InputError(
            f"--decode_device {decode_device} needs --video_backend torchcodec; {name} decodes on the CPU alone"
        )
    if name == "pyav":
        return PyAVBackend(is_like_decord=is_like_decord)
    if is_like_decord and name in VIDEO_BACKENDS:
        raise InputError(f"the {name} backend does not give the pixels that decord scales to; {REMEDY}, which does")
    if name == "torchcodec":
        from simple_multimodal.media.torchcodec_backend import TorchCodecBackend  # it imports torch

        return TorchCodecBackend(decode_device)
    if name == "decord":
        return DecordBackend()
    raise InputError(f"there is no video backend {name!r}; allowed are {', '.join(VIDEO_BACKENDS)}")


class Video:
    """
    A video file whose frames are read exactly, by their numbers.

    Args:
        path (`str` or `os.PathLike`): The file.
        video_backend (`str`, *optional*, defaults to `"pyav"`): What decodes it, see [`get_video_backend`].
        index_dir (`str`, *optional*): Folder of stored frame indices; by default one in the user's cache folder.

    Attributes:
        index ([`FrameIndex`]): Its frames: `num_frames`, `seconds` of each, `height` and `width` in pixels.

    Raises:
        MediaError: The file cannot be read.

    Example:

    ```python
    >>> video = open_video("clip.mp4")
    >>> video.frames([0, 24, 48]).shape
    (3, 3, 360, 640)
    ```
    """

    def __init__(
        self, path: str | os.PathLike[str], *, video_backend: str = "pyav", index_dir: str | None = None
    ) -> None:
        self.path, self.index_dir = os.fspath(path), index_dir
        self.index = index_video(self.path, index_dir=index_dir)
        self._backend = get_video_backend(video_backend)

    def __len__(self) -> int:
        return self.index.num_frames

    def frames(self, positions: Sequence[int]) -> np.ndarray:
        """Return frames by their numbers from 0, `uint8` of shape `(num_positions, 3, height, width)`, RGB."""
        frames = with_index(
            self.path, lambda index: self._backend.frames(self.path, positions, index), index_dir=self.index_dir
        )
        return np.asarray(frames)


def open_video(path: str | os.PathLike[str], **settings) -> Video:
    """Open a video file; arguments are those of [`Video`]."""
    return Video(path, **settings)
