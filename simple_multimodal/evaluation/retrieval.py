"""Retrieval metrics of ranks and of scores, with bootstrap intervals; re-ranking by a second model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simple_multimodal.evaluation.bootstrap import (
    Interval,
    ResampledStatistic,
    bootstrap_interval,
    resampled_mean,
    resampled_median,
)
from simple_multimodal.evaluation.ranking import Ranks, first_keys, pairs_of_keys, text_video_ranks
from simple_multimodal.evaluation.scores import MatrixScores, Scores, as_floats, as_scores

RECALL_CUTOFFS = (1, 5, 10)


def retrieval_metrics(ranks: np.ndarray) -> dict[str, float]:
    """
    Recall and rank statistics of a set of queries.

    Args:
        ranks (`np.ndarray` of shape `(num_queries,)`, integers): Ranks from 1, as [`retrieval_ranks`] returns them.

    Returns:
        `dict[str, float]`: `R@1`, `R@5` and `R@10` as fractions, `median_rank` (mean of the two middle ranks for an
        even number of queries), `mean_rank`, and `num_queries`.

    Raises:
        ValueError: If `ranks` is empty, not one-dimensional, not integers, or holds a rank below 1.
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
    Bootstrap intervals of `R@1`, `R@5`, `R@10`, `median_rank` and `mean_rank`, which see the same resamples.

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
    Metrics and how sure they are.

    Args:
        metrics (`dict[str, float]`): Metrics by name, e.g. `text_to_video_R@1`.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that is not a count.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]


def text_video_retrieval(
    scores: Scores | np.ndarray,
    text_groups: np.ndarray,
    video_groups: np.ndarray,
    *,
    ranks: Ranks | None = None,
    prefix: str = "",
) -> RetrievalResult:
    """
    Measure retrieval from text to clip and from clip to text, with intervals resampled by clip.

    A text whose clip is not among the candidates, or a clip without a text, is a wrong candidate for others but no
    query; `num_queries` and `num_candidates` of each direction say how many there were.

    Args:
        scores ([`Scores`] or `np.ndarray` of shape `(num_texts, num_clips)`): Score of each caption with each clip.
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each caption describes.
        video_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.
        ranks ([`Ranks`], *optional*): What [`text_video_ranks`] has made of these scores, where that is known.
        prefix (`str`, *optional*, defaults to `""`): Put before every name, e.g. `"matching_"`.

    Returns:
        [`RetrievalResult`] with names such as `text_to_video_R@1` and `video_to_text_median_rank`.

    Raises:
        ValueError: If scores or groups are refused by [`text_video_ranks`], or if no text belongs to any clip.
    """
    ranks = text_video_ranks(scores, text_groups, video_groups) if ranks is None else ranks
    if not ranks.texts.any():
        raise ValueError(
            f"None of {len(ranks.texts)} texts belongs to any of {len(ranks.clips)} clips: retrieval cannot be "
            "measured. Check that texts and clips carry the same groups."
        )
    return _merge(
        _measure(own, groups, num_candidates=len(candidates), prefix=f"{prefix}{direction}_")
        for direction, own, groups, candidates in (
            ("text_to_video", ranks.texts, text_groups, ranks.clips),
            ("video_to_text", ranks.clips, video_groups, ranks.texts),
        )
    )


def _measure(ranks: np.ndarray, groups: np.ndarray, *, num_candidates: int, prefix: str) -> RetrievalResult:
    """Metrics of one direction, and their intervals by clip; a rank of 0 is that of no query."""
    is_query = ranks > 0
    metrics = retrieval_metrics(ranks[is_query]) | {"num_candidates": num_candidates}
    intervals = retrieval_intervals(ranks[is_query], groups=np.asarray(groups)[is_query])
    return RetrievalResult(with_prefix(metrics, prefix), with_prefix(intervals, prefix))


def _merge(results: Iterable[RetrievalResult]) -> RetrievalResult:
    """All metrics and intervals of several results, in their order."""
    merged = RetrievalResult({}, {})
    for metrics, intervals in results:
        merged.metrics.update(metrics)
        merged.intervals.update(intervals)
    return merged


def retrieval_changes(
    ranks_before: np.ndarray, ranks_after: np.ndarray, *, groups: np.ndarray | None = None
) -> RetrievalResult:
    """
    By how much each metric changes from one ranking of the same queries to another, e.g. by re-ranking.

    The intervals are paired: both rankings see the same resamples, so that what they share cancels out.

    Args:
        ranks_before, ranks_after (`np.ndarray` of shape `(num_queries,)`, integers):
            Ranks from 1 of the same queries in one order.
        groups (`np.ndarray` of shape `(num_queries,)`, *optional*): Clip of each query; see [`bootstrap_interval`].

    Returns:
        [`RetrievalResult`] with `R@1_change`, …, `mean_rank_change`: after minus before. A better ranking raises
        recalls and lowers ranks.

    Raises:
        ValueError: If ranks are refused by [`retrieval_metrics`], or their numbers differ.
    """
    before, after = (_resampled_metrics(_check_ranks(ranks)) for ranks in (ranks_before, ranks_after))
    if len(ranks_before) != len(ranks_after):
        raise ValueError(
            f"Got {len(ranks_before)} ranks before and {len(ranks_after)} after; pass the same queries in one order."
        )
    metrics, intervals = {}, {}
    queries = np.arange(len(ranks_before))
    for name, (values, statistic) in before.items():
        change = _change_of(statistic, values, after[name][0])
        metrics[f"{name}_change"] = float(change(queries, np.ones((1, len(queries)), dtype=np.int64))[0])
        intervals[f"{name}_change"] = bootstrap_interval(queries, change, groups=groups)
    return RetrievalResult(metrics, intervals)


