"""Compute ranks and first candidates of queries, from a matrix or, for whole sets, from blocks of scores.

Among equal scores, wrong candidates come first, then lower positions, so that constant scores give the worst ranks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.scores import Scores, as_floats, as_scores


def positives_from_groups(query_groups: np.ndarray, candidate_groups: np.ndarray) -> np.ndarray:
    """
    Mark the candidates that are right for each query: those of the same group.

    Args:
        query_groups (`np.ndarray` of shape `(num_queries,)`): Group of each query, integers or strings.
        candidate_groups (`np.ndarray` of shape `(num_candidates,)`): Group of each candidate, of the same kind.

    Returns:
        `np.ndarray` of shape `(num_queries, num_candidates)`, bool: `True` where query and candidate share a group.

    Raises:
        ValueError: If one of the two is not one-dimensional, **or** one holds strings and the other numbers.
    """
    queries, candidates = _numbered(query_groups, candidate_groups)
    return queries[:, None] == candidates


def retrieval_ranks(
    scores: np.ndarray,
    positives: np.ndarray | tuple[np.ndarray, np.ndarray],
    *,
    ties: Literal["worst", "best"] = "worst",
) -> np.ndarray:
    """
    Return the rank of the best right candidate of each query; 1 is best.

    A wrong candidate with the same score is ranked before the right one. Further right candidates of the query do not
    push its rank down.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`):
            Real scores, higher is better. Infinite scores are allowed (`-inf`: not considered).
        positives (`np.ndarray` of shape `(num_queries, num_candidates)`, bool, or a pair of group arrays):
            `True` where the candidate is right for the query, or `(query_groups, candidate_groups)` for
            [`positives_from_groups`].
        ties (`str`, *optional*, defaults to `"worst"`):
            `"best"` ranks the right candidate first among equal scores: together with the default, it bounds the rank
            under any order of equal scores. Do not report it.

    Returns:
        `np.ndarray` of shape `(num_queries,)`, int64: Ranks from 1 to `num_candidates`.

    Raises:
        ValueError: If `scores` is not a matrix of real numbers or contains NaN, `positives` is neither a bool matrix
            of that shape nor a pair of group arrays, **or** a query has no right candidate.

    Example:

    ```python
    >>> retrieval_ranks(np.array([[0.9, 0.1, 0.5], [0.3, 0.3, 0.1]]), np.eye(2, 3, dtype=bool))
    array([1, 2])
    ```
    """
    scores, positives = _check_scores(scores, positives)
    unanswerable = np.flatnonzero(~positives.any(axis=1))
    if unanswerable.size:
        raise InputError(
            f"{unanswerable.size} of {len(positives)} queries have no right candidate (first: query "
            f"{unanswerable[0]}). Every query needs at least one: leave these queries out, and report their number."
        )
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)  # (num_queries, 1)
    is_ahead = scores > best if ties == "best" else (scores >= best) & ~positives
    return 1 + is_ahead.sum(axis=1, dtype=np.int64)


def ranking(scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray], num_results: int) -> np.ndarray:
    """
    Return the first `num_results` candidates of each query, best first.

    The position of the first right candidate, from 1, is its rank in [`retrieval_ranks`].

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`): Real scores, higher is better.
        positives (`np.ndarray` or pair of `np.ndarray`): As for [`retrieval_ranks`].
        num_results (`int`): How many candidates to return per query; all of them if there are fewer.

    Returns:
        `np.ndarray` of shape `(num_queries, min(num_results, num_candidates))`, int64: Positions of candidates.

    Raises:
        ValueError: For the reasons listed in [`retrieval_ranks`], except that a query without a right candidate is
            allowed.
    """
    scores, positives = _check_scores(scores, positives)
    return np.lexsort((positives, -scores), axis=1)[:, :num_results].astype(np.int64)


NOT_A_QUERY = 0
"""Value instead of a rank for a text or clip that is not a query, because it has no right candidate."""


def is_query(ranks: np.ndarray) -> np.ndarray:
    """Return which ranks of [`Ranks`] belong to queries, that is, texts or clips with a right candidate; bool."""
    return ranks != NOT_A_QUERY


class Ranks(NamedTuple):
    """
    Ranks of a whole set in both directions.

    Args:
        texts (`np.ndarray` of shape `(num_texts,)`, int64):
            Rank of the best right clip, from 1; `NOT_A_QUERY` for a text without one.
        clips (`np.ndarray` of shape `(num_clips,)`, int64):
            Rank of the best right text, from 1; `NOT_A_QUERY` for a clip without one.
        first_wrong (`np.ndarray` of shape `(num_texts,)`, int64):
            Position of the wrong clip with the highest score, the first of equal ones; arbitrary if no clip is wrong.
    """

    texts: np.ndarray
    clips: np.ndarray
    first_wrong: np.ndarray


def text_clip_ranks(scores: Scores | np.ndarray, text_groups: np.ndarray, clip_groups: np.ndarray) -> Ranks:
    """
    Rank a whole set in both directions, a block of scores at a time.

    Two passes over the blocks serve both directions: the first finds the best right candidate of every query, the
    second counts the wrong ones ranked before it.

    Args:
        scores ([`Scores`] or `np.ndarray` of shape `(num_texts, num_clips)`): Score of each caption with each clip.
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each caption describes.
        clip_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.

    Returns:
        [`Ranks`], the same on all processes.

    Raises:
        ValueError: If scores are not real numbers or contain NaN, **or** there is not one group per text and per clip.
    """
    scores = as_scores(scores)
    texts, clips = _groups_of(scores, text_groups, clip_groups)
    best_of_text = np.full(len(texts), -np.inf, scores.dtype)
    best_of_clip = np.full(len(clips), -np.inf, scores.dtype)
    first_wrong = np.zeros(len(texts), np.int64)
    is_nan = np.zeros(len(texts), np.bool_)
    for rows, block in scores.blocks():
        is_right = texts[rows, None] == clips
        is_nan[rows] = np.isnan(block.max(axis=1))
        right = np.where(is_right, block, -np.inf)
        best_of_text[rows] = right.max(axis=1)
        np.maximum(best_of_clip, right.max(axis=0), out=best_of_clip)
        first_wrong[rows] = np.where(is_right, -np.inf, block).argmax(axis=1)
    # Texts in other processes' blocks still have the lowest possible values.
    best_of_text, best_of_clip, first_wrong, is_nan = scores.combine(
        np.maximum, best_of_text, best_of_clip, first_wrong, is_nan
    )
    _refuse_nan(is_nan)
    num_before_text = np.zeros(len(texts), np.int64)
    num_before_clip = np.zeros(len(clips), np.int64)
    for rows, block in scores.blocks():
        is_wrong = texts[rows, None] != clips
        num_before_text[rows] = ((block >= best_of_text[rows, None]) & is_wrong).sum(axis=1)
        num_before_clip += ((block >= best_of_clip) & is_wrong).sum(axis=0)
    num_before_text, num_before_clip = scores.combine(np.add, num_before_text, num_before_clip)
    return Ranks(
        np.where(np.isin(texts, clips), 1 + num_before_text, NOT_A_QUERY),
        np.where(np.isin(clips, texts), 1 + num_before_clip, NOT_A_QUERY),
        first_wrong,
    )


def right_pairs(text_groups: np.ndarray, clip_groups: np.ndarray) -> np.ndarray:
    """
    List the pairs of texts and their clips.

    Args:
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each caption describes.
        clip_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2)`, int64: Positions of text and clip of one group, ascending.
    """
    texts, clips = _numbered(text_groups, clip_groups)
    order = np.argsort(clips, kind="stable")
    low, high = (np.searchsorted(clips[order], texts, side) for side in ("left", "right"))
    counts = high - low
    within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return np.stack([np.repeat(np.arange(len(texts)), counts), order[np.repeat(low, counts) + within]], axis=1)


def all_pairs(shape: tuple[int, int]) -> np.ndarray:
    """List all pairs of `(num_texts, num_clips)` scores: `(num_pairs, 2)` positions of text and clip, ascending."""
    num_texts, num_clips = shape
    return pairs_of_keys(np.arange(num_texts * num_clips), num_clips)


def first_pairs(
    scores: Scores | np.ndarray, text_groups: np.ndarray, clip_groups: np.ndarray, num_results: int | None
) -> np.ndarray:
    """
    List the pairs in which either side is among the first `num_results` candidates of the other.

    Args:
        scores ([`Scores`] or `np.ndarray` of shape `(num_texts, num_clips)`): Score of each caption with each clip.
        text_groups, clip_groups (`np.ndarray`): As for [`text_clip_ranks`].
        num_results (`int`, *optional*): Number of candidates per query; `None` for all.

    Returns:
        `np.ndarray` of shape `(num_pairs, 2)`, int64: Positions of text and clip, ascending, without repeats.
    """
    scores = as_scores(scores)
    keys = np.union1d(*first_keys(scores, text_groups, clip_groups, num_results))
    return pairs_of_keys(keys, scores.shape[1])


def pairs_of_keys(keys: np.ndarray, num_clips: int) -> np.ndarray:
    """Return positions `(num_pairs, 2)` of text and clip from keys `text * num_clips + clip`."""
    return np.stack(np.divmod(keys, num_clips), axis=1)


def keys_of_pairs(pairs: np.ndarray, num_clips: int) -> np.ndarray:
    """Return keys `text * num_clips + clip` of pairs `(num_pairs, 2)` of text and clip; see [`pairs_of_keys`]."""
    return pairs[:, 0] * num_clips + pairs[:, 1]


def first_keys(
    scores: Scores, text_groups: np.ndarray, clip_groups: np.ndarray, num_results: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose the first `num_results` candidates of each query, in one pass over the blocks.

    Args:
        scores ([`Scores`]): Score of each caption with each clip, without NaN, which [`text_clip_ranks`] rejects.
        text_groups, clip_groups (`np.ndarray`): As for [`text_clip_ranks`].
        num_results (`int`, *optional*): Number of candidates per query; `None` for all.

    Returns:
        `tuple`: The pairs chosen for texts, and those chosen for clips, each as ascending keys
        `text * num_clips + clip`, int64.
    """
    texts, clips = _groups_of(scores, text_groups, clip_groups)
    num_texts, num_clips = scores.shape
    if num_results is None or num_results >= max(scores.shape):
        every = np.arange(num_texts * num_clips)
        return every, every
    if num_results == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    for_texts = [np.empty(0, np.int64)]
    for_clips = _FirstOfColumns(texts, clips, num_results)
    for rows, block in scores.blocks():
        is_right = texts[rows, None] == clips
        for_texts.append(np.flatnonzero(_is_first(block, is_right, num_results)) + rows.start * num_clips)
        for_clips.add(rows.start, block, is_right)
    parts = scores.processes.gather((np.concatenate(for_texts), for_clips.best()))
    for_clips.replace([own for _, own in parts])
    of_clips, of_texts, _ = for_clips.best()
    return np.sort(np.concatenate([own for own, _ in parts])), np.sort(of_texts * num_clips + of_clips)


def _is_first(scores: np.ndarray, is_right: np.ndarray, num_results: int) -> np.ndarray:
    """Mark the first `num_results` of each row of `(num_queries, num_candidates)` scores, without a full sort."""
    if num_results >= scores.shape[1]:
        return np.ones(scores.shape, np.bool_)
    place = scores.shape[1] - num_results
    last = np.partition(scores, place, axis=1)[:, place, None]  # the lowest score among the first
    is_first, is_equal = scores > last, scores == last
    num_left = num_results - is_first.sum(axis=1, keepdims=True)
    for kind in (is_equal & ~is_right, is_equal & is_right):
        num_kind = kind.sum(axis=1, keepdims=True)
        cut = np.flatnonzero(num_kind > num_left)  # rows in which only the lower positions fit
        kind[cut] &= kind[cut].cumsum(axis=1) <= num_left[cut]
        is_first |= kind
        num_left = np.maximum(num_left - num_kind, 0)
    return is_first


Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Column, row and score of each candidate."""


class _FirstOfColumns:
    """
    Collects the first `num_results` rows of each column from blocks in ascending order.

    Once a column has that many, only a few rows of a later block can still be among its first. These candidates are
    collected until there are as many of them as first rows, and then sorted together with the first rows.
    """

    def __init__(self, row_groups: np.ndarray, column_groups: np.ndarray, num_results: int):
        self.row_groups, self.column_groups, self.num_results = row_groups, column_groups, num_results
        self.num_rows = 0
        self.last: tuple[np.ndarray, np.ndarray] | None = None  # score and rightness of the last one of each column
        self.replace([])

    def replace(self, candidates: list[Candidates]) -> None:
        self.waiting, self.num_waiting = candidates, sum(len(rows) for _, rows, _ in candidates)

    def add(self, begin: int, block: np.ndarray, is_right: np.ndarray) -> None:
        if self.last is None:
            is_candidate = _is_first(block.T, is_right.T, self.num_results).T
        else:
            score, last_is_right = self.last
            # Among equal scores, later rows come last, except that wrong ones come before right ones.
            is_candidate = (block > score) | ((block == score) & last_is_right & ~is_right)
        rows, columns = np.nonzero(is_candidate)
        self.waiting.append((columns, rows + begin, block[rows, columns]))
        self.num_waiting += len(rows)
        self.num_rows += len(block)
        size = len(self.column_groups) * self.num_results
        is_full = self.num_rows >= self.num_results
        if is_full and (self.last is None or self.num_waiting >= 2 * size):
            columns, rows, scores = best = self.best()
            self.replace([best])
            ends = slice(self.num_results - 1, None, self.num_results)
            self.last = scores[ends], self.row_groups[rows[ends]] == self.column_groups

    def best(self) -> Candidates:
        """Return the first rows of each column, column by column, best first."""
        if not self.waiting:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        columns, rows, scores = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        is_right = self.row_groups[rows] == self.column_groups[columns]
        order = np.lexsort((rows, is_right, -scores, columns))
        starts = np.searchsorted(columns[order], np.arange(len(self.column_groups)))
        order = order[np.arange(len(order)) - starts[columns[order]] < self.num_results]
        return columns[order], rows[order], scores[order]


def _numbered(query_groups: np.ndarray, candidate_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return groups as numbers in the same order, or raise an error if they are invalid."""
    query_groups, candidate_groups = np.asarray(query_groups), np.asarray(candidate_groups)
    if query_groups.ndim != 1 or candidate_groups.ndim != 1:
        raise InputError(
            f"Groups must be one id per query and one per candidate, got shapes {query_groups.shape} and "
            f"{candidate_groups.shape}. Pass two one-dimensional arrays."
        )
    kinds = {groups.dtype.kind for groups in (query_groups, candidate_groups)}
    if len(kinds) > 1 and not kinds <= {"U", "S"}:
        raise InputError(
            f"Groups of queries and candidates must be of one kind, got {query_groups.dtype} and "
            f"{candidate_groups.dtype}. Pass integers for both or strings for both."
        )
    numbers = np.unique(np.concatenate([query_groups, candidate_groups]), return_inverse=True)[1]
    return numbers[: len(query_groups)], numbers[len(query_groups) :]


def _groups_of(scores: Scores, text_groups: np.ndarray, clip_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups of both sides of scores as numbers, or raise an error if they are invalid."""
    texts, clips = _numbered(text_groups, clip_groups)
    if (len(texts), len(clips)) != scores.shape:
        raise InputError(
            f"Scores of shape {scores.shape} need one group per text and one per clip, got {len(texts)} and "
            f"{len(clips)}."
        )
    return texts, clips


def _refuse_nan(is_nan: np.ndarray) -> None:
    """Raise an error if the scores of some queries contain NaN."""
    queries = np.flatnonzero(is_nan)
    if queries.size:
        raise InputError(
            f"The scores of {len(queries)} of {len(is_nan)} queries contain NaN (first: query {queries[0]}), which "
            "cannot be ranked. Check the inputs and the weights."
        )


def _check_scores(
    scores: np.ndarray, positives: np.ndarray | tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and the bool matrix of right candidates, both `(num_queries, num_candidates)`, once checked."""
    scores = as_floats(scores)
    _refuse_nan(np.isnan(scores).any(axis=1))
    matrix = positives_from_groups(*positives) if isinstance(positives, tuple) else np.asarray(positives)
    if matrix.shape != scores.shape or matrix.dtype != np.bool_:
        raise InputError(
            f"Positives must be bool of the shape of the scores {scores.shape}, or a tuple (query_groups, "
            f"candidate_groups) of that many ids, got shape {matrix.shape} of {matrix.dtype}."
        )
    return scores, matrix
