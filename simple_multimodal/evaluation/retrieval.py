"""Retrieval and pair metrics as pure functions of score matrices, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from simple_multimodal.evaluation.bootstrap import (
    Interval,
    ResampledStatistic,
    bootstrap_interval,
    resampled_mean,
    resampled_median,
)

RECALL_CUTOFFS = (1, 5, 10)


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


def retrieval_ranks(
    scores: np.ndarray,
    positives: np.ndarray | tuple[np.ndarray, np.ndarray],
    *,
    ties: Literal["worst", "best"] = "worst",
) -> np.ndarray:
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
        ties (`str`, *optional*, defaults to `"worst"`):
            `"best"` ranks the right one first among equals instead: with the default it bounds what any order of
            equal scores would give. It is not a number to report.

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
    _check_answerable(positives)
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)  # (num_queries, 1)
    is_ahead = scores > best if ties == "best" else (scores >= best) & ~positives
    return 1 + is_ahead.sum(axis=1, dtype=np.int64)


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
    return {
        name: bootstrap_interval(values, statistic, groups=groups, num_resamples=num_resamples, seed=seed, level=level)
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
        result = _measure(
            ranks,
            groups[is_query],
            num_candidates=matrix.shape[1],
            num_resamples=num_resamples,
            seed=seed,
            level=level,
        )
        metrics |= with_prefix(result.metrics, f"{prefix}{direction}_")
        intervals |= with_prefix(result.intervals, f"{prefix}{direction}_")
    return RetrievalResult(metrics, intervals)


def _measure(
    ranks: np.ndarray,
    groups: np.ndarray,
    *,
    num_candidates: int,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RetrievalResult:
    """Metrics of one direction, and their intervals by clip."""
    intervals = retrieval_intervals(ranks, groups=groups, num_resamples=num_resamples, seed=seed, level=level)
    return RetrievalResult(retrieval_metrics(ranks) | {"num_candidates": num_candidates}, intervals)


def retrieval_changes(
    ranks_before: np.ndarray,
    ranks_after: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RetrievalResult:
    """
    By how much each metric changes from one ranking of the same queries to another, e.g. by re-ranking.

    The intervals are paired: both rankings see the same resamples, so that what they share cancels out.

    Args:
        ranks_before (`np.ndarray` of shape `(num_queries,)`, integers): Ranks from 1.
        ranks_after (`np.ndarray` of shape `(num_queries,)`, integers): Ranks of the same queries in the same order.
        groups (`np.ndarray` of shape `(num_queries,)`, *optional*): Clip of each query; see [`bootstrap_interval`].
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed; all metrics see the same resamples.
        level (`float`, *optional*, defaults to 0.95): Share of the resamples inside the interval.

    Returns:
        [`RetrievalResult`] with `R@1_change`, …, `mean_rank_change`: after minus before. A better ranking raises
        recalls and lowers ranks.

    Raises:
        ValueError: If ranks are refused by [`retrieval_metrics`], or their numbers differ, or the rest is refused by
            [`bootstrap_interval`].
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
        intervals[f"{name}_change"] = bootstrap_interval(
            queries, change, groups=groups, num_resamples=num_resamples, seed=seed, level=level
        )
    return RetrievalResult(metrics, intervals)


def top_candidates(
    scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray], num_results: int
) -> np.ndarray:
    """
    Mark the first `num_results` candidates of each query, in the order of [`ranking`].

    Where the last of them is equal to others, a wrong one is taken before a right one, as in the ranks.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`): Real scores, higher is better.
        positives (`np.ndarray` or pair of `np.ndarray`): As for [`retrieval_ranks`].
        num_results (`int`): How many candidates to mark per query; all of them if there are fewer.

    Returns:
        `np.ndarray` of shape `(num_queries, num_candidates)`, bool.

    Raises:
        ValueError: If `scores` or `positives` are refused by [`ranking`].
    """
    if num_results >= np.shape(scores)[1]:
        return np.ones(np.shape(scores), dtype=np.bool_)
    mask = np.zeros(np.shape(scores), dtype=np.bool_)
    np.put_along_axis(mask, ranking(scores, positives, num_results), True, axis=1)
    return mask