class ScoredPairs(NamedTuple):
    """
    Pairs that a second model has scored.

    Args:
        pairs (`np.ndarray` of shape `(num_pairs, 2)`, int64): Positions of text and clip, ascending, no pair twice.
        values (`np.ndarray` of shape `(num_pairs,)`): Score of each.
    """

    pairs: np.ndarray
    values: np.ndarray


def matched_retrieval(
    scores: Scores | np.ndarray,
    text_groups: np.ndarray,
    video_groups: np.ndarray,
    match: Callable[[np.ndarray], np.ndarray],
    *,
    top_k: int | None = None,
    needed: np.ndarray | None = None,
    measures_change: bool = False,
    ranks: Ranks | None = None,
    prefix: str = "matching_",
) -> tuple[RetrievalResult, ScoredPairs]:
    """
    Measure retrieval whose order a second, slower model decides: for each query among the first candidates.

    The candidates that it scored for a query come first, in the order of its scores; the others follow in the order of
    the first scores. Where the last candidate that it scores is equal to others, a wrong one is taken before a right
    one. So a query of which no right candidate is scored keeps its rank.

    Args:
        scores ([`Scores`] or `np.ndarray` of shape `(num_texts, num_clips)`): First scores, e.g. cosines.
        text_groups, video_groups (`np.ndarray`): As for [`text_video_retrieval`].
        match (`Callable`):
            Takes pairs `(num_pairs, 2)` of text and clip, ascending, and returns their scores `(num_pairs,)`. It is
            called once, in every process with the same pairs, and must return the same there.
        top_k (`int`, *optional*): How many candidates of each query, in either direction, it scores; all by default.
        needed (`np.ndarray` of shape `(num_pairs, 2)`, *optional*): Extra pairs to score, which re-rank nothing.
        measures_change (`bool`, *optional*, defaults to `False`): Score all pairs, once, and say besides how every
            metric changes ([`retrieval_changes`]) where the first `top_k` alone are ordered by it, and not all.
        ranks ([`Ranks`], *optional*): What [`text_video_ranks`] has made of the first scores, where that is known.
        prefix (`str`, *optional*, defaults to `"matching_"`): Of the metrics.

    Returns:
        `tuple`: [`RetrievalResult`], and [`ScoredPairs`] with all that `match` was asked for.

    Raises:
        ValueError: If scores or groups are refused by [`text_video_ranks`], or `match` returns NaN.
    """
    scores = as_scores(scores)
    ranks = text_video_ranks(scores, text_groups, video_groups) if ranks is None else ranks
    num_texts, num_clips = scores.shape
    top_k = max(scores.shape) if top_k is None else top_k
    is_whole = measures_change or top_k >= min(scores.shape)
    chosen = first_keys(scores, text_groups, video_groups, top_k)
    extra = () if needed is None else (np.asarray(needed) @ [num_clips, 1],)
    keys = np.arange(num_texts * num_clips) if is_whole else np.unique(np.concatenate([*chosen, *extra]))
    pairs = pairs_of_keys(keys, num_clips)
    values = match(pairs)
    if num_nan := int(np.isnan(values).sum()):
        raise ValueError(f"{num_nan} of {len(pairs)} pairs have a NaN as their second score; a NaN has no rank.")
    by_second = ranks  # read only where all pairs are scored
    if is_whole:
        matrix = MatrixScores(values.reshape(scores.shape), scores.processes)
        by_second = text_video_ranks(matrix, text_groups, video_groups)
    results = []
    text_groups, video_groups = np.asarray(text_groups), np.asarray(video_groups)
    for side, direction, groups in ((0, "text_to_video", text_groups), (1, "video_to_text", video_groups)):
        if top_k >= scores.shape[1 - side]:
            after = by_second[side]
        else:
            own = slice(None) if len(chosen[side]) == len(keys) else np.searchsorted(keys, chosen[side])
            texts, clips = pairs[own].T
            is_right = text_groups[texts] == video_groups[clips]
            after = _reranked((texts, clips)[side], is_right, values[own], ranks[side])
        name = f"{prefix}{direction}_"
        results.append(_measure(after, groups, num_candidates=scores.shape[1 - side], prefix=name))
        if measures_change:
            is_query = after > 0
            metrics, intervals = retrieval_changes(by_second[side][is_query], after[is_query], groups=groups[is_query])
            results.append(RetrievalResult(with_prefix(metrics, name), with_prefix(intervals, name)))
    return _merge(results), ScoredPairs(pairs, values)


