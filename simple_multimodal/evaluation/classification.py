"""Classification with many labels per row or one: metrics, per class too, intervals by clip and chance levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.average_precision import (
    Statistics,
    check_scores,
    precision_chance,
    precision_statistics,
    scores_by_class,
)
from simple_multimodal.evaluation.bootstrap import (
    Interval,
    ResampledStatistic,
    bootstrap_interval,
    exact_interval,
    group_members,
    percentile_interval,
    resampled_groups,
    resampled_mean,
)

TOP_CUTOFFS = (1, 5)
"""Numbers of classes that a model may name for a row with one label."""

BLOCK_ARRAYS = 16
"""By how much blocks of resamples are smaller than in [`bootstrap_interval`], so that they stay in the processor's
cache, which every class reads them from."""


class ClassificationResult(NamedTuple):
    """
    Results of classification.

    Args:
        metrics (`dict[str, float]`): Metrics and counts by name.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that is not a count.
        chance (`dict[str, float]`):
            Chance levels that do not follow from the metrics. That of average precision is the expectation for rows
            ranked at random; that of F1 is the value of giving all classes to every row.
        class_metric (`str`): `"average_precision"` or `"accuracy"`, what the values of classes are.
        class_values (`np.ndarray` of shape `(num_classes,)`, float64): Value of each class; NaN if no row has it.
        class_counts (`np.ndarray` of shape `(num_classes,)`, int64): Number of rows that have each class.
        class_intervals (`np.ndarray` of shape `(num_classes, 2)`, float64): Interval of each value; NaN if no row has
            the class.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    chance: dict[str, float]
    class_metric: str
    class_values: np.ndarray
    class_counts: np.ndarray
    class_intervals: np.ndarray


def multi_label_result(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    charades: bool = False,
    threshold: float = 0.5,
) -> ClassificationResult:
    """
    Measure scores of rows that have any number of classes, including none.

    A class without positives is left out of the means over classes. A row without scores (all NaN or `-inf`, e.g. a
    clip that could not be read) is never retrieved and is given no class: its positives count as wrong.

    Args:
        scores (`np.ndarray` of shape `(num_rows, num_classes)`): Probabilities, or other real scores.
        labels (`np.ndarray` of shape `(num_rows, num_classes)`, bool): Which classes each row has.
        groups (`np.ndarray` of shape `(num_rows,)`, *optional*): Clip of each row; see [`bootstrap_interval`].
        charades (`bool`, *optional*, defaults to `False`):
            Whether `mAP` and `wAP` follow the evaluation script of Charades (Sigurdsson et al., 2016,
            arXiv:1604.01753): rows without any class, and rows without scores, rank behind all others, and equal
            scores are in the order of the rows. By default, both are over all rows and equal scores are one threshold,
            as in scikit-learn.
        threshold (`float`, *optional*, defaults to 0.5): A row is given the classes with a score above it.

    Returns:
        [`ClassificationResult`] with the metrics `mAP`, the mean average precision of the classes, `wAP`, the same
        weighted by their positives, with `charades` also `mAP_all_rows`, which is `mAP` as without it, `micro_F1` of
        all decisions, `macro_F1`, the mean F1 of the classes, and `num_rows`, `num_classes` and
        `num_measured_classes`, those with positives. The values of classes are those behind `mAP`.

    Raises:
        ValueError: For the reasons listed in [`average_precisions`], **or** if no row has a class.

    Example:

    ```python
    >>> labels = np.array([[True, False], [False, True], [True, True]])
    >>> result = multi_label_result(np.array([[0.9, 0.2], [0.6, 0.7], [0.4, 0.8]]), labels)
    >>> result.metrics["mAP"], result.metrics["micro_F1"]  # the third row's first class comes last and is missed
    (0.9166666666666666, 0.75)
    ```
    """
    scores, labels = check_scores(scores, labels)
    members = group_members(len(labels), groups)
    precision = all_rows = precision_statistics(scores, labels, members, ties="threshold")
    class_counts = labels.sum(axis=0)
    chance = precision_chance(class_counts, len(labels))
    if charades:
        has_class = labels.any(axis=1, keepdims=True)
        ranked = np.where(has_class, scores, -np.inf)
        precision = precision_statistics(ranked, labels, members, ties="file_order")
        chance = precision_chance(class_counts, int(has_class.sum())) | {"mAP_all_rows": chance["mAP"]}
    f1 = _f1_statistics(scores > threshold, labels, members)
    shares = class_counts / len(labels)
    chance["micro_F1"] = float(2 * shares.sum() / (len(shares) + shares.sum()))
    chance["macro_F1"] = float((2 * shares / (1 + shares))[class_counts > 0].mean())

    def statistics(group_counts: np.ndarray) -> dict[str, np.ndarray]:
        further = {"mAP_all_rows": all_rows(group_counts)["mAP"]} if charades else {}
        return precision(group_counts) | further | f1(group_counts)

    return resampled_result(statistics, labels, members, chance=chance)


