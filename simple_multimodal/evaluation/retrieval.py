"""Retrieval and pair metrics as pure functions of score matrices, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

RECALL_CUTOFFS = (1, 5, 10)

# Most elements of one (resamples, values) block of the bootstrap: bounds its memory at about 32 MiB an array.
MAX_BOOTSTRAP_ELEMENTS = 1 << 22

ResampledStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
Interval = tuple[float, float]


def positives_from_groups(query_groups: np.ndarray, candidate_groups: np.ndarray) -> np.ndarray:
    """
    Mark the candidates that are right for each query: those of the same group.

    Args:
        query_groups (`np.ndarray` of shape `(num_queries,)`): Group of each query, integers or strings.
        candidate_groups (`np.ndarray` of shape `(num_candidates,)`): Group of each candidate, of the same kind.

    Returns:
        `np.ndarray` of shape `(num_queries, num_candidates)`, bool: `True` where query and candidate share a group.

    Raises:
        ValueError: If one of the two is not one-dimensional, or if one holds strings and the other numbers.
    """
    query_groups, candidate_groups = np.asarray(query_groups), np.asarray(candidate_groups)
    if query_groups.ndim != 1 or candidate_groups.ndim != 1:
        raise ValueError(
            f"Groups must be one id per query and one per candidate, got shapes {query_groups.shape} and "
            f"{candidate_groups.shape}. Pass two one-dimensional arrays."
        )
    if (query_groups.dtype.kind in "US") != (candidate_groups.dtype.kind in "US"):
        raise ValueError(
            f"Groups of queries and candidates must be of one kind, got {query_groups.dtype} and "
            f"{candidate_groups.dtype}. Pass integers for both or strings for both."
        )
    return query_groups[:, None] == candidate_groups[None, :]


def retrieval_ranks(scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """
    Rank of the best right candidate of each query, 1 being the top.

    A wrong candidate with the same score is ranked before the right one, so that a constant score matrix gives the
    worst ranks and not the best. Further right candidates of the query do not push its rank down.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`):
            Real scores, higher is better. Infinite scores are allowed (`-inf`: not considered).
        positives (`np.ndarray` of shape `(num_queries, num_candidates)`, bool, or a pair of group arrays):
            `True` where the candidate is right for the query, or `(query_groups, candidate_groups)` as taken by
            [`positives_from_groups`].

    Returns:
        `np.ndarray` of shape `(num_queries,)`, int64: ranks from 1 to `num_candidates`.

    Raises:
        ValueError: If `scores` is not a matrix of real numbers or holds NaN, or if `positives` is neither a bool
            matrix of that shape nor a pair of group arrays, or if a query has no right candidate.

    Example:

    ```python
    >>> retrieval_ranks(np.array([[0.9, 0.1, 0.5], [0.3, 0.3, 0.1]]), np.eye(2, 3, dtype=bool))
    array([1, 2])
    ```
    """
    scores, positives = _check_scores(scores, positives)
    unanswerable = np.flatnonzero(~positives.any(axis=1))
    if unanswerable.size:
        raise ValueError(
            f"{unanswerable.size} of {len(positives)} queries have no right candidate (first: query "
            f"{unanswerable[0]}). Every query needs at least one: leave these queries out, and count them."
        )
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)  # (num_queries, 1)
    return 1 + ((scores >= best) & ~positives).sum(axis=1, dtype=np.int64)


def ranking(scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray], num_results: int) -> np.ndarray:
    """
    First `num_results` candidates of each query, best first, in the order that [`retrieval_ranks`] counts.

    Among equal scores wrong candidates come first, then the lower position: the first right candidate stands exactly
    at its rank.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`): Real scores, higher is better.
        positives (`np.ndarray` or pair of `np.ndarray`): As for [`retrieval_ranks`].
        num_results (`int`): How many candidates to return per query; all of them if there are fewer.

    Returns:
        `np.ndarray` of shape `(num_queries, min(num_results, num_candidates))`, int64: positions of candidates.

    Raises:
        ValueError: If `scores` or `positives` are refused by [`retrieval_ranks`], except that a query without a right
            candidate is allowed.
    """
    scores, positives = _check_scores(scores, positives)
    return np.lexsort((positives, -scores), axis=1)[:, :num_results].astype(np.int64)


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


def retrieval_intervals(
    ranks: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """
    Bootstrap intervals of everything that [`retrieval_metrics`] measures.

    Args:
        ranks (`np.ndarray` of shape `(num_queries,)`, integers): Ranks from 1.
        groups (`np.ndarray` of shape `(num_queries,)`, *optional*): Clip of each query; see [`bootstrap_interval`].
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed; all metrics see the same resamples.
        level (`float`, *optional*, defaults to 0.95): Share of the resamples inside the interval.

    Returns:
        `dict[str, tuple[float, float]]`: lower and upper end for `R@1`, `R@5`, `R@10`, `median_rank`, `mean_rank`.

    Raises:
        ValueError: If `ranks` is refused by [`retrieval_metrics`] or the rest by [`bootstrap_interval`].
    """
    ranks = _check_ranks(ranks)

    def interval(values: np.ndarray, statistic: ResampledStatistic) -> Interval:
        return bootstrap_interval(
            values, statistic, groups=groups, num_resamples=num_resamples, seed=seed, level=level
        )

    intervals = {f"R@{cutoff}": interval(ranks <= cutoff, resampled_mean) for cutoff in RECALL_CUTOFFS}
    return {
        **intervals,
        "median_rank": interval(ranks, resampled_median),
        "mean_rank": interval(ranks, resampled_mean),
    }


class RetrievalResult(NamedTuple):
    """
    Retrieval in both directions.

    Args:
        metrics (`dict[str, float]`): `text_to_video_R@1`, …, `video_to_text_num_candidates`.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that is not a count.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]


