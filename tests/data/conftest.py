"""Small media files and a dataset of them for the tests of the data package."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.retrieval.targets import PretrainingTargets

# a: all modalities, several captions; b: a video without audio; c: from second 1 to the end, two windows of audio;
# d: one second of a video, no caption; e: a caption from a file, no clip; f: a single frame.
ROWS = [
    {"id": "a", "video": "audio0.mp4", "captions": ["a cat purrs", "one cat", "the cat"], "group": "cats"},
    {"id": "b", "video": "silent.mp4", "caption": "two dogs bark"},
    {"id": "c", "video": "audio2.mp4", "caption": "a long sentence about many dogs and a cat", "start_seconds": 1.0},
    {"id": "d", "video": "audio1.mp4", "start_seconds": 0.5, "end_seconds": 1.5},
    {"id": "e", "text": "caption.txt"},
    {"id": "f", "video": "one_frame.mp4", "caption": "still"},
]


def write_video(path: Path, *, num_frames: int, seed: int, has_audio: bool, fps: int = 10) -> None:
    """Write a video of 48 x 32 pixels in changing grey, with noise of the same length if it `has_audio`."""
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if has_audio else None
        for number in range(num_frames):
            image = np.full((32, 48, 3), 20 + 200 * number // num_frames, dtype=np.uint8)
            image[8:24, 8:24] = generator.integers(0, 256, 3)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            waveform = (0.1 * generator.standard_normal((1, 16000 * num_frames // fps))).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with `audio{0,1,2}.mp4` (1, 2 and 3 seconds), a silent, a short, a broken and an empty video."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        write_video(folder / f"audio{number}.mp4", num_frames=10 * (number + 1), seed=number, has_audio=True)
    write_video(folder / "silent.mp4", num_frames=12, seed=7, has_audio=False)
    write_video(folder / "one_frame.mp4", num_frames=1, seed=8, has_audio=False)
    (folder / "broken.mp4").write_bytes((folder / "audio0.mp4").read_bytes()[:500])
    (folder / "empty.mp4").touch()
    (folder / "caption.txt").write_text("  a caption from a file\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=120),
        video_processor=VideoClipProcessor(num_frames=4, size=16, random_crop=True, random_flip=True),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280),
    )


@pytest.fixture(scope="module")
def targets(processor) -> PretrainingTargets:
    return PretrainingTargets(
        processor,
        mlm_probability=0.3,
        audio_mask_ratio=0.3,
        audio_patches_per_window=20,
        video_mask_ratio=0.8,
        video_patch_grid=(2, 4, 4),
        vt_match_ratio=0.5,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, media_dir) -> RowDataset:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return RowDataset.from_manifest(folder / "train.jsonl", cache_dir=folder, roots=media_dir)


def assert_equal(first: dict, second: dict) -> None:
    """Assert that two batches have the same entries, bit for bit."""
    assert first.keys() == second.keys()
    for key in first:
        if key == "audio_window_counts":  # only used on the host
            assert first[key] == second[key]
            continue
        assert first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]), key
