"""A tiny model of every kind, and batches whose rows lack different modalities, for tests of the models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BertConfig, DebertaV2Config, PreTrainedConfig, VideoMAEConfig, ViTConfig, ViTMAEConfig

from simple_multimodal.modalities import AUDIO_WINDOW_KEYS
from simple_multimodal.models.configuration import MultimodalConfig
from simple_multimodal.processing.audio_windows import windows_with_audio

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DECODER_SIZES = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 12,
}
VOCAB_SIZE = 40
MEL_BINS, WINDOW_FRAMES, PATCH = 8, 12, 4
WINDOW_PATCHES = (MEL_BINS // PATCH) * (WINDOW_FRAMES // PATCH)  # 6
FRAMES, HEIGHT, WIDTH, TUBELET = 4, 8, 12, 2
CLIP_STEPS, STEP_PATCHES = FRAMES // TUBELET, (HEIGHT // PATCH) * (WIDTH // PATCH)  # 2, 6


def fusion_config(kind: str, **changes) -> PreTrainedConfig:
    """Return a ViT or BERT configuration of another hidden size than the towers'."""
    values = SIZES | {"hidden_size": 24} | changes
    return ViTConfig(**values) if kind == "vit" else BertConfig(**values)


def tiny_config(
    form: str = "cross_attention", fusion: str = "vit", *, text: str = "bert", **changes
) -> MultimodalConfig:
    """Return a config of three towers and a crossformer of two layers each, without dropout."""
    text_class = BertConfig if text == "bert" else DebertaV2Config
    relative = {} if text == "bert" else {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    values = {
        "text_config": text_class(**SIZES, vocab_size=VOCAB_SIZE, max_position_embeddings=32, **relative),
        "audio_config": ViTMAEConfig(
            **SIZES, **DECODER_SIZES, image_size=[MEL_BINS, WINDOW_FRAMES], patch_size=PATCH, num_channels=1
        ),
        "video_config": VideoMAEConfig(
            **SIZES,
            **DECODER_SIZES,
            image_size=[HEIGHT, WIDTH],
            num_frames=FRAMES,
            tubelet_size=TUBELET,
            patch_size=PATCH,
        ),
        "crossformer_config": fusion_config(fusion),
        "fusion_form": form,
        "contrastive_dim": 8,
        "logit_scale_init_value": 1.0,
    }
    return MultimodalConfig(**(values | changes))


def randomize(model: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """Give weights and biases random values: initial ones are so small, or zero, that errors would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@dataclass(frozen=True)
class Row:
    """Sizes and modalities of a row; its contents follow from `seed`."""

    seed: int
    num_words: int = 6
    num_windows: int = 1
    last_frames: int = WINDOW_FRAMES  # real ones in the last window
    text: bool = True
    audio: bool = True
    video: bool = True
    group: int | None = None
    caption: int | None = None  # rows with the same one have the same text
    aligned: bool = False


ROWS = (
    Row(0, num_words=7, group=100),
    Row(1, num_words=5, num_windows=2, last_frames=7, group=100),
    Row(2, audio=False),
    Row(3, num_words=4, video=False, last_frames=5, aligned=True),
    Row(4, text=False),
    Row(5, num_words=9, audio=False, video=False),
)
"""Two rows of one group, and one row each that lacks audio, video, text, and the whole clip."""

LACKING = (
    Row(10, num_words=5, audio=False),
    Row(11, num_words=7, audio=False, group=100),
    Row(12, video=False, num_windows=2, last_frames=3, group=100),
    Row(13, num_words=4, video=False),
    Row(14, text=False, audio=False, video=False),
    Row(15, text=False, audio=False, video=False),
)
"""Of three processes, one has no audio at all, one no video, and one nothing."""


def exact_mask(num_rows: int, num_patches: int, num_masked: int, generator: torch.Generator) -> torch.Tensor:
    """Return a boolean mask with `num_masked` times `True` in every row."""
    return torch.rand(num_rows, num_patches, generator=generator).argsort(dim=1).argsort(dim=1) < num_masked


def make_batch(
    rows: Sequence[Row] = ROWS, *, num_words: int | None = None, num_windows: int | None = None
) -> dict[str, torch.Tensor]:
    """Return a batch as the collator makes it, padded to at least `num_words` and `num_windows`."""
    length = max(num_words or 0, *(row.num_words for row in rows))
    windows = max(num_windows or 0, *(row.num_windows for row in rows))
    return {
        key: torch.stack(values)
        for key, values in _transposed([_row_entries(row, length, windows) for row in rows]).items()
    }


def naming_windows(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the batch with its windows that hold audio, as the collator lists them; otherwise all windows run."""
    windows = windows_with_audio(batch["audio_attention_mask"], WINDOW_FRAMES)
    return {**batch, **dict(zip(AUDIO_WINDOW_KEYS, windows, strict=True))}


def _transposed(entries: list[dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    return {key: [entry[key] for entry in entries] for key in entries[0]}


def _row_entries(row: Row, length: int, windows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(row.seed)
    words = row.num_words if row.text else 2
    ids = torch.randint(5, VOCAB_SIZE, (32,), generator=generator)[:length]
    if row.caption is not None:
        ids = torch.randint(5, VOCAB_SIZE, (32,), generator=torch.Generator().manual_seed(row.caption))[:length]
    values = torch.randn(1, MEL_BINS, 8 * WINDOW_FRAMES, generator=generator)[..., : windows * WINDOW_FRAMES]
    pixels = torch.randint(0, 256, (FRAMES, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    audio_mask = exact_mask(8, WINDOW_PATCHES, 4, generator)[:windows].flatten()
    video_mask = exact_mask(1, STEP_PATCHES, 4, generator).repeat(CLIP_STEPS, 1).flatten()
    masked_ids, uniform = torch.randint(5, VOCAB_SIZE, (32,), generator=generator), torch.rand((), generator=generator)

    real_words = torch.arange(length) < words
    frames = torch.arange(windows * WINDOW_FRAMES)
    real_frames = frames < (row.num_windows - 1) * WINDOW_FRAMES + row.last_frames
    chosen = torch.tensor([p in (1, 3) for p in range(length)]) & real_words & torch.tensor(row.text)
    return {
        "input_ids": ids.masked_fill(~real_words, 0),
        "attention_mask": real_words.long(),
        "text_mask": torch.tensor(row.text),
        "audio_values": values * real_frames * row.audio,
        "audio_attention_mask": real_frames & torch.tensor(row.audio),
        "audio_seconds": (frames + 0.5) * 0.01 * row.audio,
        "audio_mask": torch.tensor(row.audio),
        "pixel_values_videos": pixels * row.video,
        "video_seconds": torch.arange(FRAMES) * 0.5 * row.video,
        "video_mask": torch.tensor(row.video),
        "row_ids": torch.tensor(row.seed),
        "group_ids": torch.tensor(row.seed if row.group is None else row.group),
        "mlm_input_ids": torch.where(chosen, masked_ids[:length], ids).masked_fill(~real_words, 0),
        "mlm_labels": torch.where(chosen, ids, -100),
        "audio_masked_patches": audio_mask.nonzero().flatten(),
        "video_masked_patches": video_mask.nonzero().flatten(),
        "match_aligned": torch.tensor(row.aligned),
        "match_uniform": uniform,
        "text_ids": torch.tensor(row.seed if row.caption is None else row.caption),
    }
