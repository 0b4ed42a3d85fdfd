"""The video backends by name, and a class to look at a single file."""

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
    """Return the name of the decoder, such as `"pyav"` or `"torchcodec on cuda"`; pixels differ between decoders."""
    return video_backend if decode_device == "cpu" else f"{video_backend} on {decode_device}"


def get_video_backend(name: str, *, is_like_decord: bool = False, decode_device: str = "cpu") -> VideoBackend:
    """
    Return a video backend by name.

    Args:
        name (`str`): `"pyav"` (always available), `"torchcodec"` or `"decord"` (extras).
        is_like_decord (`bool`, *optional*, defaults to `False`): Whether scaled frames get the same pixels as with
            decord's `VideoReader(path, width=..., height=...)`; only for `"pyav"`.
        decode_device (`str`, *optional*, defaults to `"cpu"`): `"cpu"`, or `"cuda"`, which needs `"torchcodec"`.

    Returns:
        `VideoBackend`: The backend; it keeps no file open and can be pickled.

    Raises:
        ValueError: There is no backend of that name, it cannot scale like decord, or it cannot decode on the device;
            the message says why.
        ImportError: The backend's package is not installed, or does not load.
    """
    if decode_device not in DECODE_DEVICES:
        raise InputError(f"decode_device={decode_device!r} is not allowed; use one of {', '.join(DECODE_DEVICES)}")
    if decode_device != "cpu" and name != "torchcodec" and name in VIDEO_BACKENDS:
        raise InputError(
            f"decode_device={decode_device!r} needs video_backend='torchcodec'; {name} only decodes on the CPU"
        )
    if name == "pyav":
        return PyAVBackend(is_like_decord=is_like_decord)
    if is_like_decord and name in VIDEO_BACKENDS:
        raise InputError(f"the {name} backend cannot scale frames like decord; {REMEDY}")
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
        video_backend (`str`, *optional*, defaults to `"pyav"`): The backend that decodes it, see
            [`get_video_backend`].
        index_dir (`str`, *optional*): Folder of stored frame indices; by default one in the user's cache folder.

    Attributes:
        index ([`FrameIndex`]): The frame index: `num_frames`, `seconds` of each frame, `height` and `width` in pixels.

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
        """Return frames by number, starting at 0: `uint8` RGB of shape `(num_positions, 3, height, width)`."""
        frames = with_index(
            self.path, lambda index: self._backend.frames(self.path, positions, index), index_dir=self.index_dir
        )
        return np.asarray(frames)


def open_video(path: str | os.PathLike[str], **settings) -> Video:
    """Open a video file; the arguments are those of [`Video`]."""
    return Video(path, **settings)
