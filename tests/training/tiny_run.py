"""Small inputs of a training run: clips, manifests, configs, and checkpoints as on the hub."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

import train
from arguments import parse_args
from simple_multimodal.data.tokenization import train_tokenizer
from tests.media.media_files import write_media

NUM_ROWS = 7  # divisible by neither 2 nor 3
CAPTIONS = ["a cat purrs", "two dogs bark at a cat", "rain falls", "a bell rings", "a bell rings twice in the rain"]
CAPTIONS += ["a dog runs", "someone sings"]

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DECODER_SIZES = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
CONFIGS = {
    "text": {"model_type": "bert", **SIZES, "max_position_embeddings": 32, "vocab_size": 300},
    "audio": {"model_type": "vit_mae", **SIZES, **DECODER_SIZES, "image_size": [16, 64], "patch_size": 16},
    "video": {
        "model_type": "videomae",
        **SIZES,
        **DECODER_SIZES,
        "image_size": 32,
        "num_frames": 2,
        "tubelet_size": 2,
        "patch_size": 16,
    },
    "fusion": {"model_type": "vit", **SIZES},
}


def write_clips(folder: Path) -> Path:
    """
    Write `video/`, `audio/` and `text/` with `NUM_ROWS` files each, and `train.csv` and `validation.csv` with their
    names. Row 3 has no audio, row 4 no video. The last caption is `someone sings`.
    """
    for name in ("video", "audio", "text"):
        (folder / name).mkdir(parents=True)
    lines = ["audio,text,video"]
    for row, caption in enumerate(CAPTIONS):
        write_media(folder / f"video/{row}.mp4", num_frames=6 + row)
        write_media(
            folder / f"audio/{row}.wav",
            waveform=lambda times, row=row: np.sin(2 * np.pi * 300 * (row + 1) * times) / 2,
            audio_seconds=0.4 + 0.2 * row,
        )
        (folder / f"text/{row}.txt").write_text(caption, encoding="utf-8")
        audio, clip = ("" if row == 3 else f"{row}.wav"), ("" if row == 4 else f"{row}.mp4")
        lines.append(f"{audio},{row}.txt,{clip}")
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_configs(folder: Path, *, dropout: float = 0.0) -> dict[str, str]:
    """Write a config JSON for each tower, and return the paths."""
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    for tower, values in CONFIGS.items():
        (folder / f"{tower}.json").write_text(json.dumps({**values, **dropouts}))
    return {tower: str(folder / f"{tower}.json") for tower in CONFIGS}


def write_hub_folders(folder: Path) -> dict[str, str]:
    """
    Write small versions of the four hub models of the documented full run: weights of the stock classes (with square
    RGB images), their configs, preprocessor configs and a tokenizer.

    Returns:
        `dict[str, str]`: Folders of `text`, `audio`, `video` and `fusion`.
    """
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 3, vocab_size=300)
    models = {
        "text": DebertaV2ForMaskedLM(
            DebertaV2Config(
                **SIZES,
                vocab_size=len(tokenizer) + 5,  # padded to a round number, like the published one
                max_position_embeddings=64,
                relative_attention=True,
                position_biased_input=False,
                pos_att_type=["p2c", "c2p"],
                type_vocab_size=0,
            )
        ),
        "audio": ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER_SIZES, image_size=32, patch_size=16)),
        "video": VideoMAEForPreTraining(
            VideoMAEConfig(**SIZES, **DECODER_SIZES, image_size=32, patch_size=16, num_frames=4)
        ),
        "fusion": ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=16)),
    }
    folders = {tower: str(folder / f"{tower}-base") for tower in models}
    for tower, model in models.items():
        model.save_pretrained(folders[tower])
    tokenizer.save_pretrained(folders["text"])
    image_settings = {"do_normalize": True, "do_resize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    preprocessors = {
        "audio": {**image_settings, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 32},
        "video": {
            **image_settings,
            "do_center_crop": True,
            "feature_extractor_type": "VideoMAEFeatureExtractor",
            "resample": 2,
            "size": 32,
        },
    }
    for tower, values in preprocessors.items():
        Path(folders[tower], "preprocessor_config.json").write_text(json.dumps(values))
    return folders


def flags(*given: str, **values: object) -> list[str]:
    """Return command-line tokens: those given, then `--name value` for each keyword; lists become several tokens."""
    tokens = list(given)
    for name, value in values.items():
        tokens += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return tokens


def data_flags(folder: Path) -> list[str]:
    """Return the flags for the clips of [`write_clips`]."""
    roots = {f"{name}_root": folder / name for name in ("audio", "text", "video")}
    return flags(train_file=folder / "train.csv", validation_file=folder / "validation.csv", **roots)


def config_flags(configs: dict[str, str]) -> list[str]:
    """Return the flags for a model with the configs of [`write_configs`], and for a fast run on a CPU."""
    names = {f"{tower}_config_name": path for tower, path in configs.items()}
    return flags("--use_cpu", "--disable_tqdm", contrastive_dim=8, dataloader_num_workers=0, **names)


def run(*argv: str) -> dict[str, float]:
    """Run `train.py` in this process."""
    return train.run(*parse_args(argv))
