"""Localize actions: score windows around the points of each clip at which Charades measures them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from simple_multimodal.data.rows import Row
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.charades import NUM_POINTS, point_labels, point_seconds
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier


def score_points(
    classifier: VideoClassifier,
    rows: Sequence[Row],
    window: float,
    *,
    partial: str | os.PathLike[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Score all labels at 25 points of each clip, from a window around each. At the ends of a clip the window is moved
    inside; a clip that is shorter is seen whole.

    Args:
        classifier ([`VideoClassifier`]): The model.
        rows (`Sequence[Row]`): Rows with `length_seconds`, and `actions` as dictionaries with `label`, `start_seconds`
            and `end_seconds`.
        window (`float`): Length of a window in seconds.
        partial (`str`, *optional*): Folder for finished parts, see [`VideoClassifier.classify_rows`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Probabilities, NaN where a window cannot be read, and which labels apply,
        `(num_clips, 25, num_labels)`, float64 and bool.

    Raises:
        ValueError: If a row lacks what it needs, **or** is a segment of a file.
    """
    config = classifier.model.config
    windows: list[Row] = []
    actions, lengths = [], []
    for row in rows:
        own, length = _actions_of(row)
        actions.append([(config.label2id[action["label"]], *_times(action)) for action in own])
        lengths.append(length)
        for point in point_seconds([length])[0].tolist():
            start = max(min(point - window / 2, length - window), 0.0)
            end = min(start + window, length)
            windows.append(cast(Row, {**row, "start_seconds": start, "end_seconds": end, "index": len(windows)}))
    folder = None if partial is None else Path(partial, "windows")
    scores = classifier.classify_rows(windows, partial=folder)
    probabilities = classifier.probabilities(scores.logits).double().numpy()
    return (
        probabilities.reshape(len(rows), NUM_POINTS, config.num_labels),
        point_labels(actions, lengths, config.num_labels),
    )


def _times(action: Mapping[str, Any]) -> tuple[float, float]:
    return action["start_seconds"], action["end_seconds"]


def _actions_of(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Return the actions of a row and the length of its clip in seconds."""
    actions, length = row.get("actions"), row.get("length_seconds")
    if actions is None or length is None:
        raise InputError(
            f"Row {row['id']} has no `actions` or no `length_seconds`, which a localization is measured against. "
            "Leave localization_window out."
        )
    if row["start_seconds"] is not None or row["end_seconds"] is not None:
        raise InputError(f"Row {row['id']} is a segment of a file; only whole clips can be localized.")
    return actions, length
