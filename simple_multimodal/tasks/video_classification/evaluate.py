"""Measure video classification, during training and on a benchmark: every labelled row counts once."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from simple_multimodal.data.rows import Row, RowDataset, row_captions
from simple_multimodal.evaluation.charades import (
    localization_result,
    write_classification_file,
    write_localization_file,
)
from simple_multimodal.evaluation.classification import (
    ClassificationResult,
    class_rows,
    multi_label_result,
    single_label_result,
)
from simple_multimodal.evaluation.glossary import TEXT_ONLY
from simple_multimodal.evaluation.retrieval import with_prefix
from simple_multimodal.evaluation.text_baseline import text_baseline_scores
from simple_multimodal.media.errors import MediaError
from simple_multimodal.models.losses import asymmetric_loss, label_smoothed_loss
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier
from simple_multimodal.tasks.video_classification.localization import score_points
from simple_multimodal.tasks.video_classification.targets import encode_labels, row_labels


class Classified(NamedTuple):
    """
    Rows with their labels and the scores of all labels.

    Args:
        rows (`list[Row]`): The labelled rows.
        labels (`list[list[str]]`): Labels of each row.
        names (`list[str]`): Names of all labels.
        probabilities (`torch.FloatTensor` of shape `(num_rows, num_labels)`): NaN where a clip could not be read.
    """

    rows: list[Row]
    labels: list[list[str]]
    names: list[str]
    probabilities: torch.Tensor


def evaluate_classes(
    classifier: VideoClassifier,
    dataset: RowDataset,
    *,
    protocol: str = "own",
    charades: bool = False,
    train_set: RowDataset | None = None,
    localization_window: float | None = None,
    with_losses: bool = False,
    partial: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """
    Score every label for every row. Rows whose labels are unknown are left out and counted; a clip that cannot be read
    counts as wrong.

    Args:
        classifier ([`VideoClassifier`]): The model.
        dataset ([`RowDataset`]): The rows.
        protocol (`str`, *optional*, defaults to `"own"`): Name to publish the numbers under.
        charades (`bool`, *optional*, defaults to `False`): Whether `mAP` is that of the authors of Charades, see
            [`multi_label_result`].
        train_set ([`RowDataset`], *optional*): Training rows, from which baselines are computed: what the texts alone
            reach, if the model sees any, and with one label per row, what the most frequent label reaches.
        localization_window (`float`, *optional*): Length in seconds of the windows around 25 points of each clip whose
            labels are measured as well, see [`localization_result`]. The rows need `actions` and `length_seconds`.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the loss, too, over the clips that
            can be read.
        partial (`str`, *optional*): Folder for finished parts, see [`VideoClassifier.classify_rows`].

    Raises:
        ValueError: If more than the classifier's `max_bad_fraction` of the clips, or all of them, cannot be read,
            **or** rows lack what a localization needs.
    """
    config, many = classifier.model.config, classifier.model.has_many_labels
    all_labels = row_labels(dataset)
    rows = [row for row, own in zip(dataset.rows(files="named"), all_labels, strict=True) if own is not None]
    labels = [own for own in all_labels if own is not None]
    names = [config.id2label[number] for number in range(config.num_labels)]
    groups = np.array([row["group"] for row in rows])
    targets = encode_labels(labels, config.label2id, many=many)
    scores = classifier.classify_rows(rows, partial=partial)
    probabilities = classifier.probabilities(scores.logits)
    evaluation = Evaluation(
        metrics={},
        intervals={},
        counts={"rows": len(rows), "clips": len(set(groups.tolist())), "classes": len(names)},
        protocol=protocol,
        primary_metric=None,
        num_rows=len(rows),
        bad_samples=scores.bad_samples,
        details=Classified(rows, labels, names, probabilities),
    )
    if len(rows) < len(all_labels):
        evaluation.counts["rows_without_labels"] = len(all_labels) - len(rows)
    if scores.bad_samples:
        evaluation.counts["bad_samples"] = len(scores.bad_samples)
    if with_losses:
        loss = _mean_loss(classifier, scores.logits[scores.is_read], targets[scores.is_read])
        evaluation.metrics |= {"loss": loss, "classification_loss": loss}

    def measure(values: np.ndarray) -> ClassificationResult:
        if many:
            return multi_label_result(values, targets.bool().numpy(), groups=groups, charades=charades)
        known = (
            None
            if train_set is None
            else encode_labels(_known(train_set, config.label2id), config.label2id, many=False)
        )
        return single_label_result(
            values, targets.numpy(), groups=groups, train_labels=None if known is None else known.numpy()
        )

    if not many or targets.any():  # else no label applies to any row, so that there is no precision
        result = measure(probabilities.double().numpy())
        evaluation.primary_metric = "mAP" if many else "top1_accuracy"
        evaluation.metrics |= result.metrics
        evaluation.intervals |= result.intervals
        evaluation.further_chance |= result.chance
        by_class = class_rows(result, names)
        evaluation.rows = by_class
        evaluation.tables["Classes from best to worst"] = _by_value(by_class, result.class_metric)
        if train_set is not None and classifier.takes("text") and any(row["captions"] or row["text"] for row in rows):
            alone = measure(_text_scores(train_set, rows, config.label2id, many=many))
            evaluation.metrics |= with_prefix({name: alone.metrics[name] for name in alone.intervals}, TEXT_ONLY)
            evaluation.intervals |= with_prefix(alone.intervals, TEXT_ONLY)
    ids = [row["id"] for row in rows]
    if charades:
        evaluation.files["classification.txt"] = functools.partial(
            write_classification_file, ids=ids, scores=probabilities.double().numpy()
        )
    if localization_window is not None:
        points, present = score_points(classifier, rows, localization_window, partial=partial)
        localized = localization_result(points, present, groups=groups)
        evaluation.counts["points"] = int(localized.metrics["num_points"])
        evaluation.metrics |= {name: localized.metrics[name] for name in localized.intervals}
        evaluation.intervals |= localized.intervals
        evaluation.further_chance |= localized.chance
        evaluation.files["localization.txt"] = functools.partial(write_localization_file, ids=ids, scores=points)
    evaluation.printed = {name: round(100 * evaluation.metrics[name], 2) for name in evaluation.intervals}
    return evaluation


def _by_value(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return the classes that rows have for a table, the best first."""
    measured = sorted((row for row in rows if row["num_rows"]), key=lambda row: -row[metric])
    return [
        {
            "label": row["label"],
            metric: row[metric],
            "95 % interval": " – ".join(f"{end:.3f}" for end in row["interval"]),
            "rows": row["num_rows"],
        }
        for row in measured
    ]


