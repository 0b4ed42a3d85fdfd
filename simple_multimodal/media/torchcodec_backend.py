"""Video backend on torchcodec, which uses the system's FFmpeg libraries."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.media.container import check_media_file
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.video import FrameIndex, check_positions, index_video

TOLERANCE_SECONDS = 1e-3  # time stamps are whole ticks; two frames are further apart than this


class TorchCodecBackend:
    """
    Decodes with torchcodec, and refuses a file of which torchcodec would return other frames than a full decode.

    Raises:
        ImportError: torchcodec is not installed, or finds no FFmpeg libraries.
    """

    def __init__(self) -> None:
        try:
            import torchcodec.decoders  # noqa: F401
        except ImportError as error:
            raise ImportError("the torchcodec video backend needs its package: pip install torchcodec") from error
        except (OSError, RuntimeError) as error:
            raise ImportError(
                "torchcodec is installed but does not load: install FFmpeg's shared libraries (for instance "
                "`apt-get install ffmpeg`) and the torchcodec release for your torch (pip install torchcodec)"
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
            MediaError: torchcodec fails, or counts, times or orders the frames otherwise than a full decode.
            ValueError: A position is outside the file.
        """
        from torchcodec.decoders import VideoDecoder

        check_positions(positions, index)
        check_media_file(path)
        name = os.fspath(path)
        if not index.is_in_presentation_order:
            raise MediaError(
                f"{name!r}: torchcodec orders frames by time stamp, which are out of order here; use the pyav backend"
            )
        try:
            decoder = VideoDecoder(name, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            num_frames = decoder.metadata.num_frames
            if num_frames != index.num_frames:
                raise MediaError(
                    f"{name!r}: torchcodec counts {num_frames} frames where a full decode puts out "
                    f"{index.num_frames}; use the pyav backend"
                )
            batch = decoder.get_frames_at([int(position) for position in positions])
        except MediaError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise MediaError(f"{name!r}: torchcodec cannot decode it: {error}") from error
        expected = index.start_seconds + index.seconds[list(positions)]
        if np.abs(batch.pts_seconds.numpy() - expected).max() > TOLERANCE_SECONDS:
            raise MediaError(f"{name!r}: torchcodec returned frames of other times than asked; use the pyav backend")
        frames = batch.data.numpy()  # (frames, height, width, 3)
        if frames.shape[1:] != (index.height, index.width, 3):
            raise MediaError(
                f"{name!r}: torchcodec returned frames of shape {frames.shape[1:]}, not "
                f"{(index.height, index.width, 3)}; use the pyav backend"
            )
        return frames
