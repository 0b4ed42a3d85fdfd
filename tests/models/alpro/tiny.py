"""A tiny ALPRO, its batches, its checkpoint as the original code would write it, and the converted checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, TimesformerConfig

from simple_multimodal.alpro import AlproConfig, AlproForQuestionAnswering, AlproForRetrieval
from simple_multimodal.alpro.folder import convert_alpro
from simple_multimodal.data.tokenization import train_tokenizer
from tests.models.tiny import randomize

VOCAB_SIZE, POSITIONS, FRAMES, SIDE, PATCH, WORDS = 40, 16, 3, 12, 4, 7
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_config(**changes) -> AlproConfig:
    """Return a config of two text layers, two fusion layers and two video layers, without dropout."""
    values = {
        "text_config": BertConfig(
            **SIZES, **NO_DROPOUT, num_hidden_layers=4, vocab_size=VOCAB_SIZE, max_position_embeddings=POSITIONS
        ),
        "video_config": TimesformerConfig(
            **SIZES, num_hidden_layers=2, image_size=SIDE, patch_size=PATCH, num_frames=FRAMES
        ),
        "fusion_layer": 2,
        "contrastive_dim": 8,
        "drop_path_rate": 0.0,
    }
    return AlproConfig(**(values | changes))


def build(model_class=AlproForRetrieval, **changes) -> AlproForRetrieval | AlproForQuestionAnswering:
    """Build a model with weights and biases so large that errors show, in evaluation mode."""
    torch.manual_seed(0)
    model = randomize(model_class(tiny_config(**changes)))
    if isinstance(model, AlproForRetrieval):
        torch.nn.init.constant_(model.temperature, 0.2)
    return model


def make_batch(num_words: int = WORDS) -> dict[str, torch.Tensor]:
    """Return five rows, padded to `num_words`: two of one group, one aligned, and the last one without video."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 4, 5, 3, 6])
    ids = torch.randint(5, VOCAB_SIZE, (5, 16), generator=generator)[:, :num_words]
    mask = torch.arange(num_words) < lengths[:, None]
    pixels = torch.randint(0, 256, (5, FRAMES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "text_mask": torch.ones(5, dtype=torch.bool),
        "pixel_values_videos": pixels,
        "video_seconds": torch.zeros(5, FRAMES),
        "video_mask": torch.tensor([True, True, True, True, False]),
        "row_ids": torch.arange(5),
        "group_ids": torch.tensor([7, 7, 8, 9, 10]),
        "match_aligned": torch.tensor([False, True, False, False, False]),
        "match_uniform": torch.tensor([0.1, 0.2, 0.7, 0.9, 0.5]),
        "text_ids": torch.arange(5),
    }


def original_tensors(
    kind: str,
    *,
    prefix: str = "bert.",
    num_answers: int = 1500,
    num_frames: int = FRAMES,
    vocab_size: int = VOCAB_SIZE,
    num_positions: int = POSITIONS,
) -> dict[str, torch.Tensor]:
    """Return a checkpoint of `tiny_config` under the original's names.

    Args:
        kind (`str`): `retrieval`, `qa` or `pretraining`.
        prefix (`str`): Prefix of the BERT's tensors inside `text_encoder.`.
        num_answers, num_frames, vocab_size, num_positions (`int`): Sizes of the answer head and of the tables of
            times, words and positions.
    """
    hidden, inner, patches = SIZES["hidden_size"], SIZES["intermediate_size"], (SIDE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {"temp": ()}

    def linear(name: str, out: int, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, size), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (hidden,), (hidden,)

    video, text = "visual_encoder.model", f"text_encoder.{prefix}"
    shapes[f"{video}.cls_token"] = (1, 1, hidden)
    shapes[f"{video}.pos_embed"] = (1, 1 + patches, hidden)
    shapes[f"{video}.time_embed"] = (1, num_frames, hidden)
    shapes[f"{video}.patch_embed.proj.weight"] = (hidden, 3, PATCH, PATCH)
    shapes[f"{video}.patch_embed.proj.bias"] = (hidden,)
    for block in (f"{video}.blocks.{number}" for number in range(2)):
        for name in ("norm1", "temporal_norm1", "norm2"):
            norm(f"{block}.{name}")
        for name in ("attn", "temporal_attn"):
            linear(f"{block}.{name}.qkv", 3 * hidden, hidden)
            linear(f"{block}.{name}.proj", hidden, hidden)
        linear(f"{block}.temporal_fc", hidden, hidden)
        linear(f"{block}.mlp.fc1", inner, hidden)
        linear(f"{block}.mlp.fc2", hidden, inner)
    norm(f"{video}.norm")
    linear(f"{video}.head", 400, hidden)
    for name, rows in {"word": vocab_size, "position": num_positions, "token_type": 2}.items():
        shapes[f"{text}embeddings.{name}_embeddings.weight"] = (rows, hidden)
    norm(f"{text}embeddings.LayerNorm")
    for layer in (f"{text}encoder.layer.{number}" for number in range(4)):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{name}", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("vision_proj", 8, hidden)
    linear("text_proj", 8, hidden)
    linear("itm_head", 2, hidden)
    if kind == "qa":
        linear("classifier.0", 2 * hidden, hidden)
        linear("classifier.2", num_answers, 2 * hidden)
    else:
        linear("text_encoder.cls.predictions.transform.dense", hidden, hidden)
        shapes["text_encoder.cls.predictions.bias"] = (vocab_size,)
    if kind == "pretraining":
        linear("mpm_head.0", 2 * hidden, hidden)
        shapes |= {f"prompter.{name}": shape for name, shape in shapes.items() if not name.startswith("mpm_head")}
        shapes["prompter.video_prompt_feat"] = (10, 8)
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    for name in tensors:
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] += 1  # as in trained models, which otherwise could not learn
    tensors[f"{text}embeddings.position_ids"] = torch.arange(num_positions)[None]
    tensors["temp"] = torch.tensor(0.06)
    return tensors


def write_folder(folder: Path, kind: str, texts: Sequence[str], *, num_frames: int | None = None, **changes) -> str:
    """Write the output of `simple-multimodal convert alpro` for such a checkpoint, with a tokenizer for `texts`.

    Args:
        folder (`Path`): Output folder; the model is in its folder `model`.
        kind (`str`): See [`original_tensors`]; `qa` chooses among `LABEL_0` to `LABEL_2`.
        num_frames (`int`, *optional*): Number of frames to convert to.
        changes: Changes of the configuration.
    """
    tokenizer = train_tokenizer(texts, vocab_size=300)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = tiny_config(**changes)
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), 64
    tensors = original_tensors(kind, num_answers=3, vocab_size=len(tokenizer), num_positions=64)
    torch.save(tensors, folder / "best.pt")
    names = {"tokenizer_name": str(folder / "tokenizer"), "num_frames": num_frames, "config": config}
    convert_alpro(folder / "best.pt", folder / "model", **names)
    return str(folder / "model")
