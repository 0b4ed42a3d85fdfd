"""Video backend on decord, for pipelines that rely on it."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.media.container import open_media
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.video import FrameIndex, check_positions, index_video

UNSEEKABLE_FORMATS = ("mpeg", "mpegts")  # decord 0.6 silently starts these at a later key frame
TOLERANCE_SECONDS = 1e-3  # time stamps are whole ticks; two frames are further apart than this


class DecordBackend:
    """
    Decodes with decord, and refuses a file of which decord would return other frames than a full decode.

    Raises:
        ImportError: decord is not installed, or does not load.
    """

    def __init__(self) -> None:
        try:
            import decord  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                "the decord video backend needs its package: pip install decord (x86-64 Linux and Windows only)"
            ) from error

    def index(self, path: str | os.PathLike[str]) -> FrameIndex:
        """
        Indexes the frames of a video file.

        Args:
            path (`str` or `os.PathLike`): The file.

        Returns:
            `FrameIndex`: Number, times and size of its frames, as PyAV decodes them.

        Raises:
            MediaError: The file cannot be read, or holds no frame.
        """
        return index_video(path)

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
            MediaError: decord fails, or counts, times or orders the frames otherwise than a full decode.
            ValueError: A position is outside the file.
        """
        import decord

        check_positions(positions, index)
        name = os.fspath(path)
        with open_media(path) as container:
            container_format = container.format.name
        if container_format in UNSEEKABLE_FORMATS:
            raise MediaError(f"{name!r}: decord mistakes the frames of {container_format} files; use the pyav backend")
        if not index.is_in_presentation_order:
            raise MediaError(
                f"{name!r}: decord orders frames by time stamp, which are out of order here; use the pyav backend"
            )
        try:
            reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1)
            num_frames = len(reader)
            if num_frames != index.num_frames:  # decord would hang or repeat a frame at the end
                raise MediaError(
                    f"{name!r}: decord counts {num_frames} frames where a full decode puts out {index.num_frames}; "
                    "use the pyav backend"
                )
            seconds = reader.get_frame_timestamp([int(position) for position in positions])[:, 0]
            if not np.allclose(seconds, index.seconds[list(positions)], rtol=1e-6, atol=TOLERANCE_SECONDS):
                raise MediaError(
                    f"{name!r}: decord times the frames otherwise than a full decode; use the pyav backend"
                )
            frames = reader.get_batch([int(position) for position in positions]).asnumpy()
        except MediaError:
            raise
        except (decord.DECORDError, RuntimeError, ValueError, IndexError) as error:
            raise MediaError(f"{name!r}: decord cannot decode it: {error}") from error
        if frames.shape[1:] != (index.height, index.width, 3):
            raise MediaError(
                f"{name!r}: decord returned frames of shape {frames.shape[1:]}, not "
                f"{(index.height, index.width, 3)}; use the pyav backend"
            )
        return frames
