"""Score generated texts, during training and on a benchmark: every row with a text counts once."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simple_multimodal.data.rows import Row, RowDataset, row_captions
from simple_multimodal.evaluation.caption_scores import caption_result
from simple_multimodal.evaluation.generated_text import TextResult
from simple_multimodal.evaluation.generated_text_files import ROWS_FILE, GeneratedText, write_generated_texts
from simple_multimodal.evaluation.transcript_scores import transcript_result
from simple_multimodal.evaluation.translation_scores import translation_result
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.generation.targets import has_text
from simple_multimodal.tasks.generation.translator import Translator

PRIMARY_METRICS = {"translation": "BLEU", "captioning": "CIDEr-D", "transcription": "WER"}
"""The metric that models are compared by, by task."""


class Written(NamedTuple):
    """
    Rows with what was generated for them.

    Args:
        rows (`list[Row]`): The rows.
        texts (`list[GeneratedText]`): Generated text and references of each row.
        values (`np.ndarray` of shape `(num_rows,)`): Value of each row, NaN for rows without references.
        metric (`str`): What the values are.
    """

    rows: list[Row]
    texts: list[GeneratedText]
    values: np.ndarray
    metric: str


def evaluate_texts(
    translator: Translator,
    dataset: RowDataset,
    *,
    task: str,
    protocol: str = "own",
    train_set: RowDataset | None = None,
    with_losses: bool = False,
    with_texts: bool = True,
    partial: str | os.PathLike[str] | None = None,
    **generation: Any,
) -> Evaluation:
    """
    Generate the text of every row, and score it against the row's own texts. A clip that cannot be read counts as an
    empty text; a row without a text is generated, but not scored.

    Args:
        translator ([`Translator`]): The model.
        dataset ([`RowDataset`]): The rows.
        task (`str`): Name of the task, which decides about the scores.
        protocol (`str`, *optional*, defaults to `"own"`): Name to publish the numbers under.
        train_set ([`RowDataset`], *optional*): Training rows; translations are also scored without the sentences that
            stand among their texts.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the loss, too, over the clips that
            can be read.
        with_texts (`bool`, *optional*, defaults to `True`): Whether to generate texts; otherwise only the loss is
            measured.
        partial (`str`, *optional*): Folder for finished parts, see [`Translator.write`].
        generation: Settings of generation, see [`Translator.write`].

    Raises:
        ValueError: If more than the translator's `max_bad_fraction` of the clips, or all of them, cannot be read.
    """
    rows = list(dataset.rows(files="named"))
    written = translator.write(rows, with_losses=with_losses, with_texts=with_texts, partial=partial, **generation)
    references = [row_captions(row) if has_text(row) else [] for row in rows]
    scored = [number for number, own in enumerate(references) if own]
    evaluation = Evaluation(
        metrics={},
        intervals={},
        counts={"rows": len(scored), "clips": len({rows[number]["group"] for number in scored})},
        protocol=protocol,
        primary_metric=None,
        num_rows=len(rows),
        bad_samples=written.bad_samples,
    )
    if len(scored) < len(rows):
        evaluation.counts["rows_without_text"] = len(rows) - len(scored)
    if written.bad_samples:
        evaluation.counts["bad_samples"] = len(written.bad_samples)
    if with_losses and scored:
        total, number = written.losses[written.is_read].double().sum(dim=0).tolist()
        evaluation.metrics |= {"loss": total / max(number, 1), "generation_loss": total / max(number, 1)}
    if not with_texts:
        return evaluation
    texts = [
        GeneratedText(row["id"], text, own, score if is_read else None)
        for row, text, own, score, is_read in zip(
            rows, written.texts, references, written.scores.tolist(), written.is_read.tolist(), strict=True
        )
    ]
    result = None
    values = np.full(len(rows), np.nan)
    if scored:
        result = _score(task, texts, scored, np.array([rows[number]["group"] for number in scored]), train_set)
        values[scored] = result.row_values
        evaluation.metrics |= {name: result.metrics[name] for name in result.intervals}
        evaluation.counts |= {
            name.removeprefix("num_"): int(value)
            for name, value in result.metrics.items()
            if name not in result.intervals and name != "num_rows"
        }
        evaluation.intervals |= result.intervals
        evaluation.primary_metric = PRIMARY_METRICS[task]
        evaluation.signatures |= result.signatures
    evaluation.rows = [
        {
            "id": own.row,
            "text": own.prediction,
            "references": list(own.references),
            "score": own.score,
            **({result.row_metric: float(value)} if result is not None and own.references else {}),
        }
        for own, value in zip(texts, values.tolist(), strict=True)
    ]
    evaluation.files[ROWS_FILE] = lambda path: write_generated_texts(path.parent, texts, result)
    evaluation.printed = {name: round(100 * evaluation.metrics[name], 2) for name in evaluation.intervals}
    evaluation.details = Written(rows, texts, values, "" if result is None else result.row_metric)
    return evaluation


def _score(
    task: str, texts: Sequence[GeneratedText], scored: Sequence[int], groups: np.ndarray, train_set: RowDataset | None
) -> TextResult:
    """Return the scores of a task's texts."""
    predictions = [texts[number].prediction for number in scored]
    references = [texts[number].references for number in scored]
    if task == "captioning":
        return caption_result(predictions, references, groups=groups)
    first = [own[0] for own in references]
    if task == "transcription":
        return transcript_result(predictions, first, groups=groups)
    known = None if train_set is None else {text for own in train_set.column("captions") for text in own}
    return translation_result(predictions, first, training_texts=known)
