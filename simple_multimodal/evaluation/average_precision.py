"""Average precision of each class, of all rows and of bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from simple_multimodal.errors import InputError

Ties: TypeAlias = Literal["threshold", "file_order"]
"""How equal scores are counted: see [`average_precisions`]."""

Statistics: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Function of counts `(num_resamples, num_groups)`, how often each group is in each resample, that returns statistics
by name, each with `num_resamples` as its last dimension."""


def average_precisions(scores: np.ndarray, labels: np.ndarray, *, ties: Ties = "threshold") -> np.ndarray:
    """
    Compute the average precision of each class: the mean, over its positives, of the precision at their rank.

    Args:
        scores (`np.ndarray` of shape `(num_rows, num_classes)`):
            Real scores, higher is better. A row of NaN or `-inf` has no scores: it ranks last.
        labels (`np.ndarray` of shape `(num_rows, num_classes)`, bool): Which classes each row has.
        ties (`str`, *optional*, defaults to `"threshold"`):
            `"threshold"` takes equal scores as one threshold, as scikit-learn's `average_precision_score` does, so
            that the order of rows has no influence. A positive at `-inf` is never retrieved: its precision is 0. Rows
            without scores therefore never raise the value.
            `"file_order"` ranks equal scores in the order of the rows, as the evaluation script of Charades does
            (Sigurdsson et al., 2016, arXiv:1604.01753), rows without scores included.

    Returns:
        `np.ndarray` of shape `(num_classes,)`, float64: NaN for a class without positives.

    Raises:
        ValueError: If scores are not a matrix of real numbers, labels are not bool of the same shape, **or** a row has
            NaN for some classes only.

    Example:

    ```python
    >>> average_precisions(np.array([[0.9], [0.5], [0.5]]), np.array([[True], [False], [True]]))
    array([0.83333333])
    >>> average_precisions(np.array([[0.9], [0.5], [0.5]]), np.array([[True], [True], [False]]), ties="file_order")
    array([1.])
    ```
    """
    scores, labels = check_scores(scores, labels)
    rankings = _rank_classes(scores, labels, np.arange(len(labels)), ties)
    return _resampled_average_precisions(rankings, np.ones((1, len(labels)), dtype=np.int64))[0][:, 0]


def precision_statistics(scores: np.ndarray, labels: np.ndarray, members: np.ndarray, *, ties: Ties) -> Statistics:
    """
    Return a function that computes mean average precision in resamples; the rows are sorted once.

    The precision at a positive compares it with the *other* rows of the resample: its own copies are not ranked before
    it. If they were, a resample would have a higher average precision than the rows, by more the rarer the class, and
    the interval of random scores would not include their value.

    Args:
        scores, labels (`np.ndarray` of shape `(num_rows, num_classes)`): Results of [`check_scores`].
        members (`np.ndarray` of shape `(num_rows,)`, int64): Number of the group of each row.
        ties (`str`): As for [`average_precisions`].

    Returns:
        `Callable`: Its statistics are `mAP`, the mean over the classes with positives in the resample, `wAP`, the same
        weighted by their positives, both NaN for a resample without positives; and `class_values` of shape
        `(num_classes, num_resamples)`, the average precisions, NaN for a class without positives.

    Raises:
        ValueError: If no row has a class.
    """
    if not labels.any():
        raise InputError(f"None of {len(labels)} rows has a class: there is nothing to measure. Check the labels.")
    rankings = _rank_classes(scores, labels, members, ties)

    def statistics(group_counts: np.ndarray) -> dict[str, np.ndarray]:
        precisions, num_positives = _resampled_average_precisions(rankings, group_counts)
        known = np.nan_to_num(precisions)
        with np.errstate(invalid="ignore"):
            mean = known.sum(axis=0) / (num_positives > 0).sum(axis=0)
            weighted = (known * num_positives).sum(axis=0) / num_positives.sum(axis=0)
        return {"mAP": mean, "wAP": weighted, "class_values": precisions}

    return statistics


def precision_chance(num_positives: np.ndarray, num_rows: int) -> dict[str, float]:
    """
    Return the expected `mAP` and `wAP` of rows that are ranked at random.

    They are above the shares of positives, which are the average precisions of constant scores (as one threshold),
    because a positive that comes first by chance has a high precision: 0.061 instead of 0.020 for 2 positives among
    100 rows.

    Args:
        num_positives (`np.ndarray` of shape `(num_classes,)`, int64): Number of positives of each class.
        num_rows (`int`): Number of ranked rows, at least 1.
    """
    counts = num_positives[num_positives > 0]
    harmonic = (1 / np.arange(1, num_rows + 1)).sum()
    others = (counts - 1) / max(num_rows - 1, 1)  # share of positives among the other rows
    precisions = (harmonic + others * (num_rows - harmonic)) / num_rows
    return {"mAP": float(precisions.mean()), "wAP": float((precisions * counts).sum() / counts.sum())}


