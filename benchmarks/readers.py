"""The readers that are compared, ours and others, each with its fastest settings."""

import cv2
import decord
import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from simple_multimodal.media import get_video_backend, index_video
from simple_multimodal.media.frame_index import build_index
from simple_multimodal.media.index_cache import with_index

cv2.setNumThreads(1)
SIZE = (224, 224)
backend = get_video_backend("pyav")


def ours(path: str, positions: list[int]) -> np.ndarray:
    """Read with our reader and a warm index."""
    return with_index(path, lambda index: backend.frames(path, positions, index, SIZE))


def ours_without_index(path: str, positions: list[int]) -> np.ndarray:
    """Read with our reader, after indexing the file."""
    return backend.frames(path, positions, build_index(path), SIZE)


def reference(path: str, positions: list[int]) -> np.ndarray:
    """Read full frames of a full decode, resized by torchvision's antialiased bilinear kernel."""
    frames = with_index(path, lambda index: backend.frames(path, positions, index))
    return tvF.resize(torch.from_numpy(frames), list(SIZE), antialias=True).numpy()


def torchcodec(path: str, positions: list[int], *, seek_mode: str, resizes_inside: bool) -> np.ndarray:
    """Read with torchcodec in one thread."""
    transforms = [Resize(SIZE)] if resizes_inside else None
    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=transforms)
    frames = decoder.get_frames_at(positions).data
    return (frames if resizes_inside else tvF.resize(frames, list(SIZE), antialias=True)).numpy()


def decord_reader(path: str, positions: list[int]) -> np.ndarray:
    """Read with decord in one thread, which scales while it decodes."""
    reader = decord.VideoReader(path, ctx=decord.cpu(0), height=SIZE[0], width=SIZE[1], num_threads=1)
    return reader.get_batch(positions).asnumpy().transpose(0, 3, 1, 2)


def opencv(path: str, positions: list[int], *, interpolation: int) -> np.ndarray:
    """Read with OpenCV in one thread, grabbing all frames and retrieving the wanted ones."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted, frames = set(positions), {}
    for number in range(positions[-1] + 1):
        if not capture.grab():
            break
        if number in wanted:
            _, frame = capture.retrieve()
            resized = cv2.resize(frame, SIZE[::-1], interpolation=interpolation)
            frames[number] = cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)
    return np.stack([frames[position] for position in positions]).transpose(0, 3, 1, 2)


def pyav(path: str, positions: list[int]) -> np.ndarray:
    """Read with PyAV from the start, converting only the wanted frames."""
    import av

    wanted, frames = set(positions), {}
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = frame.to_ndarray(width=SIZE[1], height=SIZE[0], format="rgb24")
            if number == positions[-1]:
                break
    return np.stack([frames[position] for position in positions]).transpose(0, 3, 1, 2)


READERS = {
    "ours": ours,
    "ours, no index": ours_without_index,
    "torchcodec exact": lambda p, n: torchcodec(p, n, seek_mode="exact", resizes_inside=True),
    "torchcodec approximate": lambda p, n: torchcodec(p, n, seek_mode="approximate", resizes_inside=True),
    "torchcodec + torchvision": lambda p, n: torchcodec(p, n, seek_mode="approximate", resizes_inside=False),
    "decord": decord_reader,
    "opencv area": lambda p, n: opencv(p, n, interpolation=cv2.INTER_AREA),
    "opencv linear": lambda p, n: opencv(p, n, interpolation=cv2.INTER_LINEAR),
    "pyav": pyav,
}


def num_frames(path: str) -> int:
    """Return the number of frames of a full decode."""
    return index_video(path).num_frames
