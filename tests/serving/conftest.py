"""Processes that start quickly, a small processor, and clips."""

import multiprocessing.forkserver
from pathlib import Path

import pytest

import tests.processes  # noqa: F401  (names the modules that the server of processes loads)
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from tests.serving.clips import write_clips
from tests.serving.models import write_models


@pytest.fixture(scope="session", autouse=True)
def process_server() -> None:
    """Start the server of processes that all tests share, before a `ClipReaders` starts one with fewer modules."""
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=80),
        video_processor=VideoClipProcessor(num_frames=4, size=16),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280),
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def models(processor, tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), processor)