def single_label_result(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    train_labels: np.ndarray | None = None,
) -> ClassificationResult:
    """
    Measure scores of rows that have one class each.

    A class with the same score as the right one ranks before it. A row without scores (all NaN or `-inf`), and a row
    whose label the model does not know, count as wrong.

    Args:
        scores (`np.ndarray` of shape `(num_rows, num_classes)`): Real scores, higher is better.
        labels (`np.ndarray` of shape `(num_rows,)`, int64): Class of each row; -1: one that the model does not know.
        groups (`np.ndarray` of shape `(num_rows,)`, *optional*): Clip of each row; see [`bootstrap_interval`].
        train_labels (`np.ndarray` of shape `(num_train,)`, int64, *optional*): Labels of the training rows, for the
            accuracies of always naming the most frequent ones; among equally frequent ones, lower labels come first.

    Returns:
        [`ClassificationResult`] with the metrics `top1_accuracy`, `top5_accuracy`, the share of rows whose label is
        among the five highest scores (left out if there are fewer than six classes), `mean_class_accuracy`, the mean
        top-1 accuracy of the classes, and `num_rows`, `num_classes` and `num_measured_classes`, those that rows have;
        all labels that the model does not know are one class of these. With `train_labels` also
        `majority_top1_accuracy` and `majority_top5_accuracy`.

    Raises:
        ValueError: If scores are not a matrix of real numbers, a row has NaN for some classes only, **or** labels are
            not integers from -1 to `num_classes - 1`, one per row.

    Example:

    ```python
    >>> scores = np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.1, 0.3, 0.6]])
    >>> single_label_result(scores, np.array([0, 1, 2])).metrics["top1_accuracy"]  # the tie of the second row is wrong
    0.6666666666666666
    ```
    """
    scores, labels = scores_by_class(scores), np.asarray(labels)
    num_rows, num_classes = scores.shape
    _check_labels(labels, num_classes, "Labels")
    if len(labels) != num_rows:
        raise InputError(f"Every row needs one label: got {len(labels)} labels for {num_rows} rows of scores.")
    members = group_members(num_rows, groups)
    ranks = (scores >= scores[np.arange(num_rows), labels][:, None]).sum(axis=1)
    ranks[(labels < 0) | ~(scores > -np.inf).any(axis=1)] = num_classes + 1
    cutoffs = [cutoff for cutoff in TOP_CUTOFFS if cutoff == 1 or num_classes > cutoff]
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for cutoff in cutoffs:
        metrics[f"top{cutoff}_accuracy"] = float((ranks <= cutoff).mean())
        intervals[f"top{cutoff}_accuracy"] = bootstrap_interval(ranks <= cutoff, resampled_mean, groups=members)
    is_correct = ranks == 1
    mean_class_accuracy = _mean_by_class(labels)
    everything = np.ones((1, num_rows), dtype=np.int64)
    metrics["mean_class_accuracy"] = float(mean_class_accuracy(is_correct, everything)[0])
    intervals["mean_class_accuracy"] = (
        intervals["top1_accuracy"]  # exact
        if (is_correct == is_correct[0]).all()
        else bootstrap_interval(is_correct, mean_class_accuracy, groups=members)
    )
    if train_labels is not None:
        train_labels = np.asarray(train_labels)
        _check_labels(train_labels, num_classes, "Training labels")
        by_frequency = np.argsort(-np.bincount(train_labels[train_labels >= 0], minlength=num_classes), kind="stable")
        for cutoff in cutoffs:
            metrics[f"majority_top{cutoff}_accuracy"] = float(np.isin(labels, by_frequency[:cutoff]).mean())
    metrics |= {"num_rows": num_rows, "num_classes": num_classes, "num_measured_classes": len(np.unique(labels))}
    class_counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    class_values = np.full(num_classes, np.nan)
    class_intervals = np.full((num_classes, 2), np.nan)
    for label in np.flatnonzero(class_counts):
        rows = labels == label
        class_values[label] = is_correct[rows].mean()
        class_intervals[label] = bootstrap_interval(is_correct[rows], resampled_mean, groups=members[rows])
    return ClassificationResult(metrics, intervals, {}, "accuracy", class_values, class_counts, class_intervals)


def class_rows(result: ClassificationResult, names: Sequence[str]) -> list[dict]:
    """
    Return one JSON-serializable row per class, in the order of the classes.

    Args:
        result ([`ClassificationResult`]): The results.
        names (`Sequence[str]` of length `num_classes`): Name of each class.

    Returns:
        `list[dict]` with `label`, `average_precision` or `accuracy`, `interval`, both `None` for a class that no row
        has, and `num_rows`, how many rows have it.

    Raises:
        ValueError: If the number of names is not that of the classes.
    """
    if len(names) != len(result.class_values):
        raise InputError(f"Every class needs one name: got {len(names)} names for {len(result.class_values)} classes.")
    return [
        {
            "label": name,
            result.class_metric: float(value) if count else None,
            "interval": interval.tolist() if count else None,
            "num_rows": int(count),
        }
        for name, value, interval, count in zip(
            names, result.class_values, result.class_intervals, result.class_counts, strict=True
        )
    ]


