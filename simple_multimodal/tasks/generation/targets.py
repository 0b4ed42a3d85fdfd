"""The columns of texts to generate, and their tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row, RowDataset, row_captions
from simple_multimodal.errors import InputError
from simple_multimodal.processing import MultimodalProcessor

TEXT_COLUMNS: dict[str, Any] = {"typed_columns": {"encoder_prompt": "prose", "decoder_prompt": "prose"}}
"""Settings of a [`RowDataset`]: a row's text is what a model should write, and prompts are given to the model."""

IGNORED = -100
"""Label of a token that is not predicted."""

NUM_SHOWN = 3


class TextTargets:
    """
    Add the tokens of texts and prompts to a batch.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): Tokenizer of the backbone.
        max_length (`int`): Largest number of tokens of a text, with the end token; longer ones lose their end.
        encoder_prompt, decoder_prompt (`str`, *optional*): Prompts of rows that have none of their own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        encoder_prompt: str = "",
        decoder_prompt: str = "",
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompts = {"encoder_prompt": encoder_prompt, "decoder_prompt": decoder_prompt}

    @classmethod
    def of(cls, config: PreTrainedConfig, processor: MultimodalProcessor) -> "TextTargets":
        """Return the targets of a model, from its configuration and processor."""
        return cls(
            processor.backbone_tokenizer,
            max_length=config.max_target_length,
            encoder_prompt=config.encoder_prompt,
            decoder_prompt=config.decoder_prompt,
        )

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """
        Return `labels`, the tokens of one text of each row with the end token, int64 of shape `(batch_size,
        num_tokens)`, -100 after them and for rows without a text; `prompt_ids` and `decoder_prompt_ids`, int64 of
        shape `(batch_size, num_tokens)`; and their masks, bool, with the suffix `_attention_mask` instead of `_ids`.
        """
        texts = [self._text(row, generator_of) for row in rows]
        labels = [[] if text is None else self.encode(text) for text in texts]
        entries = {"labels": pad([own[: self.max_length] for own in labels], IGNORED, at_least=1)}
        for name, entry in (("encoder_prompt", "prompt"), ("decoder_prompt", "decoder_prompt")):
            prompts = [self.encode_prompt(str(row.get(name) or self.prompts[name])) for row in rows]
            ids = pad(prompts, IGNORED)
            entries[f"{entry}_attention_mask"] = ids != IGNORED
            entries[f"{entry}_ids"] = ids.clamp(min=0)
        return entries

    @staticmethod
    def _text(row: Row, generator_of: GeneratorOf) -> str | None:
        """Return the text of a row: one of several is drawn."""
        if row.get("is_skipped") or not has_text(row):
            return None
        texts = row_captions(row)
        return texts[0] if len(texts) == 1 else texts[int(generator_of(row, "caption").integers(len(texts)))]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the end token."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def encode_prompt(self, prompt: str) -> list[int]:
        """
        Return the tokens of a prompt.

        Raises:
            ValueError: If the tokenizer does not know it.
        """
        if not prompt:
            return []
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            raise InputError(
                f"The backbone's tokenizer does not know the prompt {prompt!r}. Correct it, or add it as a token with "
                "--new_tokens."
            )
        return ids

    def warning_about(self, dataset: RowDataset) -> str | None:
        """Return a warning about rows whose text is missing or too long; texts in files are not looked at."""
        pairs = list(zip(dataset.column("id"), dataset.column("captions"), dataset.column("text"), strict=True))
        lacking = [name for name, captions, file in pairs if not captions and file is None]
        longest = {name: max(len(self.encode(text)) for text in captions) for name, captions, _ in pairs if captions}
        too_long = [name for name, length in longest.items() if length > self.max_length]
        warnings = []
        if lacking:
            warnings.append(
                f"{len(lacking):,} of {len(dataset):,} have no text, so that nothing is learned from them, and they "
                f"are not scored: {shown(lacking)}."
            )
        if too_long:
            warnings.append(
                f"{len(too_long):,} of {len(dataset):,} have a text of more than {self.max_length} tokens "
                f"(the longest has {max(longest.values())}), whose end the model does not learn: {shown(too_long)}. "
                "Raise max_target_length to keep them whole."
            )
        return " ".join(warnings) or None


def has_text(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a text."""
    return row["text"] is not None or bool(row["captions"])


def shown(names: Sequence[str]) -> str:
    """Return the first names of a list for a message."""
    return ", ".join(names[:NUM_SHOWN]) + (" …" if len(names) > NUM_SHOWN else "")


def pad(rows: Iterable[Sequence[int]], value: int, *, at_least: int = 0) -> torch.Tensor:
    """Return rows of different lengths as an int64 tensor, filled up on the right, of a width of `at_least`."""
    listed = list(rows)
    padded = torch.full((len(listed), max([at_least, *map(len, listed)])), value)
    for row, own in zip(padded, listed, strict=True):
        row[: len(own)] = torch.tensor(own, dtype=torch.long)
    return padded
