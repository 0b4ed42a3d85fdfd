"""Text towers trained for sentence similarity: how they pool, read from the files next to their config."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from simple_multimodal.errors import InputError
from simple_multimodal.models.text.masked_lm import TextEncoder

POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Settings of a pooling module and the modes that they stand for, in the order in which several are concatenated."""


def read_sentence_pooling(name_or_path: str) -> dict[str, Any] | None:
    """
    Return how a checkpoint in the layout of Sentence Transformers pools the tokens of a text.

    Args:
        name_or_path (`str`): Hub name or folder of the checkpoint; a config file alone says nothing about pooling.

    Returns:
        `{"modes": [...], "normalize": bool}`, or `None` if the checkpoint has neither a `modules.json` nor a
        `1_Pooling/config.json`.

    Raises:
        ValueError: If it has a module that cannot be built here, or pools in an unknown way.
    """
    if Path(name_or_path).is_file():
        return None
    modules = _read_json(name_or_path, "modules.json")
    if modules is None:
        if _read_json(name_or_path, "1_Pooling/config.json") is None:
            return None
        modules = [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        unknown = [f"{kind} ({module['path']})" for kind, module in zip(kinds, modules, strict=True)]
        raise InputError(
            f"{name_or_path!r} embeds sentences by the modules {', '.join(unknown)} of its modules.json; known are "
            "Transformer and Pooling, which Normalize may follow. Use another checkpoint, or a copy without "
            "modules.json and 1_Pooling if only its tokens are needed."
        )
    folder = modules[1]["path"]
    pooling = _read_json(name_or_path, f"{folder}/config.json") or {}
    modes = [mode for key, mode in POOLING_MODES.items() if pooling.get(key)]
    if isinstance(pooling.get("pooling_mode"), str):
        modes = [pooling["pooling_mode"]]
    if not modes or not set(modes) <= set(POOLING_MODES.values()):
        raise InputError(
            f"{name_or_path!r}: {folder}/config.json names {', '.join(modes) or 'no mode'} as pooling; known are "
            f"{', '.join(POOLING_MODES.values())}. Use another checkpoint, or a copy without modules.json and "
            "1_Pooling if only its tokens are needed."
        )
    return {"modes": modes, "normalize": "Normalize" in kinds}


def _read_json(name_or_path: str, file: str) -> Any:
    """Return the content of a checkpoint's file, or `None` if there is no such file (or the hub is unreachable)."""
    path = cached_file(
        name_or_path,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}. Download it again, or delete it.") from error


class SentenceEncoder(TextEncoder):
    """
    Base of text encoders that pool an embedding of a text if they were trained to do so
    ([Reimers & Gurevych, 2019](https://huggingface.co/papers/1908.10084)): if `modules.json` or `1_Pooling` is next to
    the checkpoint's config, [`load_tower_config`] stores the settings there as `sentence_pooling`. Otherwise the tower
    only provides a text's tokens.
    """

    def __init__(self, config: PreTrainedConfig, **settings):
        super().__init__(config, **settings)
        self.sentence_pooling = config.to_dict().get("sentence_pooling")

    @classmethod
    def settings_beside(cls, name_or_path: str) -> dict[str, Any]:
        """See [`Encoder.settings_beside`]."""
        pooling = read_sentence_pooling(name_or_path)
        return {} if pooling is None else {"sentence_pooling": pooling}

    @classmethod
    def takes_own_processor(cls, config: PreTrainedConfig) -> bool:
        """See [`Encoder.takes_own_processor`]; a sentence encoder only knows the words of its own tokenizer."""
        return cls.uses_own_processor or "sentence_pooling" in config.to_dict()

    @classmethod
    def embedding_size(cls, config: PreTrainedConfig) -> int | None:
        """Return the size of a sentence embedding; `None` if the tower pools none."""
        pooling = config.to_dict().get("sentence_pooling")
        return None if pooling is None else len(pooling["modes"]) * config.hidden_size

    def pool_sentence(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """
        Return the embedding of each text as the checkpoint was trained to pool it.

        Args:
            tokens (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`): Output of the tower.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 = token, 0 = padding.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, embedding_size)`, or `None` if the tower pools none.
        """
        pooling = self.sentence_pooling
        if pooling is None:
            return None
        mask = attention_mask.to(tokens.dtype)[..., None]  # (batch, tokens, 1)
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=tokens.dtype)[:, None] * mask
        lengths = mask.sum(dim=1).clamp(min=1)
        parts = {
            "cls": lambda: tokens[:, 0],
            "max": lambda: tokens.masked_fill(mask == 0, torch.finfo(tokens.dtype).min).amax(dim=1),
            "mean": lambda: (tokens * mask).sum(dim=1) / lengths,
            "mean_sqrt_len_tokens": lambda: (tokens * mask).sum(dim=1) / lengths.sqrt(),
            "weightedmean": lambda: (tokens * places).sum(dim=1) / places.sum(dim=1).clamp(min=1),
            "lasttoken": lambda: tokens.gather(1, places.argmax(dim=1, keepdim=True).expand_as(tokens[:, :1]))[:, 0],
        }
        embedding = torch.cat([parts[mode]() for mode in pooling["modes"]], dim=-1)
        return torch.nn.functional.normalize(embedding, dim=-1) if pooling["normalize"] else embedding
