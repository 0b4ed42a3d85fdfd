"""Measure video classification, during training and on a benchmark: every labelled row counts once."""

import os
from typing import NamedTuple

import numpy as np
import torch

from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.evaluation.classification import multi_label_result, single_label_result, submission_lines
from simple_multimodal.models.losses import asymmetric_loss, label_smoothed_loss
from simple_multimodal.tasks.base import Evaluation
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier
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
    protocol: str,
    with_losses: bool = False,
    official: bool = False,
    partial: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """
    Score every label for every row. Rows whose labels are unknown are left out and counted; a clip that cannot be read
    counts as wrong.

    Args:
        classifier ([`VideoClassifier`]): The model.
        dataset ([`RowDataset`]): The rows.
        protocol (`str`): Name to publish the numbers under.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the loss, too, over the clips that
            can be read.
        official (`bool`, *optional*, defaults to `False`): Whether `mAP` is that of the authors of Charades, see
            [`multi_label_result`].
        partial (`str`, *optional*): Folder for finished parts, see [`VideoClassifier.classify_rows`].

    Raises:
        ValueError: If more than the classifier's `max_bad_fraction` of the clips, or all of them, cannot be read.
    """
    config, many = classifier.model.config, classifier.model.has_many_labels
    all_labels = row_labels(dataset)
    rows = [row for row, own in zip(dataset.rows(files="named"), all_labels, strict=True) if own is not None]
    labels = [own for own in all_labels if own is not None]
    scores = classifier.classify_rows(rows, partial=partial)
    targets = encode_labels(labels, config.label2id, many=many)
    names = [config.id2label[number] for number in range(config.num_labels)]
    groups = np.array([row["group"] for row in rows])
    measure = multi_label_result if many else single_label_result
    settings = {"official": official} if many else {}
    result = measure(
        scores.logits.numpy(), targets.bool().numpy() if many else targets.numpy(), groups=groups, **settings
    )
    metrics, counts = (
        dict(result.metrics),
        {"rows": len(rows), "clips": len(set(groups.tolist())), "classes": len(names)},
    )
    if len(rows) < len(all_labels):
        counts["rows_without_labels"] = len(all_labels) - len(rows)
    if scores.bad_samples:
        counts["bad_samples"] = len(scores.bad_samples)
    if with_losses:
        loss = _mean_loss(classifier, scores.logits[scores.is_read], targets[scores.is_read])
        metrics = {"loss": loss, "classification_loss": loss, **metrics}
    primary = "mAP" if many else "top1_accuracy"
    probabilities = classifier.probabilities(scores.logits)
    return Evaluation(
        metrics=metrics,
        intervals=result.intervals,
        counts=counts,
        protocol=protocol,
        primary_metric=primary,
        num_rows=len(rows),
        bad_samples=scores.bad_samples,
        rows=[{"label": name, **values} for name, values in zip(names, result.per_class, strict=True)],
        files={"scores.txt": submission_lines([row["id"] for row in rows], probabilities.numpy())},
        printed={name: round(100 * value, 2) for name, value in result.metrics.items()},
        details=Classified(rows, labels, names, probabilities),
    )


def _mean_loss(classifier: VideoClassifier, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the loss of training over rows that could be read, without label smoothing."""
    config = classifier.model.config
    if not classifier.model.has_many_labels:
        return float(label_smoothed_loss(logits.double(), targets)) / max(len(targets), 1)
    names = ("positive_focus", "negative_focus", "negative_margin")
    total = asymmetric_loss(logits.double(), targets, **{name: getattr(config, name) for name in names})
    return float(total) / max(targets.numel(), 1)
