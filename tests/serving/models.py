"""Tiny models of every kind that can be served, written to folders."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, VideoMAEConfig, ViTMAEConfig

from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from simple_multimodal.tasks.video_classification.modeling import MultimodalForVideoClassification
from tests.models.tiny import DECODER_SIZES, SIZES, randomize, tiny_config

LABELS = ["cat", "dog", "a red bird", "nothing"]
MODELS = {
    "actions": MultimodalForVideoClassification,
    "questions": MultimodalForQuestionAnswering,
    "clips": MultimodalForRetrieval,
}


def write_models(
    folder: Path, processor: MultimodalProcessor, *, seed: int = 0, names: Iterable[str] = tuple(MODELS)
) -> Path:
    """Write one model of each kind for the processor of the tests."""
    towers = {
        "text_config": BertConfig(**SIZES, vocab_size=len(processor.tokenizer), max_position_embeddings=32),
        "audio_config": ViTMAEConfig(**SIZES, **DECODER_SIZES, image_size=[16, 80], patch_size=8, num_channels=1),
        "video_config": VideoMAEConfig(
            **SIZES, **DECODER_SIZES, image_size=16, num_frames=4, tubelet_size=2, patch_size=8
        ),
    }
    for name in names:
        labels = {} if name == "clips" else {"id2label": dict(enumerate(LABELS))}
        further = {"problem_type": "multi_label_classification"} if name == "actions" else {}
        torch.manual_seed(seed)
        model = randomize(MODELS[name](tiny_config(**towers, **labels, **further)), scale=0.2 + 0.1 * seed)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def assert_same_results(found: list, expected: list) -> None:
    """Check that lists of results agree, their scores within 1e-5."""
    assert len(found) == len(expected)
    for results, others in zip(found, expected, strict=True):
        assert len(results) == len(others)
        for result, other in zip(results, others, strict=True):
            assert result == {**other, "score": pytest.approx(other["score"], abs=1e-5)}
