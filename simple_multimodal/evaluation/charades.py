"""Charades: actions at 25 points of each clip, and the files that its evaluation scripts read.

Source of both: Sigurdsson et al., 2016, arXiv:1604.01753, and the evaluation scripts that come with the data set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.average_precision import (
    check_scores,
    precision_chance,
    precision_statistics,
    scores_by_class,
)
from simple_multimodal.evaluation.bootstrap import group_members
from simple_multimodal.evaluation.classification import ClassificationResult, resampled_result
from simple_multimodal.evaluation.result_files import write_whole

NUM_POINTS = 25
"""Number of points of a clip at which actions are localized."""


def point_seconds(lengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """
    Return the times at which actions are localized: `k / 25` of the length of each clip, from its start; the end of a
    clip is not one of them.

    Args:
        lengths (`Sequence[float]` or `np.ndarray` of shape `(num_clips,)`): Length of each clip in seconds.

    Returns:
        `np.ndarray` of shape `(num_clips, 25)`, float64: Times in seconds.
    """
    return np.arange(NUM_POINTS) / NUM_POINTS * np.asarray(lengths, dtype=np.float64)[:, None]


def point_labels(
    actions: Sequence[Sequence[tuple[int, float, float]]], lengths: Sequence[float] | np.ndarray, num_classes: int
) -> np.ndarray:
    """
    Return which actions take place at each of the 25 points of each clip. Both ends of an action belong to it.

    Args:
        actions (`Sequence` of length `num_clips`):
            The actions of each clip, as `(class, start_seconds, end_seconds)`, as annotated; may be empty. An action
            that ends before it starts has no point.
        lengths (`Sequence[float]` or `np.ndarray` of shape `(num_clips,)`): Length of each clip in seconds.
        num_classes (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(num_clips, 25, num_classes)`, bool.

    Raises:
        ValueError: If the numbers of clips differ, **or** a class is not from 0 to `num_classes - 1`.

    Example:

    ```python
    >>> labels = point_labels([[(1, 2.0, 4.0)]], [25.0], num_classes=2)
    >>> labels[0, :, 1].nonzero()[0]
    array([2, 3, 4])
    ```
    """
    if len(actions) != len(lengths):
        raise InputError(f"Every clip needs its actions and one length: got {len(actions)} and {len(lengths)}.")
    labels = np.zeros((len(actions), NUM_POINTS, num_classes), dtype=np.bool_)
    for clip, (own, times) in enumerate(zip(actions, point_seconds(lengths), strict=True)):
        for label, start, end in own:
            if not 0 <= label < num_classes:
                raise InputError(f"Classes must be from 0 to {num_classes - 1}, got {label} in clip {clip}.")
            labels[clip, :, label] |= (start <= times) & (times <= end)
    return labels


def localization_result(
    scores: np.ndarray, labels: np.ndarray, *, groups: np.ndarray | None = None
) -> ClassificationResult:
    """
    Measure scores of the 25 points of each clip as the evaluation script of Charades does.

    Average precision is over all points of all clips, in the order of clips and then of points if scores are equal.
    Points without any action are ranked like all others, unlike the clips without actions in classification. A clip
    without scores (NaN) ranks last.

    Args:
        scores (`np.ndarray` of shape `(num_clips, 25, num_classes)`): Real scores, higher is better.
        labels (`np.ndarray` of shape `(num_clips, 25, num_classes)`, bool): Result of [`point_labels`].
        groups (`np.ndarray` of shape `(num_clips,)`, *optional*):
            Group of each clip for the intervals; by default every clip is its own group.

    Returns:
        [`ClassificationResult`] with the metrics `localization_mAP` and `localization_wAP`, and `num_points`,
        `num_classes` and `num_measured_classes`. Counts of classes are numbers of points.

    Raises:
        ValueError: If shapes differ, labels are not bool, a point has NaN for some classes only, **or** there is no
            action at any point.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 3 or scores.shape[1] != NUM_POINTS:
        raise InputError(f"Scores must have shape (num_clips, {NUM_POINTS}, num_classes), got {scores.shape}.")
    if labels.shape != scores.shape:
        raise InputError(f"Scores and labels must have the same shape, got {scores.shape} and {labels.shape}.")
    members = group_members(len(scores), groups).repeat(NUM_POINTS)
    num_classes = scores.shape[2]
    scores, labels = check_scores(scores.reshape(-1, num_classes), labels.reshape(-1, num_classes))
    precision = precision_statistics(scores, labels, members, ties="file_order")

    def statistics(group_counts: np.ndarray) -> dict[str, np.ndarray]:
        values = precision(group_counts)
        return {name if name == "class_values" else f"localization_{name}": value for name, value in values.items()}

    chance = {
        f"localization_{name}": level for name, level in precision_chance(labels.sum(axis=0), len(labels)).items()
    }
    result = resampled_result(statistics, labels, members, chance=chance)
    result.metrics["num_points"] = result.metrics.pop("num_rows")
    return result


def write_classification_file(path: str | os.PathLike[str], ids: Sequence[str], scores: np.ndarray) -> None:
    """
    Write scores of clips for the classification script of Charades: lines `id s0 … s156`, separated by blanks.

    Clips without scores (all NaN or `-inf`) are left out: the script ranks them behind all others.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        ids (`Sequence[str]` of length `num_clips`): Id of each clip.
        scores (`np.ndarray` of shape `(num_clips, num_classes)`): Score of each class, in the order of `c000` to
            `c156`. They are written with all their digits, so that none become equal.

    Raises:
        ValueError: If ids are not distinct, are empty or contain white space, there is not one per clip, scores are
            not real numbers, **or** a clip has NaN for some classes only.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise InputError(f"Scores must have shape (num_clips, num_classes), got {scores.shape}.")
    _write_lines(path, ids, scores[:, None], has_points=False)


def write_localization_file(path: str | os.PathLike[str], ids: Sequence[str], scores: np.ndarray) -> None:
    """
    Write scores of the 25 points of clips for the localization script of Charades: lines `id k s0 … s156`, separated
    by blanks, `k` from 1 to 25.

    Points without scores (all NaN or `-inf`) are left out: the script ranks them behind all others.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        ids (`Sequence[str]` of length `num_clips`): Id of each clip.
        scores (`np.ndarray` of shape `(num_clips, 25, num_classes)`): Score of each class at each point, in the order
            of `c000` to `c156`. They are written with all their digits, so that none become equal.

    Raises:
        ValueError: For the reasons listed in [`write_classification_file`], **or** if there are not 25 points.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1] != NUM_POINTS:
        raise InputError(f"Scores must have shape (num_clips, {NUM_POINTS}, num_classes), got {scores.shape}.")
    _write_lines(path, ids, scores, has_points=True)


def _write_lines(path: str | os.PathLike[str], ids: Sequence[str], scores: np.ndarray, *, has_points: bool) -> None:
    """Write the points of each clip, `(num_clips, num_points, num_classes)`, that have scores."""
    if len(ids) != len(scores):
        raise InputError(f"Every clip needs one id: got {len(ids)} ids for {len(scores)} clips.")
    unusable = next((name for name in ids if name.split() != [name]), None)
    if unusable is not None:
        raise InputError(f"Ids must not be empty or contain white space, which separates scores; got {unusable!r}.")
    if len(set(ids)) < len(ids):
        raise InputError(f"Ids must be distinct: {len(ids)} clips have {len(set(ids))} ids.")
    points = scores_by_class(scores.reshape(-1, scores.shape[2])).reshape(scores.shape)

    def lines() -> Iterator[str]:
        for name, clip in zip(ids, points, strict=True):
            for number, point in enumerate(clip, start=1):
                if (point > -np.inf).any():
                    yield " ".join([name, *([str(number)] if has_points else []), *point.astype(str)]) + "\n"

    write_whole(path, lines())
