"""Models of every size with random weights, and batches for them without files; values do not affect the cost."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, DebertaV2Config, PreTrainedConfig, VideoMAEConfig, ViTConfig, ViTMAEConfig

from simple_multimodal.data.masking import masked_count
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.lora import add_lora

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TOY = {
    "text": "text/debertv2_config_toy.json",
    "audio": "audio/mae_config_toy.json",
    "video": "video/videomae_config_toy.json",
    "crossformer": "crossformer/vit_config_toy.json",
}
MASK_RATIOS = {"audio": 0.3, "video": 0.8}  # the defaults of `train.py`; of words a third is masked
WINDOW = (128, 1024)
"""Mel bins and frames of a window of the default audio tower: 10.24 seconds."""


def part_configs(size: str) -> dict[str, PreTrainedConfig]:
    """
    Return the configurations of `text`, `audio`, `video` and `crossformer`.

    Args:
        size (`str`): `"toy"`: as in the quickstart; `"base"`: DeBERTa-v3-base, ViT-MAE-base, VideoMAE-base and
            ViT-B/16, 16 frames of 224 by 224 pixels, a vocabulary of 128,100; `"small"`: the same with
            DeBERTa-v3-small, which has 6 layers, and half of the fusion's layers.
    """
    if size == "toy":
        texts = {name: (CONFIGS / path).read_text(encoding="utf-8") for name, path in TOY.items()}
        return {name: AutoConfig.for_model(**json.loads(text)) for name, text in texts.items()}
    layers = {"small": 6, "base": 12}[size]
    text = DebertaV2Config(  # the defaults are those of v2-xlarge
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=3072,
        layer_norm_eps=1e-7,
        max_relative_positions=-1,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    )
    audio = get_encoder_class("vit_mae", "audio").fit_config(ViTMAEConfig(), *WINDOW)
    return {
        "text": text,
        "audio": audio,
        "video": VideoMAEConfig(),
        "crossformer": ViTConfig(num_hidden_layers=layers),
    }


SETTINGS = (
    "all weights",
    "all weights, checkpoints",
    "LoRA, checkpoints",
    "LoRA with fusion, checkpoints",
    "frozen towers",
    "frozen towers, checkpoints",
)
"""What is trained and stored: adapters of rank 8 in the towers, with the fusion trained or adapted, too; frozen towers
of text, audio and video; layers that run again in the backward pass.
"""


def apply_setting(model: TowerModel, setting: str) -> None:
    """Adapt, freeze and checkpoint a model as one of `SETTINGS` says."""
    fusion = ["fusion"] if "with fusion" in setting else []
    if "LoRA" in setting:
        add_lora(model, rank=8, alpha=16, towers=["text", "audio", "video", *fusion])
    if "frozen" in setting:
        model.freeze(["text", "audio", "video"])
    if "checkpoints" in setting:
        model.checkpoint_activations(list(model.towers))


def model_config(size: str, **settings: Any) -> MultimodalConfig:
    """Return a configuration with all modalities and objectives, unless `settings` say otherwise."""
    own: dict[str, Any] = {"fusion_pool": "time", "contrastive_dim": 128} if size == "toy" else {}
    return MultimodalConfig(
        **{f"{name}_config": config for name, config in part_configs(size).items()} | own | settings
    )


def make_batch(config: MultimodalConfig, num_rows: int, *, num_words: int) -> dict[str, torch.Tensor]:
    """Make a batch like the collator's with `MASK_RATIOS`; all rows have all modalities and the same length."""
    audio, video = config.audio_config, config.video_config
    mel_bins, num_frames = audio.image_size
    side = video.image_size
    ids = torch.randint(5, config.text_config.vocab_size, (num_rows, num_words))
    patches = (mel_bins // audio.patch_size) * (num_frames // audio.patch_size)
    places, steps = (side // video.patch_size) ** 2, video.num_frames // video.tubelet_size
    tubes = torch.arange(masked_count(places, MASK_RATIOS["video"])) + places * torch.arange(steps)[:, None]
    present = torch.ones(num_rows, dtype=torch.bool)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_values": torch.rand(num_rows, 1, mel_bins, num_frames),
        "audio_attention_mask": present[:, None].repeat(1, num_frames),
        "audio_seconds": torch.arange(num_frames).repeat(num_rows, 1) * 0.01,
        "audio_windows": torch.stack([torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64)], dim=1),
        "pixel_values_videos": torch.randint(0, 256, (num_rows, video.num_frames, 3, side, side), dtype=torch.uint8),
        "video_seconds": torch.arange(video.num_frames).repeat(num_rows, 1) * 0.4,
        "text_mask": present,
        "audio_mask": present,
        "video_mask": present,
        "row_ids": torch.arange(num_rows),
        "group_ids": torch.arange(num_rows),
        "text_ids": torch.arange(num_rows),
        "mlm_input_ids": ids,
        "mlm_labels": torch.where(torch.arange(num_words) % 3 == 0, ids, -100),
        "audio_masked_patches": torch.arange(masked_count(patches, MASK_RATIOS["audio"])).repeat(num_rows, 1),
        "video_masked_patches": tubes.flatten().repeat(num_rows, 1),
        "match_aligned": torch.arange(num_rows) % 2 == 0,
        "match_uniform": torch.rand(num_rows),
    }
