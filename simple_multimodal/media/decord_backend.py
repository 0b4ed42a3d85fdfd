"""Video backend on decord, for pipelines that rely on it."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.errors import MissingPackageError
from simple_multimodal.media.backend import REMEDY, read_checked, to_planes
from simple_multimodal.media.container import open_media
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex

UNSEEKABLE_FORMATS = ("mpeg", "mpegts")  # decord 0.6 silently starts these at a later key frame


class DecordBackend:
    """
    Decodes with decord, and refuses a file if decord's frames would differ from those of a full decode.

    Raises:
        ImportError: decord is not installed, or does not load.
    """

    device = "cpu"

    def __init__(self) -> None:
        try:
            import decord  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingPackageError(
                "the decord video backend needs its package: pip install decord (x86-64 Linux and Windows only)"
            ) from error

    def frames(
        self,
        path: str | os.PathLike[str],
        positions: Sequence[int],
        index: FrameIndex,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """See [`VideoBackend.frames`]."""
        import decord

        with open_media(path) as container:
            if container.format.name in UNSEEKABLE_FORMATS:
                raise MediaError(
                    f"{index.path!r}: decord returns the wrong frames of {container.format.name} files; {REMEDY}"
                )
        frames = read_checked(
            lambda: _Reader(os.path.abspath(path)),  # an absolute path is never taken for a URL
            positions,
            index,
            library="decord",
            errors=(decord.DECORDError, RuntimeError, ValueError, IndexError),
        )
        return to_planes(np.asarray(frames), size)


class _Reader:
    """A video that decord has open."""

    def __init__(self, path: str):
        import decord

        self.reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)

    @property
    def num_frames(self) -> int:
        return len(self.reader)

    def read(self, positions: list[int]) -> tuple[np.ndarray, np.ndarray]:
        seconds = self.reader.get_frame_timestamp(positions)[:, 0]
        return seconds, self.reader.get_batch(positions).asnumpy()
