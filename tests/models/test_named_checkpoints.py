"""Sizes of the checkpoints that the documentation names, counted on models of the same configuration."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    ClapConfig,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    DebertaV2Model,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedConfig,
    SiglipConfig,
    SiglipModel,
    VideoMAEForPreTraining,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from benchmarks import stand_ins
from simple_multimodal.models import MultimodalModel

ROOT = Path(__file__).resolve().parents[2]
BASE, SMALL = stand_ins.part_configs("base"), stand_ins.part_configs("small")
LARGE_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

BART_BASE_SIZES = {
    "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12, "decoder_attention_heads": 12,
}  # fmt: skip


def large(config: PreTrainedConfig, **changes) -> PreTrainedConfig:
    """Return the configuration of the large checkpoint of the same family."""
    return type(config).from_dict(config.to_dict() | LARGE_SIZES | changes)


CHECKPOINTS = {
    "microsoft/deberta-v3-base": (DebertaV2Model, BASE["text"], 183_831_552),
    "microsoft/deberta-v3-small": (DebertaV2Model, SMALL["text"], 141_304_320),
    "microsoft/deberta-v3-large": (DebertaV2Model, large(BASE["text"]), 434_012_160),
    "facebook/vit-mae-base": (ViTMAEForPreTraining, ViTMAEConfig(), 111_907_840),
    "MCG-NJU/videomae-base": (VideoMAEForPreTraining, BASE["video"], 94_209_408),
    "facebook/vit-mae-large": (ViTMAEForPreTraining, large(ViTMAEConfig()), 329_541_888),
    "MCG-NJU/videomae-large": (
        VideoMAEForPreTraining,
        large(
            BASE["video"],
            decoder_hidden_size=512,
            decoder_num_hidden_layers=12,
            decoder_num_attention_heads=8,
            decoder_intermediate_size=2048,
        ),
        342_994_944,
    ),
    "google/vit-base-patch16-224-in21k": (ViTModel, BASE["crossformer"], 86_389_248),
    "google-bert/bert-base-uncased": (BertModel, BertConfig(), 109_482_240),
    "openai/clip-vit-base-patch32": (CLIPModel, CLIPConfig(text_config={}, vision_config={}), 151_277_313),
    "google/siglip2-base-patch16-224": (
        SiglipModel,
        SiglipConfig(text_config={"vocab_size": 256_000}, vision_config={}),
        375_187_970,
    ),
    "laion/clap-htsat-unfused": (ClapModel, ClapConfig(text_config={}, audio_config={}), 153_492_890),
    "facebook/bart-base": (BartModel, BartConfig(**BART_BASE_SIZES), 139_420_416),
    "facebook/m2m100_418M": (M2M100ForConditionalGeneration, M2M100Config(), 483_905_536),
    "MIT/ast-finetuned-audioset-10-10-0.4593": (ASTForAudioClassification, ASTConfig(num_labels=527), 86_594_063),
}
"""The stock class of the published weights, its configuration as we have it, and its number of parameters."""

OWNERS = r"(?:microsoft|facebook|MCG-NJU|google|google-bert|openai|laion|MIT|timm|sentence-transformers|answerdotai)"


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_has_its_published_size(name):
    model_class, config, expected = CHECKPOINTS[name]
    with torch.device("meta"):
        assert num_parameters(model_class(config)) == expected


def test_every_checkpoint_in_the_documentation_has_a_size_here():
    files = [ROOT / "README.md", *(p for d in ("docs", "configs", "benchmarks") for p in (ROOT / d).rglob("*"))]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".md", ".yaml", ".json", ".py")]
    named = {name for text in texts for name in re.findall(rf"(?<!github\.com/)\b{OWNERS}/[A-Za-z0-9._-]+\w", text)}
    assert "microsoft/deberta-v3-base" in named and named <= set(CHECKPOINTS)


@pytest.mark.parametrize(("size", "text", "fusion_layers"), [("base", 183_831_552, 12), ("small", 141_304_320, 6)])
def test_stand_ins_have_the_size_of_the_checkpoints_that_they_replace(size: str, text: int, fusion_layers: int):
    """Towers have as many parameters as in `CHECKPOINTS`, except for decoders and pooling."""
    with torch.device("meta"):
        model = MultimodalModel(stand_ins.model_config(size))
        image_tower = num_parameters(ViTMAEModel(ViTMAEConfig()))
    assert {name: num_parameters(tower) for name, tower in model.towers.items() if name != "fusion"} == {
        "text": text,
        # One channel instead of three, and positions that are not parameters.
        "audio": image_tower - 2 * 16 * 16 * 768 - (1 + 14 * 14) * 768,
        "video": 86_225_664,
    }
    assert model.config.crossformer_config.num_hidden_layers == fusion_layers
