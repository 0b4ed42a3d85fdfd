"""Measure question answering, during training and on a benchmark: every question counts once."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from simple_multimodal.alpro.metrics import alpro_question_answering_metrics, padded_positions, question_answering_rows
from simple_multimodal.data.rows import RowDataset, clip_file
from simple_multimodal.evaluation.protocols import ANSWER_TYPES
from simple_multimodal.evaluation.question_answering import answer_result, predicted_labels
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.question_answering.targets import question_pairs

ALPRO_PROCESSES = 8
"""Number of processes behind ALPRO's published numbers, in which questions about the first clips count twice."""


def evaluate_answers(
    answerer: QuestionAnswerer,
    dataset: RowDataset,
    *,
    protocol: str = "own",
    train_set: RowDataset | None = None,
    with_losses: bool = False,
    alpro: bool = False,
    partial: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """
    Answer every question once. A question counts as wrong if the model does not know its answer, or if its clip cannot
    be read.

    Args:
        answerer ([`QuestionAnswerer`]): The model.
        dataset ([`RowDataset`]): The questions.
        protocol (`str`, *optional*, defaults to `"own"`): Name to publish the numbers under.
        train_set ([`RowDataset`], *optional*): Training questions, from which accuracies of answers without any clip
            are computed as baselines.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the cross-entropy, too, over the
            questions whose answer the model knows.
        alpro (`bool`, *optional*, defaults to `False`): Whether to print the numbers as ALPRO's eight processes count
            them, some questions twice.
        partial (`str`, *optional*): Folder for finished parts, see [`QuestionAnswerer.answer_rows`].

    Raises:
        ValueError: If more than the answerer's `max_bad_fraction` of the clips, or all of them, cannot be read.
    """
    rows: list[dict[str, Any]] = [dict(row) for row in dataset.rows(files="named")]
    logits, is_read, bad_samples = answerer.answer_rows(dataset, partial=partial)
    labels = np.full(len(rows), -1)  # no answer
    labels[is_read.numpy()] = predicted_labels(logits[is_read].numpy())
    id2label = answerer.model.config.id2label
    train_pairs = () if train_set is None else question_pairs(train_set)
    result = answer_result(labels, rows, id2label=id2label, train_pairs=train_pairs)
    chance: dict[str, float] = {}
    counts = {"questions": len(rows), "clips": len({row["group"] for row in rows})}
    metrics = result.metrics
    if with_losses:
        label2id = {answer: label for label, answer in id2label.items()}
        right = torch.tensor([label2id.get(row.get("answer") or "", -1) for row in rows])
        is_known = is_read & (right >= 0)
        losses = F.cross_entropy(logits[is_known], right[is_known], reduction="none").double()
        loss = float(losses.mean()) if len(losses) else 0.0
        metrics = {"loss": loss, "answer_loss": loss, **metrics}
        chance = dict.fromkeys(("loss", "answer_loss"), math.log(len(id2label)))
        counts["known_answers"] = len(losses)
    if bad_samples:
        counts["bad_samples"] = len(bad_samples)
    types = [row.get("answer_type") or "" for row in rows]
    printed = {"overall_acc": round(100 * result.metrics["accuracy"], 2)}
    counted = padded_positions(len(rows), ALPRO_PROCESSES) if alpro else np.arange(len(rows))
    if alpro or set(types) <= set(ANSWER_TYPES):
        printed = alpro_question_answering_metrics(result.is_correct[counted], [types[n] for n in counted])
    return Evaluation(
        metrics=metrics,
        intervals=result.intervals,
        counts=counts,
        protocol=protocol,
        primary_metric="accuracy",
        num_rows=len(rows),
        bad_samples=bad_samples,
        further_chance=chance,
        rows=question_answering_rows(
            labels,
            [row["captions"][0] for row in rows],
            [Path(clip_file(row) or "").stem for row in rows],
            [row.get("answer") or "" for row in rows],
            types,
        ),
        printed=printed,
    )