def text_video_retrieval(
    scores: np.ndarray,
    text_groups: np.ndarray,
    video_groups: np.ndarray,
    *,
    prefix: str = "",
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RetrievalResult:
    """
    Measure retrieval from text to clip and from clip to text, with intervals resampled by clip.

    A text whose clip is not among the candidates, or a clip without a text, is a wrong candidate for others but no
    query; `num_queries` and `num_candidates` of each direction say how many there were.

    Args:
        scores (`np.ndarray` of shape `(num_texts, num_clips)`): Score of each caption with each clip.
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each caption describes.
        video_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.
        prefix (`str`, *optional*, defaults to `""`): Put before every name, e.g. `"matching_"`.
        num_resamples (`int`, *optional*, defaults to 1000): Number of bootstrap resamples.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.
        level (`float`, *optional*, defaults to 0.95): Level of the intervals.

    Returns:
        [`RetrievalResult`] with names such as `text_to_video_R@1` and `video_to_text_median_rank`.

    Raises:
        ValueError: If scores or groups are refused by [`retrieval_ranks`], or if no text belongs to any clip.
    """
    scores, positives = _check_scores(scores, (text_groups, video_groups))
    if not positives.any():
        raise ValueError(
            f"None of {len(scores)} texts belongs to any of {scores.shape[1]} clips: retrieval cannot be measured. "
            "Check that texts and clips carry the same groups."
        )
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for direction, matrix, right, groups in (
        ("text_to_video", scores, positives, np.asarray(text_groups)),
        ("video_to_text", scores.T, positives.T, np.asarray(video_groups)),
    ):
        is_query = right.any(axis=1)
        ranks = retrieval_ranks(matrix[is_query], right[is_query])
        direction_metrics = retrieval_metrics(ranks) | {"num_candidates": matrix.shape[1]}
        direction_intervals = retrieval_intervals(
            ranks, groups=groups[is_query], num_resamples=num_resamples, seed=seed, level=level
        )
        metrics |= with_prefix(direction_metrics, f"{prefix}{direction}_")
        intervals |= with_prefix(direction_intervals, f"{prefix}{direction}_")
    return RetrievalResult(metrics, intervals)


def with_prefix(values: Mapping[str, object], prefix: str) -> dict:
    """
    Put `prefix` before every name: `R@1` with `"text_to_video_"` becomes `text_to_video_R@1`.

    Args:
        values (`Mapping[str, object]`): Named values; they are returned as they are.
        prefix (`str`): What to put before, with its separator.

    Returns:
        `dict`: The same values under the longer names, in the same order.
    """
    return {f"{prefix}{name}": value for name, value in values.items()}


def pair_scores(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """
    Cut the scores of pairs of clips out of a matrix in which caption `k` describes clip `k`.

    Args:
        scores (`np.ndarray` of shape `(num_clips, num_clips)`): Score of each caption with each clip.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`, integers): The two clips of each pair.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2, 2)`: `[p, i, j]` is the score of the caption of `pairs[p, i]` with the
        clip `pairs[p, j]`.

    Raises:
        ValueError: If `scores` is not square, or `pairs` is not of that shape, of integers, and within the clips.
    """
    scores, pairs = np.asarray(scores), np.asarray(pairs)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"Pair scores need one caption per clip: a square matrix, got shape {scores.shape}.")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"Pairs must be integers of shape (num_pairs, 2), got shape {pairs.shape} of {pairs.dtype}.")
    if pairs.size and not (0 <= pairs.min() and pairs.max() < len(scores)):
        raise ValueError(f"Pairs must be positions from 0 to {len(scores) - 1}, got {pairs.min()} to {pairs.max()}.")
    return scores[pairs[:, :, None], pairs[:, None, :]]


