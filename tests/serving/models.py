"""Tiny models of every kind that can be served, written to folders."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, M2M100Config, VideoMAEConfig, ViTMAEConfig

from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.generation.modeling import MultimodalForConditionalGeneration
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
BACKBONE = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip


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


def write_captioner(folder: Path, processor: MultimodalProcessor) -> Path:
    """Write a model that writes texts, with the tokenizer of the tests' processor."""
    tokenizer = processor.tokenizer
    own = MultimodalProcessor(
        feature_extractor=processor.part("audio"),
        video_processor=processor.part("video"),
        backbone_tokenizer=tokenizer,
    )
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    backbone = M2M100Config(
        **BACKBONE, **ids, vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.eos_token_id
    )
    torch.manual_seed(0)
    config = tiny_config(
        text_config=None,
        audio_config=ViTMAEConfig(**SIZES, **DECODER_SIZES, image_size=[16, 80], patch_size=8, num_channels=1),
        video_config=VideoMAEConfig(
            **SIZES, **DECODER_SIZES, image_size=16, num_frames=4, tubelet_size=2, patch_size=8
        ),
        text_backbone_config=backbone,
    )
    model = randomize(MultimodalForConditionalGeneration(config), scale=0.5)
    model.generation_config.update(num_beams=2, max_new_tokens=8, max_length=None)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def assert_same_results(found: list, expected: list) -> None:
    """Check that lists of results agree, their scores within 1e-5."""
    assert len(found) == len(expected)
    for results, others in zip(found, expected, strict=True):
        assert len(results) == len(others)
        for result, other in zip(results, others, strict=True):
            assert result == {**other, "score": pytest.approx(other["score"], abs=1e-5)}
