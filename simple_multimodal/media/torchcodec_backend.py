"""Video backend on torchcodec, which uses the system's FFmpeg libraries, or the decoder of an NVIDIA GPU."""

import contextlib
import importlib.metadata
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import torch

from simple_multimodal.errors import InputError, MissingPackageError
from simple_multimodal.media.backend import read_checked, to_planes
from simple_multimodal.media.container import open_media
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex

logger = logging.getLogger(__name__)

INSTEAD = "use decode_device='cpu' to decode on the CPU"
SPAWN = (
    "CUDA does not work in a forked process, and DataLoader workers are forked by default: spawn them "
    "(dataloader_multiprocessing_context='spawn'), or decode in the main process (dataloader_num_workers=0)"
)


class TorchCodecBackend:
    """
    Decodes with torchcodec, and refuses a file if torchcodec's frames would differ from those of a full decode.

    On a GPU the hardware decoder (NVDEC) is used, and frames are tensors that stay there. They are the same frames as
    on a CPU, but with slightly different pixels: the hardware rounds differently when it converts colours, and frames
    are scaled with torch's antialiased bilinear kernel instead of swscale's. A file that the hardware cannot decode is
    decoded on the CPU by torchcodec and copied to the GPU, with a warning.

    Args:
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"`, or `"cuda"` for the GPU of this process.

    Raises:
        ImportError: torchcodec is not installed, or finds no FFmpeg libraries.
        ValueError: There is no GPU, or torchcodec cannot decode on it; the message says why.
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            import torchcodec.decoders  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("The torchcodec backend needs its package: pip install torchcodec") from error
        except (OSError, RuntimeError) as error:
            raise MissingPackageError(
                "torchcodec is installed but does not load: install FFmpeg's shared libraries (for instance "
                "`apt-get install ffmpeg`) and the torchcodec release for your torch (pip install torchcodec)"
            ) from error
        self.device = device if device == "cpu" else _usable_gpu(device)
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:  # created again where it is unpickled, to check the GPU of that process
        return TorchCodecBackend, (self.device,)

    def frames(
        self,
        path: str | os.PathLike[str],
        positions: Sequence[int],
        index: FrameIndex,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray | torch.Tensor:
        """See [`VideoBackend.frames`]; on a GPU, return a `torch.ByteTensor` of the same shape there."""
        if self.device != "cpu" and os.getpid() != self._process:
            raise RuntimeError(f"decode_device={self.device!r}: {SPAWN}")
        with open_media(path, probe="nothing"):  # refuses playlists, which torchcodec would follow
            pass
        try:
            frames = read_checked(
                # An absolute path is never taken for a URL.
                lambda: _Reader(os.path.abspath(path), index.stream, index.start_seconds, self.device),
                positions,
                index,
                library="torchcodec",
                errors=(RuntimeError, ValueError, IndexError),
            )
        except MediaError as error:
            if isinstance(error.__cause__, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise error.__cause__ from None  # an error of the GPU, not of the file
            raise
        return to_planes(frames, size) if isinstance(frames, np.ndarray) else scaled_on_device(frames, size)


class _Reader:
    """A video that torchcodec has open."""

    def __init__(self, source: str | bytes, stream: int, start_seconds: float, device: str):
        from torchcodec.decoders import VideoDecoder, set_cuda_backend

        # On a GPU, NVDEC without FFmpeg in between: only this backend applies rotation (torchcodec #1235).
        with contextlib.nullcontext() if device == "cpu" else set_cuda_backend("beta"):
            self.decoder = VideoDecoder(
                source,
                stream_index=stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
                device=device,
            )
        self.source = source
        self.start_seconds = start_seconds
        self.device = device

    @property
    def num_frames(self) -> int:
        return self.decoder.metadata.num_frames

    def read(self, positions: list[int]) -> tuple[np.ndarray, np.ndarray | torch.Tensor]:
        batch = self.decoder.get_frames_at(positions)
        if self.device != "cpu" and self.decoder.cpu_fallback:
            logger.warning(f"{self.source!r}: decoded by torchcodec on the CPU ({self.decoder.cpu_fallback})")
        data = batch.data.numpy() if self.device == "cpu" else batch.data
        return batch.pts_seconds.cpu().numpy() - self.start_seconds, data


def scaled_on_device(frames: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """
    Convert and scale frames of a decoder on a device to the output of [`VideoBackend.frames`].

    Args:
        frames (`torch.ByteTensor` of shape `(num_frames, height, width, 3)`): RGB.
        size (`tuple[int, int]`, *optional*): Height and width to scale to, bilinear and antialiased.

    Returns:
        `torch.ByteTensor` of shape `(num_frames, 3, height, width)`, on the device of `frames`.
    """
    planes = frames.permute(0, 3, 1, 2)
    if size is None or planes.shape[2:] == size:
        return planes.contiguous()
    scaled = torch.nn.functional.interpolate(planes.float(), size, mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).byte()


def _usable_gpu(device: str) -> str:
    """Return the GPU of this process with its number, after checking that torchcodec can decode on it."""
    if not torch.cuda.is_available():
        raise InputError(f"decode_device={device!r}: torch finds no CUDA device on this machine; {INSTEAD}")
    number = torch.device(device).index
    device = f"cuda:{torch.cuda.current_device() if number is None else number}"
    try:
        reader = _Reader(_sample_video(), 0, 0.0, device)
        reader.read([0])
    except RuntimeError as error:
        raise InputError(f"decode_device={device!r}: {_why_not(error)}; {INSTEAD}") from error
    if reader.decoder.cpu_fallback:
        raise InputError(
            f"decode_device={device!r}: the driver offers no video decoder ({reader.decoder.cpu_fallback}); in a "
            f"container NVIDIA_DRIVER_CAPABILITIES must include `video`, and some GPUs have no NVDEC; {INSTEAD}"
        )
    return device


def _why_not(error: RuntimeError) -> str:
    """Return the reason why torchcodec cannot decode on a GPU, from the error that it raised."""
    if "Unsupported device" in str(error):
        return (
            f"this torchcodec ({importlib.metadata.version('torchcodec')}) was built without CUDA; install one that "
            "was (0.13 and newer from PyPI, on Linux)"
        )
    return f"torchcodec cannot decode on it ({' '.join(str(error).split())})"


def _sample_video() -> bytes:
    """Return a small H.264 file, which every NVDEC can decode."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((256, 256, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    return file.getvalue()
