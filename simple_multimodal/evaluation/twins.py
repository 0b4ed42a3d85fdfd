"""Metrics of twins: whether captions choose their own clip from a pair of clips that differ in one thing."""

from __future__ import annotations

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval, bootstrap_interval, resampled_mean


def pair_choices(scores: np.ndarray) -> np.ndarray:
    """
    Return which of the two clips of a pair each of its two captions chooses.

    Args:
        scores (`np.ndarray` of shape `(num_pairs, 2, 2)`):
            `[p, i, j]` is the score of caption `i` of pair `p` with its clip `j`; caption `i` describes clip `i`.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2)`, int64: 0 or 1, the clip with the higher score; -1 for a tie.

    Raises:
        ValueError: If `scores` does not have that shape, is empty, or contains NaN.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or len(scores) == 0:
        raise InputError(f"Pair scores must have shape (num_pairs, 2, 2) with at least one pair, got {scores.shape}.")
    if np.isnan(scores).any():
        raise InputError(
            f"{int(np.isnan(scores).sum())} of {scores.size} pair scores are NaN. Check the inputs and the weights."
        )
    second_is_higher = scores[:, :, 1] > scores[:, :, 0]  # (num_pairs, 2)
    return np.where(scores[:, :, 0] == scores[:, :, 1], -1, second_is_higher).astype(np.int64)


def pair_accuracy(scores: np.ndarray, swapped_scores: np.ndarray | None = None) -> dict[str, float]:
    """
    Compute how often a caption chooses its own clip of two that differ in one thing, and whether that thing decides.

    Chance is 0.5; a tie counts as wrong. A choice flips if the caption chooses the other clip after that thing (such
    as the audio) is swapped between the two clips; a tie before or after does not count as a flip.

    Args:
        scores (`np.ndarray` of shape `(num_pairs, 2, 2)`):
            `[p, i, j]` is the score of caption `i` of pair `p` with its clip `j`; caption `i` describes clip `i`.
        swapped_scores (`np.ndarray` of shape `(num_pairs, 2, 2)`, *optional*):
            Scores of the same captions with clips `j` that have the other clip's audio (or frames).

    Returns:
        `dict[str, float]`: `pair_accuracy` over the `2 * num_pairs` choices, `num_pairs`, and, with
        `swapped_scores`, `pair_flip_share`.

    Raises:
        ValueError: For the reasons listed in [`pair_choices`], **or** if the shapes differ.

    Example:

    ```python
    >>> pair_accuracy(np.array([[[0.9, 0.2], [0.6, 0.6]]]))  # the second caption is undecided
    {'pair_accuracy': 0.5, 'num_pairs': 1}
    ```
    """
    choices = pair_choices(scores)
    metrics: dict[str, float] = {
        "pair_accuracy": float((choices == np.arange(2)).mean()),
        "num_pairs": len(choices),
    }
    if swapped_scores is not None:
        swapped_choices = pair_choices(swapped_scores)
        if swapped_choices.shape != choices.shape:
            raise InputError(
                f"Got {len(choices)} pairs but {len(swapped_choices)} swapped pairs; pass the same pairs in the same "
                "order."
            )
        flips = swapped_choices == 1 - choices  # never true for a tie before, as 1 - (-1) = 2
        metrics["pair_flip_share"] = float(flips.mean())
    return metrics


def pair_accuracy_interval(scores: np.ndarray) -> Interval:
    """Compute the bootstrap interval of [`pair_accuracy`], resampled by pair."""
    is_right = pair_choices(scores) == np.arange(2)  # (num_pairs, 2)
    return bootstrap_interval(is_right.ravel(), resampled_mean, groups=np.repeat(np.arange(len(is_right)), 2))