def pair_choices(scores: np.ndarray) -> np.ndarray:
    """
    Which of the two clips of a pair each of its two captions chooses.

    Args:
        scores (`np.ndarray` of shape `(num_pairs, 2, 2)`):
            `[p, i, j]` is the score of caption `i` of pair `p` with its clip `j`; caption `i` describes clip `i`.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2)`, int64: 0 or 1, the clip with the higher score; -1 for a tie.

    Raises:
        ValueError: If `scores` is not of that shape, holds no pair, or holds NaN.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or len(scores) == 0:
        raise ValueError(f"Pair scores must have shape (num_pairs, 2, 2) with at least one pair, got {scores.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} pair scores are NaN; a NaN has no order.")
    second_is_higher = scores[:, :, 1] > scores[:, :, 0]  # (num_pairs, 2)
    return np.where(scores[:, :, 0] == scores[:, :, 1], -1, second_is_higher).astype(np.int64)


def pair_accuracy(scores: np.ndarray, swapped_scores: np.ndarray | None = None) -> dict[str, float]:
    """
    How often a caption chooses its own clip of two that differ in one thing, and whether that thing decides.

    Chance is 0.5; a tie is wrong. A choice flips when swapping that thing between the two clips (their sounds, say)
    turns it into the other clip; a tie before or after is no flip.

    Args:
        scores (`np.ndarray` of shape `(num_pairs, 2, 2)`):
            `[p, i, j]` is the score of caption `i` of pair `p` with its clip `j`; caption `i` describes clip `i`.
        swapped_scores (`np.ndarray` of shape `(num_pairs, 2, 2)`, *optional*):
            The same captions with clips `j` that carry the other clip's sound (or picture).

    Returns:
        `dict[str, float]`: `pair_accuracy` over the `2 * num_pairs` choices, `num_pairs`, and, with
        `swapped_scores`, `pair_flip_share`.

    Raises:
        ValueError: If one of the arrays is refused by [`pair_choices`], or if their shapes differ.

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
            raise ValueError(
                f"Got {len(choices)} pairs and {len(swapped_choices)} swapped pairs; pass the same pairs in one order."
            )
        flips = swapped_choices == 1 - choices  # a tie before would have to become 1 - (-1) = 2, which is no choice
        metrics["pair_flip_share"] = float(flips.mean())
    return metrics


