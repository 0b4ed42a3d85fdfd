"""Retrieval metrics from ranks, with bootstrap confidence intervals.

Clips are retrieved, with audio, video or both. Names of metrics follow the literature, in which the directions are
called `text_to_video` and `video_to_text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import (
    Interval,
    ResampledStatistic,
    bootstrap_interval,
    resampled_mean,
    resampled_median,
)
from simple_multimodal.evaluation.ranking import Ranks, is_query

RECALL_CUTOFFS = (1, 5, 10)


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """
    Compute recall and rank statistics of a set of queries.

    Args:
        ranks (`np.ndarray` of shape `(num_queries,)`, integers):
            Ranks from 1, the result of [`ranking.retrieval_ranks`].

    Returns:
        `dict[str, float]`: `R@1`, `R@5` and `R@10` as fractions, `median_rank` (mean of the two middle ranks for an
        even number of queries), `mean_rank`, and `num_queries`.

    Raises:
        ValueError: If `ranks` is empty, not one-dimensional, not integers, or contains a rank below 1.
    """
    ranks = _check_ranks(ranks)
    metrics = {f"R@{cutoff}": float((ranks <= cutoff).mean()) for cutoff in RECALL_CUTOFFS}
    return {
        **metrics,
        "median_rank": float(np.median(ranks)),
        "mean_rank": float(ranks.mean()),
        "num_queries": len(ranks),
    }


def retrieval_intervals(ranks: np.ndarray, *, groups: np.ndarray | None = None) -> dict[str, Interval]:
    """
    Compute bootstrap intervals of `R@1`, `R@5`, `R@10`, `median_rank` and `mean_rank`, all from the same resamples.

    Args:
        ranks (`np.ndarray` of shape `(num_queries,)`, integers): Ranks from 1.
        groups (`np.ndarray` of shape `(num_queries,)`, *optional*): Clip of each query; see [`bootstrap_interval`].
    """
    return {
        name: bootstrap_interval(values, statistic, groups=groups)
        for name, (values, statistic) in _resampled_metrics(_check_ranks(ranks)).items()
    }


class RetrievalResult(NamedTuple):
    """
    Metrics with confidence intervals.

    Args:
        metrics (`dict[str, float]`): Metrics by name, e.g. `text_to_video_R@1`.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that is not a count.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]


def retrieval_changes(
    ranks_before: np.ndarray, ranks_after: np.ndarray, *, groups: np.ndarray | None = None
) -> RetrievalResult:
    """
    Compute how much each metric changes from one ranking of the same queries to another, e.g. by re-ranking.

    The intervals are paired: both rankings use the same resamples, so that common variation cancels out.

    Args:
        ranks_before, ranks_after (`np.ndarray` of shape `(num_queries,)`, integers):
            Ranks from 1 of the same queries in the same order.
        groups (`np.ndarray` of shape `(num_queries,)`, *optional*): Clip of each query; see [`bootstrap_interval`].

    Returns:
        [`RetrievalResult`] with `R@1_change`, …, `mean_rank_change`: after minus before. A better ranking raises
        recalls and lowers ranks.

    Raises:
        ValueError: For the reasons listed in [`retrieval_metrics`], **or** if the numbers of ranks differ.
    """
    before, after = (_resampled_metrics(_check_ranks(ranks)) for ranks in (ranks_before, ranks_after))
    if len(ranks_before) != len(ranks_after):
        raise InputError(
            f"ranks_before has {len(ranks_before)} ranks and ranks_after has {len(ranks_after)}; pass the same "
            "queries in the same order."
        )
    metrics, intervals = {}, {}
    queries = np.arange(len(ranks_before))
    for name, (values, statistic) in before.items():
        change = _change_of(statistic, values, after[name][0])
        metrics[f"{name}_change"] = float(change(queries, np.ones((1, len(queries)), dtype=np.int64))[0])
        intervals[f"{name}_change"] = bootstrap_interval(queries, change, groups=groups)
    return RetrievalResult(metrics, intervals)