def reranked_ranks(
    scores: np.ndarray,
    matching_scores: np.ndarray,
    is_matched: np.ndarray,
    positives: np.ndarray | tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """
    Rank of the best right candidate after a second, slower model has re-ranked the first candidates of each query.

    The candidates that it scored come first, in the order of its scores; the others follow in the order of the first
    scores. Among equal ones wrong candidates come first, as without re-ranking ([`retrieval_ranks`]).

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`): First scores, e.g. cosines of embeddings.
        matching_scores (`np.ndarray` of shape `(num_queries, num_candidates)`):
            Second scores; read only where `is_matched`.
        is_matched (`np.ndarray` of shape `(num_queries, num_candidates)`, bool):
            Which candidates the second model scored, e.g. [`top_candidates`].
        positives (`np.ndarray` or pair of `np.ndarray`): As for [`retrieval_ranks`].

    Returns:
        `np.ndarray` of shape `(num_queries,)`, int64: ranks from 1 to `num_candidates`.

    Raises:
        ValueError: If the scores are not real numbers or hold NaN, or if the shapes differ, or if a query has no right
            candidate.

    Example:

    ```python
    >>> scores, matching = np.array([[0.9, 0.8, 0.7, 0.7]]), np.array([[-3.0, 5.0, 0.0, 0.0]])
    >>> reranked_ranks(scores, matching, np.array([[True, True, False, False]]), np.array([[True] + 3 * [False]]))
    array([2])
    ```
    """
    scores, positives = _check_scores(scores, positives)
    is_matched = np.asarray(is_matched)
    if not scores.shape == np.shape(matching_scores) == is_matched.shape or is_matched.dtype != np.bool_:
        raise ValueError(
            f"Re-ranking needs three matrices of one shape, the last of bool: got scores {scores.shape}, matching "
            f"scores {np.shape(matching_scores)} and {is_matched.dtype} {is_matched.shape}."
        )
    _check_answerable(positives)
    # A query is ranked among those candidates, scored twice or once, where its best right one stands: the two orders
    # are never put into one row of numbers, where a small and a large score could be rounded to equal ones.
    order = _check_matrix(np.where(is_matched, matching_scores, scores))
    is_within = is_matched == (is_matched & positives).any(axis=1, keepdims=True)
    best = np.where(is_within & positives, order, -np.inf).max(axis=1, keepdims=True)  # (num_queries, 1)
    is_ahead = np.where(is_within, (order >= best) & ~positives, is_matched)
    return 1 + is_ahead.sum(axis=1, dtype=np.int64)


def matched_retrieval(
    scores: np.ndarray,
    text_groups: np.ndarray,
    video_groups: np.ndarray,
    match: Callable[[np.ndarray], np.ndarray],
    *,
    top_k: int | None = None,
    is_needed: np.ndarray | None = None,
    measures_change: bool = False,
    prefix: str = "matching_",
) -> tuple[RetrievalResult, np.ndarray]:
    """
    Measure retrieval whose order a second, slower model decides: for each query among the first candidates.

    Args:
        scores (`np.ndarray` of shape `(num_texts, num_videos)`): First scores, e.g. cosines of embeddings.
        text_groups, video_groups (`np.ndarray`): As for [`text_video_retrieval`].
        match (`Callable`): Takes pairs `(num_pairs, 2)` of text and video, returns their scores `(num_pairs,)`.
        top_k (`int`, *optional*): How many candidates of each query, in either direction, it scores; all by default.
        is_needed (`np.ndarray` of shape `(num_texts, num_videos)`, bool, *optional*): Pairs to score besides.
        measures_change (`bool`, *optional*, defaults to `False`): Score all pairs, once, and say besides how every
            metric changes ([`retrieval_changes`]) where the first `top_k` alone are ordered by it, and not all.
        prefix (`str`, *optional*, defaults to `"matching_"`): Of the metrics.

    Returns:
        `tuple`: [`RetrievalResult`], and the second scores of shape `(num_texts, num_videos)`, NaN where there is
        none.
    """
    text_groups, video_groups = np.asarray(text_groups), np.asarray(video_groups)
    scores, positives = _check_scores(scores, (text_groups, video_groups))
    num_texts, num_videos = positives.shape
    for_text = top_candidates(scores, positives, num_videos if top_k is None else top_k)
    for_video = top_candidates(scores.T, positives.T, num_texts if top_k is None else top_k).T
    is_scored = for_text | for_video if is_needed is None else for_text | for_video | is_needed
    if measures_change:
        is_scored[:] = True
    values = match(np.argwhere(is_scored))
    second = np.full(positives.shape, np.nan, dtype=values.dtype)
    second[is_scored] = values
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for direction, first, matching, chosen, right, groups in (
        ("text_to_video", scores, second, for_text, positives, text_groups),
        ("video_to_text", scores.T, second.T, for_video.T, positives.T, video_groups),
    ):
        is_query = right.any(axis=1)
        first, matching, chosen, right = (matrix[is_query] for matrix in (first, matching, chosen, right))
        ranks = reranked_ranks(first, matching, chosen, right)
        results = [_measure(ranks, groups[is_query], num_candidates=right.shape[1])]
        if measures_change:
            results.append(retrieval_changes(retrieval_ranks(matching, right), ranks, groups=groups[is_query]))
        for result in results:
            metrics |= with_prefix(result.metrics, f"{prefix}{direction}_")
            intervals |= with_prefix(result.intervals, f"{prefix}{direction}_")
    return RetrievalResult(metrics, intervals), second


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
    scores = _check_matrix(scores).astype(np.float64)
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


def _resampled_metrics(ranks: np.ndarray) -> dict[str, tuple[np.ndarray, ResampledStatistic]]:
    """What each metric of [`retrieval_metrics`] is in a resample: a statistic of one value per query."""
    recalls = {f"R@{cutoff}": (ranks <= cutoff, resampled_mean) for cutoff in RECALL_CUTOFFS}
    return {**recalls, "median_rank": (ranks, resampled_median), "mean_rank": (ranks, resampled_mean)}


def _change_of(statistic: ResampledStatistic, before: np.ndarray, after: np.ndarray) -> ResampledStatistic:
    """A statistic of positions of queries: that of their values after, minus that of their values before."""
    return lambda queries, counts: statistic(after[queries], counts) - statistic(before[queries], counts)


def _check_matrix(scores: np.ndarray) -> np.ndarray:
    """Return scores as floats `(num_queries, num_candidates)`, or refuse them."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0 or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"Scores must be real numbers of shape (num_queries, num_candidates), neither 0, got shape "
            f"{scores.shape} of {scores.dtype}."
        )
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)  # unsigned integers cannot be negated
    if np.isnan(scores).any():
        queries = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(
            f"The scores of {len(queries)} of {len(scores)} queries hold NaN (first: query {queries[0]}). A NaN has "
            "no rank: look for the inputs or the weights that produce it."
        )
    return scores


def _check_scores(
    scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and the bool matrix of right candidates, both `(num_queries, num_candidates)`, or refuse them."""
    scores = _check_matrix(scores)
    matrix = positives_from_groups(*positives) if isinstance(positives, tuple) else np.asarray(positives)
    if matrix.shape != scores.shape or matrix.dtype != np.bool_:
        raise ValueError(
            f"Positives must be bool of the shape of the scores {scores.shape}, or a tuple (query_groups, "
            f"candidate_groups) of that many ids, got shape {matrix.shape} of {matrix.dtype}."
        )
    return scores, matrix


def _check_answerable(positives: np.ndarray) -> None:
    """Refuse queries without a right candidate."""
    unanswerable = np.flatnonzero(~positives.any(axis=1))
    if unanswerable.size:
        raise ValueError(
            f"{unanswerable.size} of {len(positives)} queries have no right candidate (first: query "
            f"{unanswerable[0]}). Every query needs at least one: leave these queries out, and count them."
        )


def _check_ranks(ranks: np.ndarray) -> np.ndarray:
    """Return the ranks `(num_queries,)`, or refuse them."""
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or len(ranks) == 0 or ranks.dtype.kind not in "iu" or ranks.min() < 1:
        raise ValueError(
            f"Ranks must be integers from 1, one per query, got shape {ranks.shape} of {ranks.dtype}"
            + (f" with smallest {ranks.min()}." if ranks.size else ". There is no query to measure.")
        )
    return ranks
