"""Tests of decoding on a GPU, mostly on a machine without one: error messages, and the device of the frames."""

import os
import pickle

import numpy as np
import pytest
import torch

from simple_multimodal.data.batch_reader import BatchReader, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.media import MediaError, get_video_backend, index_video
from simple_multimodal.media.video import decoder_name
from simple_multimodal.processing import MultimodalProcessor, VideoClipProcessor
from simple_multimodal.training.arguments import MultimodalTrainingArguments, load_on_gpu
from tests.media.media_files import write_media

try:
    from simple_multimodal.media import torchcodec_backend

    get_video_backend("torchcodec")
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

POSITIONS = [0, 3, 7]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(write_media(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=10))


@pytest.fixture
def gpu(monkeypatch):
    """Make torchcodec decode on the CPU when a GPU is requested, to test everything but the hardware."""
    from torchcodec.decoders import VideoDecoder, set_cuda_backend

    asked = []

    def decoder(source, **settings):
        asked.append(settings["device"])
        with set_cuda_backend("ffmpeg"):  # unlike the requested backend, it accepts a CPU
            return VideoDecoder(source, **{**settings, "device": "cpu"})

    monkeypatch.setattr("torchcodec.decoders.VideoDecoder", decoder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return asked


def test_the_error_names_a_missing_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="decode_device='cuda': torch finds no CUDA device on this machine; use"):
        get_video_backend("torchcodec", decode_device="cuda")


def test_the_error_names_a_torchcodec_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    try:
        get_video_backend("torchcodec", decode_device="cuda")
    except ValueError as error:
        message = str(error)
    assert "was built without CUDA" in message or "cannot decode on it" in message  # depends on the installed wheel
    assert "use decode_device='cpu'" in message and "\n" not in message
    assert "built without CUDA" in torchcodec_backend._why_not(
        RuntimeError("Unsupported device: cuda (variant: beta)")
    )


def test_the_error_names_a_driver_without_a_decoder(gpu, monkeypatch):
    reader = torchcodec_backend._Reader

    class FallingBack(reader):
        def __init__(self, *args):
            super().__init__(*args)
            self.decoder.cpu_fallback.status_known = self.decoder.cpu_fallback._is_fallback = True

    monkeypatch.setattr(torchcodec_backend, "_Reader", FallingBack)
    with pytest.raises(ValueError, match="the driver offers no video decoder .* NVIDIA_DRIVER_CAPABILITIES"):
        get_video_backend("torchcodec", decode_device="cuda")


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_other_backends_only_decode_on_the_cpu(name):
    with pytest.raises(ValueError, match=f"='cuda' needs video_backend='torchcodec'; {name} only decodes on the CPU"):
        get_video_backend(name, decode_device="cuda")
    with pytest.raises(ValueError, match="decode_device='tpu' is not allowed; use one of cpu, cuda"):
        get_video_backend("torchcodec", decode_device="tpu")


def test_frames_are_tensors_on_the_gpu_of_this_process(gpu, clip):
    backend = get_video_backend("torchcodec", decode_device="cuda")
    index = index_video(clip)
    frames = backend.frames(clip, POSITIONS, index)
    assert set(gpu) == {"cuda:1"} and isinstance(frames, torch.Tensor)
    np.testing.assert_array_equal(frames.numpy(), get_video_backend("torchcodec").frames(clip, POSITIONS, index))
    size = index.height // 2, index.width // 2
    scaled = backend.frames(clip, POSITIONS, index, size)
    assert scaled.dtype == torch.uint8 and scaled.shape == (3, 3, *size)
    on_cpu = get_video_backend("torchcodec").frames(clip, POSITIONS, index, size)
    assert np.abs(scaled.numpy().astype(int) - on_cpu).mean() < 2  # a different kernel


def test_a_gpu_error_is_not_blamed_on_the_file(gpu, clip, monkeypatch):
    backend = get_video_backend("torchcodec", decode_device="cuda")

    def read(self, positions):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torchcodec_backend._Reader, "read", read)
    with pytest.raises(torch.OutOfMemoryError):
        backend.frames(clip, POSITIONS, index_video(clip))
    monkeypatch.setattr(torchcodec_backend._Reader, "read", lambda self, positions: int("x"))
    with pytest.raises(MediaError, match="torchcodec cannot decode it"):
        backend.frames(clip, POSITIONS, index_video(clip))


