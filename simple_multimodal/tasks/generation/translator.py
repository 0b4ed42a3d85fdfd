"""Write texts about clips: translations, captions, transcripts."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.records import FILE_COLUMNS
from simple_multimodal.data.rows import Row
from simple_multimodal.errors import InputError
from simple_multimodal.inference.encoded import EncodedBatch
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.inference.requests import Clip, Clips, Request, as_requests, rows_of_clips, rows_of_source
from simple_multimodal.modalities import Modality
from simple_multimodal.models.pairs import Encoded
from simple_multimodal.tasks.generation.modeling import MultimodalForConditionalGeneration
from simple_multimodal.tasks.generation.targets import IGNORED, TextTargets

PROMPTS = ("encoder_prompt", "decoder_prompt")


class GeneratedTexts(NamedTuple):
    """
    Texts of rows.

    Args:
        texts (`list[str]`): One text per row; empty where the clip could not be read.
        scores (`torch.FloatTensor` of shape `(num_rows,)`): Mean log-probability of its tokens, NaN where the clip
            could not be read.
        losses (`torch.FloatTensor` of shape `(num_rows, 2)`): Sum of the losses of the expected tokens, and their
            number, where they were measured.
        is_read (`torch.BoolTensor` of shape `(num_rows,)`): Whether the clip could be read.
        bad_samples (`list[BadSample]`): Clips that could not be read.
    """

    texts: list[str]
    scores: torch.Tensor
    losses: torch.Tensor
    is_read: torch.Tensor
    bad_samples: list[BadSample]


class Translator(Pipeline):
    """
    Writes the text of clips: a translation, a caption or a transcript. Takes the arguments of [`Pipeline`].

    Example:

    ```python
    >>> translator = Translator.from_pretrained("outputs/signs")
    >>> translator("clip.pose")
    [[{'text': 'am freitag schnee', 'score': -0.03}]]
    ```
    """

    model_classes = {"MultimodalForConditionalGeneration": MultimodalForConditionalGeneration}
    remedy = "It writes texts, which only models of --task translation, captioning or transcription do."

    def __init__(self, model: PreTrainedModel, processor: Any, **settings: Any):
        super().__init__(model, processor, **settings)
        if self.collator.targets is None:
            self.collator.targets = TextTargets.of(model.config, processor)

    def __call__(  # type: ignore[override]  # each pipeline has settings of its own
        self, inputs: Clip | Request | Sequence[Clip | Request], **generation: Any
    ) -> list[list[dict[str, Any]]]:
        """
        Write the text of clips, see [`Pipeline.__call__`].

        Args:
            inputs: A clip (a media file, or a row as a dictionary), a request `{"clip": clip, "encoder_prompt": str,
                "decoder_prompt": str}` whose prompts may be left out, or a list of them.
            generation: Settings of generation, such as `num_beams` and `max_new_tokens`.

        Returns:
            `list[list[dict]]`: For each clip a list with one text: `{"text": str, "score": float}`. The score is the
            mean log-probability of its tokens.

        Raises:
            MediaError: If a file cannot be read.
            ValueError: If a request is invalid, **or** a file has no modality of the model.
        """
        single = isinstance(inputs, (str, os.PathLike, Mapping))
        items = [inputs] if single else list(cast(Sequence, inputs))
        requests = as_requests(
            [item if isinstance(item, Mapping) and "clip" in item else {"clip": item} for item in items],  # type: ignore
            clips="clip",
            optional=PROMPTS,
        )
        if not requests:
            return []
        rows = []
        for number, request in enumerate(requests):
            ((row,), _) = rows_of_clips([request["clip"]])
            prompts = {name: request[name] for name in PROMPTS if name in request}
            rows.append(cast(Row, {**row, **prompts, "index": number}))
        written = self.write(rows, on_bad_sample="fail", **generation)
        return [
            [{"text": text, "score": score}]
            for text, score in zip(written.texts, written.scores.tolist(), strict=True)
        ]

    def translate_each(self, clips: Clips, *, recursive: bool = False, **generation: Any) -> dict[str, str]:
        """
        Write the text of each of several clips.

        Args:
            clips: Rows (a data set, its manifest, dictionaries, a pandas DataFrame), or a media file, a folder, or a
                list of files. Clips of rows or of a folder that cannot be read are left out, with a warning.
            recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a
                folder.
            generation: Settings of generation.

        Returns:
            `dict[str, str]`: Texts by the row's id or the name of the file, which is relative to a folder.
        """
        rows, policy = rows_of_source(clips, recursive=recursive)
        written = self.write(rows, on_bad_sample=policy, **generation)
        found = zip(rows, written.texts, written.is_read.tolist(), strict=True)
        return {row["id"]: text for row, text, is_read in found if is_read}

    def write(
        self,
        rows: Sequence[Row],
        *,
        with_losses: bool = False,
        with_texts: bool = True,
        partial: str | os.PathLike[str] | None = None,
        on_bad_sample: Literal["skip", "fail"] | None = None,
        **generation: Any,
    ) -> GeneratedTexts:
        """
        Write the text of every row. Clips of similar length share a batch, so that little of it is padding.

        Args:
            rows (`Sequence[Row]`): The rows, whose files may be missing. A warning lists clips that cannot be read.
            with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the loss of the rows' own texts.
            with_texts (`bool`, *optional*, defaults to `True`): Whether to generate texts, which takes most of the
                time; otherwise they are empty.
            partial (`str`, *optional*): Folder for finished parts, from which the same call resumes if it was
                interrupted. It is not removed.
            on_bad_sample (`str`, *optional*): As for the class, whose value is the default.
            generation: Settings of generation that replace those of the model.

        Returns:
            [`GeneratedTexts`]: Texts, the same on all processes.

        Raises:
            ValueError: If a row has no modality of the model, **or** more than `max_bad_fraction` of the clips, or all
                of them, cannot be read.
        """
        for row in rows:
            if not any(self.collator.has(row, modality) for modality in self.processor.modalities):
                raise InputError(
                    f"{row['id']} has none of the modalities of this model ({', '.join(self.processor.modalities)})."
                )
        in_order = sorted(rows, key=functools.partial(clip_size, modalities=self.processor.modalities))
        settings = {name: value for name, value in generation.items() if value is not None}
        folder, key = None if partial is None else Path(partial), ""
        if folder is not None:
            texts = json.dumps(
                [[row["text"], *row["captions"], *(row.get(name) for name in PROMPTS)] for row in in_order]
                + [sorted(settings.items()), with_losses, with_texts]
            )
            key = hashlib.sha256(f"{self.key(in_order)} {texts}".encode()).hexdigest()
        encoded = self.encode_rows(
            in_order,
            on_bad_sample=on_bad_sample,
            partial=folder,
            key=key,
            encode=functools.partial(write_batch, settings=settings, with_losses=with_losses, with_texts=with_texts),
            with_text=True,
        )
        place = {row["index"]: number for number, row in enumerate(rows)}
        read = torch.tensor([place[row["index"]] for row in encoded.rows], dtype=torch.long)
        scores, losses = torch.full((len(rows),), torch.nan), torch.full((len(rows), 2), torch.nan)
        scores[read], losses[read] = encoded.values["scores"], encoded.values["losses"]
        found = [""] * len(rows)
        tokenizer = cast(PreTrainedTokenizerBase, self.processor.backbone_tokenizer)
        for number, tokens in zip(read.tolist(), encoded.values["tokens"], strict=True):
            found[number] = tokenizer.decode(tokens[tokens != IGNORED], skip_special_tokens=True).strip()
        is_read = torch.zeros(len(rows), dtype=torch.bool)
        is_read[read] = True
        return GeneratedTexts(found, scores, losses, is_read, encoded.bad_samples)


def clip_size(row: Row, modalities: Sequence[Modality]) -> tuple[float, int]:
    """Return what rows are sorted by: the seconds of a segment, and the bytes of the clip's files."""
    start, end = row["start_seconds"] or 0.0, row["end_seconds"]
    files = [row[name] for name in modalities if name in FILE_COLUMNS]  # type: ignore[literal-required]
    sizes = [os.path.getsize(file) for file in files if isinstance(file, str) and os.path.exists(file)]
    return (0.0 if end is None else end - start), sum(sizes)


def write_batch(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    *,
    settings: Mapping[str, Any],
    with_losses: bool,
    with_texts: bool,
) -> EncodedBatch:
    """Write the texts of a batch of clips, and measure the losses of their own."""
    num_rows = len(batch["row_ids"])
    tokens, scores = [torch.empty(0, dtype=torch.long)] * num_rows, torch.zeros(num_rows)
    if with_texts:
        tokens, scores = model.generate(batch, **settings)
    # All batches have the same width, so that they can be put together.
    width = settings.get("max_new_tokens", model.generation_config.max_new_tokens)
    padded = torch.full((num_rows, width), IGNORED)
    for row, own in zip(padded, tokens, strict=True):
        row[: len(own)] = own
    losses = model.token_losses(**batch).cpu() if with_losses else torch.zeros(num_rows, 2)
    return EncodedBatch(
        [Encoded(None, {}) for _ in range(num_rows)], {"tokens": padded, "scores": scores, "losses": losses}
    )
