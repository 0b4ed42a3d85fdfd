"""Percentile bootstrap of any metric over queries, resampled by clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from simple_multimodal.errors import InputError

# Maximum number of elements of a (resamples, values) block, which limits memory to about 32 MiB per array.
MAX_BOOTSTRAP_ELEMENTS = 1 << 22

NUM_RESAMPLES = 1000
SEED = 0
"""Random seed of all intervals: equal values have equal intervals, and all metrics of a set use the same resamples."""
LEVEL = 0.95
"""Fraction of the resamples inside an interval."""

ResampledStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
Interval = tuple[float, float]


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Compute the mean of each resample.

    Args:
        values (`np.ndarray` of shape `(num_values,)`): The values.
        counts (`np.ndarray` of shape `(num_resamples, num_values)`, int64): How often each value is in each resample.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`, float64.
    """
    return counts @ values.astype(np.float64) / counts.sum(axis=1)


def resampled_median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Compute the median of each resample, the mean of the two middle values if their number is even.

    Args:
        values (`np.ndarray` of shape `(num_values,)`): The values.
        counts (`np.ndarray` of shape `(num_resamples, num_values)`, int64): How often each value is in each resample.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`, float64.
    """
    order = np.argsort(values, kind="stable")
    ends = counts[:, order].cumsum(axis=1)  # (num_resamples, num_values): first position after each sorted value
    totals = ends[:, -1:]
    lower = (ends <= (totals - 1) // 2).sum(axis=1)
    upper = (ends <= totals // 2).sum(axis=1)
    ordered = values[order].astype(np.float64)
    return (ordered[lower] + ordered[upper]) / 2


def bootstrap_interval(
    values: np.ndarray,
    statistic: ResampledStatistic,
    *,
    groups: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """
    Compute a percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Whole groups are sampled with replacement, as many as there are, each with all its values. Captions of one clip,
    which are not independent, therefore do not make the interval too narrow.

    If all answers are right, or none, so are those of all resamples: the mean of equal truth values has the exact
    interval of as many independent trials as there are groups (Clopper and Pearson, Biometrika 26, 1934). With only a
    few wrong (or right) answers, the bootstrap's interval is rather too narrow.

    Args:
        values (`np.ndarray` of shape `(num_values,)`): One value per query; bool (right or wrong) or numbers.
        statistic (`Callable`):
            [`resampled_mean`], [`resampled_median`], or another function of `values` and `counts` of shape
            `(num_resamples, num_values)`, how often each value is in each resample, that returns `(num_resamples,)`.
        groups (`np.ndarray` of shape `(num_values,)`, *optional*):
            Group (clip) of each value; by default every value is its own group.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.

    Returns:
        `tuple[float, float]`: The 2.5 % and 97.5 % quantiles of the statistic, or the exact interval.

    Raises:
        ValueError: If `values` is empty or not one-dimensional, `groups` has a different length, **or**
            `num_resamples` is below 1.
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise InputError(f"The bootstrap needs one value per query, at least one, got shape {values.shape}.")
    if num_resamples < 1:
        raise InputError(f"num_resamples must be at least 1, got {num_resamples}.")

    members = group_members(len(values), groups)
    num_groups = int(members.max()) + 1
    if statistic is resampled_mean and values.dtype == bool and (values == values[0]).all():
        return exact_interval(bool(values[0]), num_groups)
    statistics = [
        statistic(values, group_counts[:, members])  # counts: (size, num_values)
        for group_counts in resampled_groups(num_groups, num_values=len(values), num_resamples=num_resamples)
    ]
    return percentile_interval(np.concatenate(statistics))


def group_members(num_values: int, groups: np.ndarray | None) -> np.ndarray:
    """
    Return the number of the group of each value, from 0; without `groups`, every value is its own group.

    Args:
        num_values (`int`): Number of values.
        groups (`np.ndarray` of shape `(num_values,)`, *optional*): Group (clip) of each value.

    Returns:
        `np.ndarray` of shape `(num_values,)`, int64.

    Raises:
        ValueError: If `groups` has a different length.
    """
    if groups is None:
        return np.arange(num_values)
    if np.shape(groups) != (num_values,):
        raise InputError(f"The bootstrap needs one group per value: got {np.shape(groups)} for {(num_values,)}.")
    return np.unique(groups, return_inverse=True)[1]


def resampled_groups(num_groups: int, *, num_values: int, num_resamples: int = NUM_RESAMPLES) -> Iterator[np.ndarray]:
    """
    Sample whole groups with replacement, as many as there are. All metrics of a set use the same resamples.

    Args:
        num_groups (`int`): Number of groups.
        num_values (`int`): Number of values of all groups, which limits the size of the blocks.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.

    Yields:
        `np.ndarray` of shape `(size, num_groups)`, int64: How often each group is in each resample of a block of at
        most `MAX_BOOTSTRAP_ELEMENTS` values.
    """
    generator = np.random.default_rng(SEED)
    block = max(1, MAX_BOOTSTRAP_ELEMENTS // num_values)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        sampled = generator.integers(num_groups, size=(size, num_groups)) + num_groups * np.arange(size)[:, None]
        yield np.bincount(sampled.ravel(), minlength=size * num_groups).reshape(size, num_groups)


def exact_interval(is_right: bool, num_groups: int) -> Interval:
    """Return the exact interval of a fraction that is 1 (`is_right`) or 0 in all of `num_groups` groups."""
    edge = ((1 - LEVEL) / 2) ** (1 / num_groups)  # a lower accuracy would rarely have all answers right
    return (edge, 1.0) if is_right else (0.0, 1 - edge)


def percentile_interval(statistics: np.ndarray) -> Interval:
    """Return the quantiles that enclose `LEVEL` of the values of a statistic `(num_resamples,)`."""
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