def check_scores(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return scores and labels, both `(num_rows, num_classes)`, once checked; rows of NaN become `-inf`.

    Raises:
        ValueError: For the reasons listed in [`average_precisions`].
    """
    scores, labels = scores_by_class(scores), np.asarray(labels)
    if labels.shape != scores.shape or labels.dtype != np.bool_:
        raise InputError(
            f"Labels must be bool of the shape of the scores {scores.shape}, got shape {labels.shape} of "
            f"{labels.dtype}."
        )
    return scores, labels


def scores_by_class(scores: np.ndarray) -> np.ndarray:
    """Return scores `(num_rows, num_classes)` in floating point, once checked; rows of NaN become `-inf`."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype.kind not in "fiu":
        raise InputError(
            f"Scores must be real numbers of shape (num_rows, num_classes), neither 0, got shape {scores.shape} of "
            f"{scores.dtype}."
        )
    if scores.dtype.kind != "f":
        return scores.astype(np.float64)  # unsigned integers cannot be negated
    is_nan = np.isnan(scores)
    has_some = np.flatnonzero(is_nan.any(axis=1) & (scores > -np.inf).any(axis=1))
    if has_some.size:
        raise InputError(
            f"{has_some.size} of {len(scores)} rows have NaN for some classes (first: row {has_some[0]}). Check the "
            "inputs and the weights; a row without scores has NaN for all classes."
        )
    return np.where(is_nan, -np.inf, scores)


class _ClassRanking(NamedTuple):
    """
    Rows of one class from the highest score to the last positive.

    Args:
        members (`np.ndarray` of shape `(num_ranked,)`, int64): Group of each row, best row first.
        positives (`np.ndarray` of shape `(num_positives,)`, int64): Ranks of the positives, from 0, ascending.
        ends (`np.ndarray` of shape `(num_ends,)`, int64): Distinct ranks at which precision is measured, ascending.
        end_of (`np.ndarray` of shape `(num_positives,)`, int64): Position in `ends` of each positive.
        is_retrieved (`np.ndarray` of shape `(num_positives,)`, bool): `False` for a positive whose precision is 0.
    """

    members: np.ndarray
    positives: np.ndarray
    ends: np.ndarray
    end_of: np.ndarray
    is_retrieved: np.ndarray


def _rank_classes(scores: np.ndarray, labels: np.ndarray, members: np.ndarray, ties: Ties) -> list[_ClassRanking]:
    """Sort the rows of each class."""
    rankings = []
    for column, is_positive in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-column, kind="stable")
        positives = ends = np.flatnonzero(is_positive[order])
        is_retrieved = np.ones(len(positives), dtype=np.bool_)
        if ties == "threshold":
            ordered = column[order]
            run_ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
            ends = run_ends[np.searchsorted(run_ends, positives)]
            is_retrieved = ordered[positives] > -np.inf
        ends, end_of = np.unique(ends, return_inverse=True)
        num_ranked = ends[-1] + 1 if len(ends) else 0
        rankings.append(_ClassRanking(members[order[:num_ranked]], positives, ends, end_of, is_retrieved))
    return rankings


def _resampled_average_precisions(
    rankings: list[_ClassRanking], group_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the average precision, NaN without positives, and the number of positives of each class in each resample,
    both `(num_classes, num_resamples)`.
    """
    precisions = np.full((len(rankings), len(group_counts)), np.nan)
    num_positives = np.zeros(precisions.shape, dtype=np.int64)
    for number, ranking in enumerate(rankings):
        if len(ranking.positives) == 0:
            continue
        counts = group_counts.take(ranking.members, axis=1)  # (num_resamples, num_ranked)
        copies = counts.take(ranking.positives, axis=1)  # (num_resamples, num_positives)
        starts = np.append(0, ranking.ends[:-1] + 1)
        num_ahead = np.add.reduceat(counts, starts, axis=1).cumsum(axis=1).take(ranking.end_of, axis=1)
        last = np.searchsorted(ranking.end_of, ranking.end_of, side="right") - 1  # last positive of the same end
        num_right = copies.cumsum(axis=1).take(last, axis=1)
        precision = (num_right - copies + 1) / (num_ahead - copies + 1)
        num_positives[number] = copies.sum(axis=1)
        sums = (copies * precision * ranking.is_retrieved).sum(axis=1)
        np.divide(sums, num_positives[number], out=precisions[number], where=num_positives[number] > 0)
    return precisions, num_positives
