"""Metrics of the pre-training objectives as (sum, count), so that batches and processes add up to the exact mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Total:
    """
    A sum and the number of things it is over.

    Args:
        sum (`float`): The sum: of correct predictions, of squared errors.
        count (`int`): Over how many.
    """

    sum: float
    count: int


def masked_token_accuracy(predictions: np.ndarray, labels: np.ndarray, *, ignore_index: int = -100) -> Total:
    """
    Right predictions among the masked tokens.

    Args:
        predictions (`np.ndarray` of shape `(batch_size, sequence_length)`, int64): Predicted token ids.
        labels (`np.ndarray` of shape `(batch_size, sequence_length)`, int64):
            True ids of masked tokens, `ignore_index` everywhere else.
        ignore_index (`int`, *optional*, defaults to -100): Label of a position that was not to be predicted.

    Returns:
        [`Total`] of right predictions over masked tokens.

    Raises:
        ValueError: If the shapes differ.
    """
    predictions, labels = _same_shape(predictions, labels)
    is_masked = labels != ignore_index
    return Total(int(((predictions == labels) & is_masked).sum()), int(is_masked.sum()))


def matching_accuracy(match_logits: np.ndarray, aligned: np.ndarray) -> Total:
    """
    Right decisions whether text and clip belong together.

    Args:
        match_logits (`np.ndarray` of shape `(num_pairs,)`, float): Above 0 means "belong together"; exactly 0 is
            undecided and wrong.
        aligned (`np.ndarray` of shape `(num_pairs,)`, bool): Whether they do.

    Returns:
        [`Total`] of right decisions over pairs.

    Raises:
        ValueError: If the shapes differ, or if `aligned` is not bool.
    """
    match_logits, aligned = _same_shape(match_logits, aligned)
    if aligned.dtype != np.bool_:
        raise ValueError(f"aligned must be bool (True: text and clip belong together), got {aligned.dtype}.")
    is_right = np.where(aligned, match_logits > 0, match_logits < 0)
    return Total(int(is_right.sum()), is_right.size)


def squared_error(predictions: np.ndarray, targets: np.ndarray) -> Total:
    """
    Squared error of predicted patches, summed in float64.

    Args:
        predictions (`np.ndarray` of shape `(batch_size, num_masked, patch_dim)`, float): Predicted masked patches.
        targets (`np.ndarray` of the same shape): The patches themselves, normalised as the model's loss has them.

    Returns:
        [`Total`] of squared errors over all values.

    Raises:
        ValueError: If the shapes differ.
    """
    predictions, targets = _same_shape(predictions, targets)
    return Total(float(np.square(predictions.astype(np.float64) - targets).sum()), targets.size)


def total_mean(totals: Iterable[Total]) -> float:
    """
    Mean over everything that the totals are over, each thing counted once.

    Args:
        totals (`Iterable[Total]`): One per batch or process; their counts may differ and may be 0.

    Returns:
        `float`: Sum of sums over sum of counts.

    Raises:
        ValueError: If the counts add up to 0: there is no mean of nothing.
    """
    totals = list(totals)
    count = sum(total.count for total in totals)
    if count == 0:
        raise ValueError(
            f"The mean of {len(totals)} totals is over 0 things. Leave the metric out, or check its masks."
        )
    return sum(total.sum for total in totals) / count


def _same_shape(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape:
        raise ValueError(f"Predictions {predictions.shape} and labels {labels.shape} must have the same shape.")
    return predictions, labels