def pair_accuracy_interval(
    scores: np.ndarray, *, num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """
    Bootstrap interval of [`pair_accuracy`], resampled by pair.

    Args:
        scores (`np.ndarray` of shape `(num_pairs, 2, 2)`): As for [`pair_accuracy`].
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed.
        level (`float`, *optional*, defaults to 0.95): Share of the resamples inside the interval.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: If `scores` is refused by [`pair_choices`] or the rest by [`bootstrap_interval`].
    """
    is_right = pair_choices(scores) == np.arange(2)  # (num_pairs, 2)
    # Both choices of a pair are drawn together and every pair has two, so their mean may stand for them.
    return bootstrap_interval(
        is_right.mean(axis=1), resampled_mean, num_resamples=num_resamples, seed=seed, level=level
    )


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Mean of each resample.

    Args:
        values (`np.ndarray` of shape `(num_values,)`): The values.
        counts (`np.ndarray` of shape `(num_resamples, num_values)`, int64): How often each value is in each resample.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`, float64.
    """
    return counts @ values.astype(np.float64) / counts.sum(axis=1)


def resampled_median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    Median of each resample, the mean of the two middle values where their number is even.

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
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """
    Percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Whole groups are drawn with replacement, as many as there are; a group brings all its values. So captions of one
    clip, which are not independent, do not make the interval look narrower than it is.

    Args:
        values (`np.ndarray` of shape `(num_values,)`): One value per query; bool or numbers.
        statistic (`Callable`):
            [`resampled_mean`], [`resampled_median`], or a function of `values` and of `counts` of shape
            `(num_resamples, num_values)`, how often each value is in each resample, that returns `(num_resamples,)`.
        groups (`np.ndarray` of shape `(num_values,)`, *optional*):
            Group (clip) of each value; without it every value is its own group.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed; the same arguments give the same interval.
        level (`float`, *optional*, defaults to 0.95): Share of the resamples inside the interval.

    Returns:
        `tuple[float, float]`: The `(1 - level) / 2` and `(1 + level) / 2` quantiles of the statistic.

    Raises:
        ValueError: If `values` is empty or not one-dimensional, or `groups` is of another length, or
            `num_resamples` is below 1, or `level` is not between 0 and 1.
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"The bootstrap needs one value per query, at least one, got shape {values.shape}.")
    if groups is not None and np.shape(groups) != values.shape:
        raise ValueError(f"The bootstrap needs one group per value: got {np.shape(groups)} for {values.shape}.")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1 (0.95: 95 % of the resamples), got {level}.")

    members = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    num_groups = int(members.max()) + 1
    generator = np.random.default_rng(seed)
    block = max(1, MAX_BOOTSTRAP_ELEMENTS // len(values))
    statistics = []
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        draws = generator.integers(num_groups, size=(size, num_groups)) + num_groups * np.arange(size)[:, None]
        group_counts = np.bincount(draws.ravel(), minlength=size * num_groups).reshape(size, num_groups)
        statistics.append(statistic(values, group_counts[:, members]))  # counts: (size, num_values)
    low, high = np.quantile(np.concatenate(statistics), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_scores(
    scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and the bool matrix of right candidates, both `(num_queries, num_candidates)`, or refuse them."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"Scores must be real numbers of shape (num_queries, num_candidates), neither 0, got shape "
            f"{scores.shape} of {scores.dtype}."
        )
    scores = scores.astype(np.float64, copy=False)  # exact for float16/float32; unsigned integers can be negated
    if np.isnan(scores).any():
        queries = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(
            f"The scores of {len(queries)} of {len(scores)} queries hold NaN (first: query {queries[0]}). A NaN has "
            "no rank: look for the inputs or the weights that produce it."
        )
    matrix = positives_from_groups(*positives) if isinstance(positives, tuple) else np.asarray(positives)
    if matrix.shape != scores.shape or matrix.dtype != np.bool_:
        raise ValueError(
            f"Positives must be bool of the shape of the scores {scores.shape}, or a tuple (query_groups, "
            f"candidate_groups) of that many ids, got shape {matrix.shape} of {matrix.dtype}."
        )
    return scores, matrix


def _check_ranks(ranks: np.ndarray) -> np.ndarray:
    """Return the ranks `(num_queries,)`, or refuse them."""
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or len(ranks) == 0 or ranks.dtype.kind not in "iu" or ranks.min() < 1:
        raise ValueError(
            f"Ranks must be integers from 1, one per query, got shape {ranks.shape} of {ranks.dtype}"
            + (f" with smallest {ranks.min()}." if ranks.size else ". There is no query to measure.")
        )
    return ranks