def _reranked(queries: np.ndarray, is_right: np.ndarray, values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """
    Ranks `(num_queries,)` after a second model has scored the first candidates of each query.

    A query of which no right candidate is among these keeps its rank of `ranks`. The second scores are never compared
    with the first, nor put into one row with them, where a small and a large one could be rounded to equal ones.
    """
    best = np.full(len(ranks), -np.inf, values.dtype)
    np.maximum.at(best, queries[is_right], values[is_right])
    is_ahead = ~is_right & (values >= best[queries])
    reranked = 1 + np.bincount(queries[is_ahead], minlength=len(ranks))
    return np.where(np.bincount(queries[is_right], minlength=len(ranks)) > 0, reranked, ranks)


def dual_softmax(scores: np.ndarray, *, temperature: float) -> np.ndarray:
    """
    Weigh each score with the share of its candidate that falls to this query (Cheng et al., 2021, arXiv:2109.04290).

    The weight is a softmax over the **queries**: a candidate that fits many of them counts less for each. So the
    result for one query depends on all queries of the test set, which a system that answers one query at a time does
    not have. Report such numbers under a protocol of their own (`dsl`), never beside numbers without.

    A score that is not positive is left as it is: a product with a small weight would raise it.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`):
            Finite scores, e.g. cosines. For the other direction pass the transposed matrix.
        temperature (`float`): What scores are divided by in the softmax, above 0, e.g. 0.01 for cosines.

    Returns:
        `np.ndarray` of shape `(num_queries, num_candidates)`, float64.

    Raises:
        ValueError: If scores are not finite real numbers, or `temperature` is not above 0.
    """
    scores = as_floats(scores).astype(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{int(np.isinf(scores).sum())} of {scores.size} scores are infinite; a softmax needs finite."
        )
    if not temperature > 0:
        raise ValueError(f"The temperature of the dual softmax must be above 0, got {temperature}.")
    weights = np.exp((scores - scores.max(axis=0)) / temperature)  # (num_queries, num_candidates)
    weights /= weights.sum(axis=0)
    return np.where(scores > 0, scores * weights, scores)


def duplicate_captions(captions: Sequence[str], groups: np.ndarray) -> np.ndarray:
    """
    Find the captions whose text stands with another clip too.

    Such a query cannot tell its clip from the other one, whatever the model: their number belongs beside the recalls.
    Case and white space do not make texts different, as to an uncased tokenizer.

    Args:
        captions (`Sequence[str]` of length `num_texts`): The texts.
        groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each describes.

    Returns:
        `np.ndarray` of shape `(num_texts,)`, bool.

    Raises:
        ValueError: If there is not one group per caption.

    Example:

    ```python
    >>> duplicate_captions(["a man sings", "A man  sings", "a dog", "a dog"], np.array([0, 1, 2, 2]))
    array([ True,  True, False, False])
    ```
    """
    if len(captions) != len(groups):
        raise ValueError(f"Every caption needs one group: got {len(captions)} captions and {len(groups)} groups.")
    texts = [" ".join(caption.casefold().split()) for caption in captions]
    groups_of_text: dict[str, set[object]] = {}
    for text, group in zip(texts, np.asarray(groups).tolist(), strict=True):
        groups_of_text.setdefault(text, set()).add(group)
    return np.array([len(groups_of_text[text]) > 1 for text in texts], dtype=np.bool_)


def with_prefix(values: Mapping[str, object], prefix: str) -> dict:
    """Put `prefix` before every name: `R@1` with `"text_to_video_"` becomes `text_to_video_R@1`."""
    return {f"{prefix}{name}": value for name, value in values.items()}


def _resampled_metrics(ranks: np.ndarray) -> dict[str, tuple[np.ndarray, ResampledStatistic]]:
    """What each metric of [`retrieval_metrics`] is in a resample: a statistic of one value per query."""
    recalls = {f"R@{cutoff}": (ranks <= cutoff, resampled_mean) for cutoff in RECALL_CUTOFFS}
    return {**recalls, "median_rank": (ranks, resampled_median), "mean_rank": (ranks, resampled_mean)}


def _change_of(statistic: ResampledStatistic, before: np.ndarray, after: np.ndarray) -> ResampledStatistic:
    """A statistic of positions of queries: that of their values after, minus that of their values before."""
    return lambda queries, counts: statistic(after[queries], counts) - statistic(before[queries], counts)


def _check_ranks(ranks: np.ndarray) -> np.ndarray:
    """Return the ranks `(num_queries,)`, or refuse them."""
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or len(ranks) == 0 or ranks.dtype.kind not in "iu" or ranks.min() < 1:
        raise ValueError(
            f"Ranks must be integers from 1, one per query, got shape {ranks.shape} of {ranks.dtype}"
            + (f" with smallest {ranks.min()}." if ranks.size else ". There is no query to measure.")
        )
    return ranks