def test_a_forked_process_raises_an_error_of_one_line(gpu, clip):
    backend = get_video_backend("torchcodec", decode_device="cuda")
    index = index_video(clip)
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        try:
            backend.frames(clip, POSITIONS, index)
        except RuntimeError as error:
            os.write(write_end, str(error).encode())
        os._exit(0)
    os.wait()
    message = os.read(read_end, 1000).decode()
    assert message.startswith("decode_device='cuda:1': CUDA does not work in a forked process")
    assert "dataloader_multiprocessing_context='spawn'" in message and "\n" not in message
    # A process that unpickles the backend, such as a spawned worker, uses its own GPU.
    gpu.clear()
    assert isinstance(pickle.loads(pickle.dumps(backend)).frames(clip, POSITIONS, index), torch.Tensor)
    assert gpu == ["cuda:1", "cuda:1"]


def test_pixels_of_a_batch_stay_on_the_device_that_decoded_them(gpu, clip, monkeypatch):
    processor = MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=4, size=32))
    rows = list(RowDataset.from_files([clip]))
    expected = MultimodalCollator(processor, video_backend="torchcodec")(rows)
    collator = MultimodalCollator(processor, video_backend="torchcodec", decode_device="cuda")
    assert collator.decoder == decoder_name("torchcodec", "cuda") == "torchcodec on cuda"
    monkeypatch.setattr(collator._backend, "device", "meta")  # a device that exists on any machine
    monkeypatch.setattr(collator._backend, "frames", lambda *_: torch.zeros(4, 3, 32, 42, dtype=torch.uint8))
    batch = collator(rows)
    assert batch["pixel_values_videos"].device.type == "meta"
    assert batch["pixel_values_videos"].shape == expected["pixel_values_videos"].shape
    assert all(value.device.type == "cpu" for name, value in batch.items() if name != "pixel_values_videos")
    assert torch.equal(batch["video_seconds"], expected["video_seconds"])


def test_a_spawned_worker_reads_without_a_child_process(gpu, clip, monkeypatch):
    processor = MultimodalProcessor(video_processor=VideoClipProcessor(num_frames=4, size=32))
    collator = MultimodalCollator(processor, video_backend="torchcodec", decode_device="cuda")
    monkeypatch.setattr(collator._backend, "device", "cpu")  # a device with memory on this machine
    reader = SupervisedReader(BatchReader(None, collator))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: type("Info", (), {"num_workers": 1, "id": 0}))
    monkeypatch.setattr(SupervisedReader, "_start_child", lambda self: pytest.fail("a child would be a fork"))
    assert reader(list(RowDataset.from_files([clip])))["pixel_values_videos"].shape == (1, 4, 3, 32, 32)


@pytest.mark.parametrize(
    ("workers", "given", "used"), [(2, None, "spawn"), (1, "forkserver", "forkserver"), (0, None, None)]
)
def test_training_spawns_its_loader_processes(tmp_path, monkeypatch, workers, given, used):
    def arguments(**settings):
        return MultimodalTrainingArguments(str(tmp_path), use_cpu=True, **settings)

    with pytest.raises(ValueError, match="--decode_device cuda needs a model on a GPU, but this one is on cpu"):
        load_on_gpu(arguments())
    monkeypatch.setattr(MultimodalTrainingArguments, "device", torch.device("cuda"))
    args = arguments(dataloader_num_workers=workers, dataloader_multiprocessing_context=given)
    load_on_gpu(args)
    assert args.dataloader_multiprocessing_context == used and not args.dataloader_pin_memory
    with pytest.raises(ValueError, match="--dataloader_multiprocessing_context spawn, or --dataloader_num_workers 0"):
        load_on_gpu(arguments(dataloader_num_workers=1, dataloader_multiprocessing_context="fork"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and CUDA_VISIBLE_DEVICES that shows it")
def test_frames_decoded_on_the_gpu_are_close_to_those_of_the_cpu(clip):
    index = index_video(clip)
    backend = get_video_backend("torchcodec", decode_device="cuda")
    frames = backend.frames(clip, POSITIONS, index)
    assert frames.device.type == "cuda"
    expected = get_video_backend("torchcodec").frames(clip, POSITIONS, index)
    assert np.abs(frames.cpu().numpy().astype(int) - expected).mean() < 2
