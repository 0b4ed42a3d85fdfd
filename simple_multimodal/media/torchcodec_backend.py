"""Video backend on torchcodec, which uses the system's FFmpeg libraries."""

import os
from collections.abc import Sequence

import numpy as np

from simple_multimodal.media.container import open_media
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.video import read_checked


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

    def frames(
        self,
        path: str | os.PathLike[str],
        positions: Sequence[int],
        index: FrameIndex,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """See [`VideoBackend.frames`]."""
        with open_media(path, probe="nothing"):  # refuses playlists, which torchcodec would follow
            pass
        return read_checked(
            # An absolute path is never taken for an address.
            lambda: _Reader(os.path.abspath(path), index.stream, index.start_seconds),
            positions,
            index,
            size,
            library="torchcodec",
            errors=(RuntimeError, ValueError, IndexError),
        )


class _Reader:
    """A video that torchcodec has open."""

    def __init__(self, path: str, stream: int, start_seconds: float):
        from torchcodec.decoders import VideoDecoder

        self.decoder = VideoDecoder(
            path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        self.start_seconds = start_seconds

    @property
    def num_frames(self) -> int:
        return self.decoder.metadata.num_frames

    def read(self, positions: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = self.decoder.get_frames_at(positions)
        return batch.pts_seconds.numpy() - self.start_seconds, batch.data.numpy()