def _text_scores(train_set: RowDataset, rows: Sequence[Row], label2id: Mapping[str, int], *, many: bool) -> np.ndarray:
    """Return what a linear model of the words of the training rows gives the rows."""
    labels = _known(train_set, label2id)
    pairs = zip(train_set.rows(files="named"), labels, strict=True)
    labelled = [(row, own) for row, own in pairs if own or (many and own is not None)]
    targets = encode_labels([own for _, own in labelled], label2id, many=many)
    return text_baseline_scores(
        [_text_of(row) for row, _ in labelled],
        targets.bool().numpy() if many else targets.numpy(),
        [_text_of(row) for row in rows],
        num_classes=len(label2id),
    )


def _known(dataset: RowDataset, label2id: Mapping[str, int]) -> list[list[str] | None]:
    """Return the labels of each row that the model knows: training rows may be others than those of the model."""
    return [None if own is None else [label for label in own if label in label2id] for own in row_labels(dataset)]


def _text_of(row: Row) -> str:
    """Return the texts of a row; nothing if they are in a file that cannot be read."""
    try:
        return " ".join(row_captions(row))
    except MediaError:
        return ""


def _mean_loss(classifier: VideoClassifier, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the loss of training over rows that could be read, without label smoothing."""
    config = classifier.model.config
    if not classifier.model.has_many_labels:
        return float(label_smoothed_loss(logits.double(), targets)) / max(len(targets), 1)
    names = ("positive_focus", "negative_focus", "negative_margin")
    total = asymmetric_loss(logits.double(), targets, **{name: getattr(config, name) for name in names})
    return float(total) / max(targets.numel(), 1)