def text_clip_retrieval(
    ranks: Ranks,
    text_groups: np.ndarray,
    clip_groups: np.ndarray,
    *,
    ranks_before: Ranks | None = None,
    prefix: str = "",
) -> RetrievalResult:
    """
    Measure retrieval from text to clip and from clip to text, with intervals resampled by clip.

    A text without a clip among the candidates, and a clip without a text, are candidates but not queries.
    `num_queries` and `num_candidates` of each direction count both.

    Args:
        ranks ([`Ranks`]): Result of [`ranking.text_clip_ranks`] or [`reranking.rerank`].
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each text describes.
        clip_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.
        ranks_before ([`Ranks`], *optional*):
            Another ranking of the same texts and clips, to report how each metric changes from it
            ([`retrieval_changes`]).
        prefix (`str`, *optional*, defaults to `""`): Prefix of every name, e.g. `"matching_"`.

    Returns:
        [`RetrievalResult`] with names such as `text_to_video_R@1` and `video_to_text_median_rank`.

    Raises:
        ValueError: If no text belongs to any clip.
    """
    if not is_query(ranks.texts).any():
        raise InputError(
            f"None of {len(ranks.texts)} texts belongs to any of {len(ranks.clips)} clips: retrieval cannot be "
            "measured. Check that texts and clips have the same groups."
        )
    text_to_clip = _measure_direction(
        ranks.texts,
        text_groups,
        num_candidates=len(ranks.clips),
        ranks_before=None if ranks_before is None else ranks_before.texts,
        prefix=f"{prefix}text_to_video_",
    )
    clip_to_text = _measure_direction(
        ranks.clips,
        clip_groups,
        num_candidates=len(ranks.texts),
        ranks_before=None if ranks_before is None else ranks_before.clips,
        prefix=f"{prefix}video_to_text_",
    )
    return RetrievalResult(
        text_to_clip.metrics | clip_to_text.metrics, text_to_clip.intervals | clip_to_text.intervals
    )


def _measure_direction(
    ranks: np.ndarray, groups: np.ndarray, *, num_candidates: int, ranks_before: np.ndarray | None, prefix: str
) -> RetrievalResult:
    """Measure one direction: metrics, their intervals by clip, and their changes from `ranks_before`."""
    kept = is_query(ranks)
    ranks, groups = ranks[kept], np.asarray(groups)[kept]
    metrics = retrieval_metrics(ranks) | {"num_candidates": num_candidates}
    intervals = retrieval_intervals(ranks, groups=groups)
    if ranks_before is not None:
        changes = retrieval_changes(ranks_before[kept], ranks, groups=groups)
        metrics |= changes.metrics
        intervals |= changes.intervals
    return RetrievalResult(with_prefix(metrics, prefix), with_prefix(intervals, prefix))


def with_prefix(values: Mapping[str, object], prefix: str) -> dict:
    """Put `prefix` before every name: `R@1` with `"text_to_video_"` becomes `text_to_video_R@1`."""
    return {f"{prefix}{name}": value for name, value in values.items()}


def _resampled_metrics(ranks: np.ndarray) -> dict[str, tuple[np.ndarray, ResampledStatistic]]:
    """Express each metric of [`retrieval_metrics`] as a statistic of one value per query, for the bootstrap."""
    recalls = {f"R@{cutoff}": (ranks <= cutoff, resampled_mean) for cutoff in RECALL_CUTOFFS}
    return {**recalls, "median_rank": (ranks, resampled_median), "mean_rank": (ranks, resampled_mean)}


def _change_of(statistic: ResampledStatistic, before: np.ndarray, after: np.ndarray) -> ResampledStatistic:
    """Return a statistic of query positions: the statistic of their values after, minus that of the values before."""
    return lambda queries, counts: statistic(after[queries], counts) - statistic(before[queries], counts)


def _check_ranks(ranks: np.ndarray) -> np.ndarray:
    """Return the ranks `(num_queries,)`, or raise an error if they are invalid."""
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or len(ranks) == 0 or ranks.dtype.kind not in "iu" or ranks.min() < 1:
        raise InputError(
            f"Ranks must be integers from 1, one per query, got shape {ranks.shape} of {ranks.dtype}"
            + (f" with smallest {ranks.min()}." if ranks.size else ". There is no query to measure.")
        )
    return ranks
