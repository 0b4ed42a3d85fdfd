"""Towers with published weights on real input.

Run with `SIMPLE_MULTIMODAL_WEIGHTS=FOLDER`, see docs/adding_encoders.md.
"""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from transformers import AutoTokenizer, BertModel, TimmWrapperForImageClassification, WhisperModel

from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.processing import AudioFeatureExtractor, VideoClipProcessor

NAMES = {"text": "all-minilm-l6-v2", "audio": "whisper-tiny.en", "video": "efficientnet-lite0"}


@pytest.fixture(scope="module")
def weights() -> dict[str, str]:
    folder = os.environ.get("SIMPLE_MULTIMODAL_WEIGHTS")
    if folder is None:
        pytest.skip("needs published weights; set SIMPLE_MULTIMODAL_WEIGHTS to their folder")
    found = {modality: Path(folder, name) for modality, name in NAMES.items()}
    if missing := [str(path) for path in found.values() if not (path / "config.json").is_file()]:
        pytest.fail(f"SIMPLE_MULTIMODAL_WEIGHTS lacks {', '.join(missing)}")
    return {modality: str(path) for modality, path in found.items()}


def load(name: str, modality: str, *size: int):
    """Load an encoder with all weights of a checkpoint."""
    config = load_tower_config(name, modality)
    encoder_class = get_encoder_class(config.model_type, modality)
    encoder = encoder_class(encoder_class.fit_config(config, *size)).eval()
    report = load_pretrained_tower(encoder, None, name)
    assert report.new == [] and report.converted == {}
    return encoder


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare relative to the largest value, as the order of sums in kernels depends on shapes."""
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_sentences_with_similar_meanings_have_similar_embeddings(weights):
    tokenizer = AutoTokenizer.from_pretrained(weights["text"])
    encoder = load(weights["text"], "text", len(tokenizer), tokenizer.pad_token_id)
    texts = ["a dog barks in the garden", "the puppy is barking outside", "stock prices fell sharply on Monday"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    output = encoder(**inputs)
    stock = BertModel.from_pretrained(weights["text"], add_pooling_layer=False).eval()
    for row, text in enumerate(texts):  # one at a time, without padding
        tokens = stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_close(output.tokens[row, output.mask[row]], tokens)
        assert_close(output.embedding[row], F.normalize(tokens.mean(dim=0), dim=-1))
    cosines = output.embedding @ output.embedding.T
    assert cosines[0, 1] > 0.6 and cosines[0, 2] < 0.2 and cosines[1, 2] < 0.2


@torch.no_grad()
def test_speech_tower_equals_the_stock_model(weights):
    extractor = AudioFeatureExtractor.from_pretrained(weights["audio"])
    encoder = load(weights["audio"], "audio", extractor.num_mel_bins, extractor.num_frames)
    waveform = torch.randn(16000 * 3, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    batch = extractor(waveform, sampling_rate=16000)
    output = encoder(batch["audio_values"], batch["audio_attention_mask"], batch["audio_seconds"])
    stock = WhisperModel.from_pretrained(weights["audio"]).eval().encoder
    assert_close(output.tokens, stock(batch["audio_values"][:, 0]).last_hidden_state)
    assert int(output.mask.sum()) == 150 and output.seconds[0, 149] == pytest.approx(2.98)


@torch.no_grad()
def test_image_tower_recognises_a_harp(weights, shared_dir):
    config = load_tower_config(weights["video"], "video")
    values = get_encoder_class(config.model_type, "video").processor_values(config) | {"num_frames": 3}
    processor = VideoClipProcessor(**values)
    encoder = load(weights["video"], "video", 3, processor.height, processor.width)
    encoder.image_mean, encoder.image_std = processor.image_mean, processor.image_std
    with av.open(str(shared_dir / "data/clips/videos/clip001.mp4")) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(3), strict=False)
        ]
    batch = processor(np.stack(frames), video_fps=25.0)
    output = encoder(batch["pixel_values_videos"], batch["video_seconds"])
    stock = TimmWrapperForImageClassification.from_pretrained(weights["video"]).eval().timm_model
    pixels = (batch["pixel_values_videos"][0] / 255 - 0.5) / 0.5
    features = stock.forward_features(pixels).flatten(2).transpose(1, 2)
    assert_close(output.tokens[0], features.flatten(0, 1))
    logits = stock.get_classifier()(output.tokens[0].unflatten(0, (3, -1)).mean(dim=1)).mean(dim=0)
    assert ImageNetInfo("imagenet-1k").index_to_description(int(logits.argmax())).startswith("harp")
