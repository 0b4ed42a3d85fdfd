"""Processes that start quickly, a small processor, and clips."""

import functools
import multiprocessing.forkserver
from pathlib import Path

import pytest

import tests.processes  # noqa: F401  (names the modules that the server of processes loads)
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.serving.limits import ServingLimits
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.retrieval.retriever import Retriever
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier
from tests.serving.asgi import Client
from tests.serving.clips import NAMES, write_clips
from tests.serving.models import write_models

SMALL_LIMITS = ServingLimits(
    max_body_megabytes=0.2, max_parts=6, max_inputs=3, max_text_characters=50, max_requests=2, send_seconds=0.5,
    answer_seconds=30.0, max_waiting_megabytes=0.5,
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def process_server() -> None:
    """Start the server of processes that all tests share, before a `ClipReaders` starts one with fewer modules."""
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def processor() -> MultimodalProcessor:
    return MultimodalProcessor(
        feature_extractor=AudioFeatureExtractor(num_mel_bins=16, num_frames=80),
        video_processor=VideoClipProcessor(num_frames=4, size=16),
        tokenizer=train_tokenizer(["a cat purrs", "two dogs bark"], vocab_size=280, model_max_length=32),
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def needs_serve() -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        pytest.importorskip(package, reason="needs the extra serve")


@pytest.fixture(scope="session")
def models(processor, tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), processor)


@pytest.fixture(scope="session")
def pipelines(models) -> dict[str, Pipeline]:
    kinds = {"actions": VideoClassifier, "questions": QuestionAnswerer, "clips": Retriever}
    return {name: kind.from_pretrained(models / name) for name, kind in kinds.items()}


@pytest.fixture(scope="session")
def index(pipelines, clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "embeddings"
    pipelines["clips"].index([clips / name for name in NAMES], saved=folder)
    return folder


@pytest.fixture(scope="session")
def files(clips) -> dict[str, bytes]:
    return {name: (clips / name).read_bytes() for name in NAMES}


@pytest.fixture(scope="session")
def service(needs_serve, models, index, tmp_path_factory):
    """All models, served."""
    from simple_multimodal.serving.models import ServedModel, load_all
    from simple_multimodal.serving.service import Service
    from simple_multimodal.serving.uploads import UploadFolder

    folders = [str(models / name) for name in ("actions", "questions", "clips")]
    served = load_all(folders, str(index), functools.partial(ServedModel.load, num_readers=1))
    service = Service(served, UploadFolder(tmp_path_factory.mktemp("uploads")))
    yield service
    assert not list(service.uploads.path.iterdir())
    assert (service.num_requests, service.body_bytes, service.clip_bytes) == (0, 0, 0)
    service.close()
    service.uploads.close()
    assert not service.uploads.path.exists()


@pytest.fixture(scope="session")
def client(service) -> Client:
    from simple_multimodal.serving.app import create_app

    return Client(create_app(service))


@pytest.fixture
def small(service, monkeypatch):
    """The service with small limits."""
    monkeypatch.setattr(service, "limits", SMALL_LIMITS)
    return service