def resampled_result(
    statistics: Statistics, labels: np.ndarray, members: np.ndarray, *, chance: dict[str, float]
) -> ClassificationResult:
    """
    Compute metrics over all rows, and their bootstrap intervals by clip.

    A metric that is exactly 0 or 1 has the exact interval of as many trials as there are clips, as in
    [`bootstrap_interval`]. A resample in which a metric is not defined, because it has no positives, is left out.

    Args:
        statistics (`Callable`): The metrics, and `class_values` as average precisions.
        labels (`np.ndarray` of shape `(num_rows, num_classes)`, bool): Which classes each row has.
        members (`np.ndarray` of shape `(num_rows,)`, int64): Number of the clip of each row, from 0.
        chance (`dict[str, float]`): Chance levels by metric name.
    """
    num_groups = int(members.max()) + 1
    values = statistics(np.ones((1, num_groups), dtype=np.int64))
    blocks = [
        statistics(group_counts)
        for group_counts in resampled_groups(num_groups, num_values=BLOCK_ARRAYS * len(labels))
    ]
    resampled = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in values}
    class_values = values.pop("class_values")[:, 0]
    metrics = {name: float(value[0]) for name, value in values.items()}
    intervals = {name: _interval(value, resampled[name], num_groups) for name, value in metrics.items()}
    class_counts = labels.sum(axis=0)
    class_intervals = np.full((len(class_counts), 2), np.nan)
    for label in np.flatnonzero(class_counts):
        num_own = len(np.unique(members[labels[:, label]]))
        class_intervals[label] = _interval(class_values[label], resampled["class_values"][label], num_own)
    metrics |= {
        "num_rows": len(labels),
        "num_classes": len(class_counts),
        "num_measured_classes": int((class_counts > 0).sum()),
    }
    return ClassificationResult(
        metrics, intervals, chance, "average_precision", class_values, class_counts, class_intervals
    )


def _interval(value: float, resampled: np.ndarray, num_groups: int) -> Interval:
    """Return the interval of a metric from its values in resamples `(num_resamples,)`, NaN where it is not defined."""
    if value in (0, 1):
        return exact_interval(value == 1, num_groups)
    return percentile_interval(resampled[~np.isnan(resampled)])


def _f1_statistics(is_given: np.ndarray, labels: np.ndarray, members: np.ndarray) -> Statistics:
    """Return a function that computes micro- and macro-F1 of the classes given to rows, `(num_rows, num_classes)`."""
    right = (is_given & labels).astype(np.float32)  # sums of counts are exact up to 2^24
    both = is_given.astype(np.float32) + labels
    positives = labels.astype(np.float32)

    def statistics(group_counts: np.ndarray) -> dict[str, np.ndarray]:
        counts = group_counts[:, members].astype(np.float32)
        num_right, num_both, num_positives = (
            (counts @ values).astype(np.float64) for values in (right, both, positives)
        )  # (num_resamples, num_classes)
        is_measured = num_positives > 0
        with np.errstate(invalid="ignore"):
            micro = 2 * num_right.sum(axis=1) / num_both.sum(axis=1)
            of_classes = np.divide(2 * num_right, num_both, out=np.zeros_like(num_both), where=is_measured)
            macro = of_classes.sum(axis=1) / is_measured.sum(axis=1)
        return {"micro_F1": micro, "macro_F1": macro}

    return statistics


def _mean_by_class(labels: np.ndarray) -> ResampledStatistic:
    """Return a statistic of one value per row: the mean over classes of the mean of their rows."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(labels[order]) != 0))

    def statistic(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        totals = np.add.reduceat(counts[:, order], starts, axis=1)  # (num_resamples, num_measured_classes)
        sums = np.add.reduceat((counts * values)[:, order], starts, axis=1)
        means = np.divide(sums, totals, out=np.zeros(totals.shape), where=totals > 0)
        return means.sum(axis=1) / (totals > 0).sum(axis=1)

    return statistic


def _check_labels(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Raise an error if labels are not integers from -1 to `num_classes - 1`, at least one."""
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{what} must be integers, one per row, at least one, got shape {labels.shape} of {labels.dtype}."
        )
    if labels.min() < -1 or labels.max() >= num_classes:
        raise InputError(
            f"{what} must be from 0 to {num_classes - 1}, or -1 if unknown to the model, got {labels.min()} to "
            f"{labels.max()}."
        )
