"""Text towers that were trained for sentence similarity embed texts by their own pooling."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, BertConfig, BertModel, ViTConfig

from simple_multimodal.assembly import processor_names
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_pretrained_tower, load_tower_config
from simple_multimodal.models.text.sentences import POOLING_MODES
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval
from tests.closeness import assert_close

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 5, 3, 0, 0], [2, 3, 0, 0, 0]])
MASK = (IDS > 0).long()


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory) -> Path:
    """Write BERT as it is on the hub, without anything about sentences."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES, vocab_size=20, initializer_range=0.5)).save_pretrained(folder)
    return folder


def write_modules(source: Path, folder: Path, modes: list[str], *further: str) -> str:
    """Write a checkpoint in the layout of Sentence Transformers."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    kinds = ["Transformer", "Pooling", *further]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 16} | {name: mode in modes for name, mode in POOLING_MODES.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    return str(folder)


def load(folder: str):
    config = load_tower_config(folder, "text")
    encoder = get_encoder_class("bert", "text")(config).eval()
    load_pretrained_tower(encoder, None, folder)
    return encoder


def pool(tokens: torch.Tensor, mode: str) -> torch.Tensor:
    """Pool one text's embedding naively; `tokens` has no padding."""
    weights = torch.arange(1.0, len(tokens) + 1)
    return {
        "cls": tokens[0],
        "max": tokens.max(dim=0).values,
        "mean": tokens.mean(dim=0),
        "mean_sqrt_len_tokens": tokens.sum(dim=0) / len(tokens) ** 0.5,
        "weightedmean": (weights[:, None] * tokens).sum(dim=0) / weights.sum(),
        "lasttoken": tokens[-1],
    }[mode]


@pytest.mark.parametrize("modes", [*([mode] for mode in POOLING_MODES.values()), ["cls", "mean"]])
@torch.no_grad()
def test_embeddings_are_pooled_as_the_checkpoint_says(plain_folder, tmp_path, modes):
    encoder = load(write_modules(plain_folder, tmp_path, modes))
    assert encoder.embedding_size(encoder.config) == 16 * len(modes)
    output = encoder(IDS, MASK)
    for row in range(3):
        tokens = output.tokens[row, MASK[row].bool()]
        expected = torch.cat([pool(tokens, mode) for mode in modes])
        assert_close(output.embedding[row], expected)


@torch.no_grad()
def test_the_embedding_of_a_model_equals_that_of_its_text_tower(plain_folder, tmp_path):
    """At its size nothing is projected; a saved model gives the same embedding."""
    folder = write_modules(plain_folder, tmp_path / "sentences", ["mean"], "Normalize")
    text = get_encoder_class("bert", "text").fit_config(load_tower_config(folder, "text"), 20)
    video = AutoConfig.for_model("clip_vision_model", **SIZES, image_size=16, patch_size=8)
    config = MultimodalConfig(
        text_config=text, video_config=video, crossformer_config=ViTConfig(**SIZES), contrastive_dim=16
    )
    model, reports = MultimodalForRetrieval.from_encoders(config, {"text": folder})
    assert reports[0].new == []
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    embeds, _ = model.eval().encode_text(inputs)
    tokens = BertModel.from_pretrained(plain_folder).eval()(IDS, attention_mask=MASK).last_hidden_state
    means = (tokens * MASK[..., None]).sum(dim=1) / MASK.sum(dim=1, keepdim=True)
    assert_close(embeds, F.normalize(means, dim=-1))
    model.save_pretrained(tmp_path / "model")
    again = MultimodalForRetrieval.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again.encode_text(inputs)[0], embeds)
    no_names = dict.fromkeys(["tokenizer_name", "audio_processor_name", "video_processor_name"])
    assert processor_names({"text": text}, no_names, {"text": folder})["tokenizer_name"] == folder
    plain = load_tower_config(str(plain_folder), "text")
    assert processor_names({"text": plain}, no_names, {"text": str(plain_folder)})["tokenizer_name"] is None


def test_without_modules_there_is_no_embedding(plain_folder, tmp_path):
    encoder = load(str(plain_folder))
    assert encoder.embedding_size(encoder.config) is None and encoder(IDS, MASK).embedding is None
    assert load_tower_config(str(plain_folder / "config.json"), "text").to_dict().get("sentence_pooling") is None
    folder = write_modules(plain_folder, tmp_path, ["max"])  # only the folder, as in older checkpoints
    (tmp_path / "modules.json").unlink()
    assert load_tower_config(folder, "text").sentence_pooling == {"modes": ["max"], "normalize": False}


def test_modules_that_cannot_be_built_are_refused_by_name(plain_folder, tmp_path):
    folder = write_modules(plain_folder, tmp_path, ["mean"], "Dense", "Normalize")
    with pytest.raises(ValueError, match=r"Dense \(2_Dense\).*copy without modules.json"):
        load_tower_config(folder, "text")
    folder = write_modules(plain_folder, tmp_path, [])
    with pytest.raises(ValueError, match=r"1_Pooling/config.json names no mode as pooling; known are cls, max"):
        load_tower_config(folder, "text")
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    assert load_tower_config(folder, "text").sentence_pooling == {"modes": ["mean"], "normalize": False}
    (tmp_path / "1_Pooling/config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_tower_config(folder, "text")
