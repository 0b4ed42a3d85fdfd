"""Re-ranking: sort the first candidates of each query with a second, slower model.

Choose the pairs to score ([`choose_candidates`]), score them, and rank again ([`rerank`]).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.ranking import Ranks, first_keys, keys_of_pairs, pairs_of_keys
from simple_multimodal.evaluation.scores import Scores, as_scores


class Candidates(NamedTuple):
    """
    Pairs of text and clip to score with a second model.

    A pair can be a candidate in both directions, in one, or in none if it is scored for another purpose.

    Args:
        pairs (`np.ndarray` of shape `(num_pairs, 2)`, int64): Positions of text and clip, ascending, without repeats.
        is_of_text (`np.ndarray` of shape `(num_pairs,)`, bool):
            Whether the clip is among the first candidates of the text.
        is_of_clip (`np.ndarray` of shape `(num_pairs,)`, bool):
            Whether the text is among the first candidates of the clip.
    """

    pairs: np.ndarray
    is_of_text: np.ndarray
    is_of_clip: np.ndarray


def choose_candidates(
    scores: Scores | np.ndarray,
    text_groups: np.ndarray,
    clip_groups: np.ndarray,
    top_k: int | None = None,
    *,
    needed: np.ndarray | None = None,
) -> Candidates:
    """
    Choose the first candidates of each query, in both directions.

    If the last chosen candidate of a query has the same score as others, wrong candidates are chosen first.

    Args:
        scores ([`Scores`] or `np.ndarray` of shape `(num_texts, num_clips)`): First scores, e.g. cosines.
        text_groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each text describes.
        clip_groups (`np.ndarray` of shape `(num_clips,)`): Group of each clip.
        top_k (`int`, *optional*): Number of candidates per query; all by default.
        needed (`np.ndarray` of shape `(num_pairs, 2)`, int64, *optional*):
            Further pairs to score, which are not re-ranked.

    Returns:
        [`Candidates`], the same on all processes.
    """
    scores = as_scores(scores)
    num_clips = scores.shape[1]
    for_texts, for_clips = first_keys(scores, text_groups, clip_groups, top_k)
    keys = np.union1d(for_texts, for_clips)
    if needed is not None:
        keys = np.union1d(keys, keys_of_pairs(needed, num_clips))
    return Candidates(
        pairs=pairs_of_keys(keys, num_clips),
        is_of_text=np.isin(keys, for_texts, assume_unique=True),
        is_of_clip=np.isin(keys, for_clips, assume_unique=True),
    )


def rerank(
    ranks: Ranks, candidates: Candidates, values: np.ndarray, text_groups: np.ndarray, clip_groups: np.ndarray
) -> Ranks:
    """
    Rank both directions again, with the candidates of each query sorted by their second scores.

    The candidates of a query come first, in the order of the second scores; all others follow in the order of the
    first scores. A query without a right one among its candidates therefore keeps its rank.

    Args:
        ranks ([`Ranks`]): Ranks by the first scores.
        candidates ([`Candidates`]): What [`choose_candidates`] returned.
        values (`np.ndarray` of shape `(num_pairs,)`, floating): Second score of each pair.
        text_groups, clip_groups (`np.ndarray`): As for [`choose_candidates`].

    Returns:
        [`Ranks`] of texts and clips; `first_wrong` is still that of the first scores.

    Raises:
        ValueError: If a second score is NaN.
    """
    refuse_nan(values)
    texts, clips = candidates.pairs.T
    is_right = np.asarray(text_groups)[texts] == np.asarray(clip_groups)[clips]
    of_text, of_clip = candidates.is_of_text, candidates.is_of_clip
    return ranks._replace(
        texts=_rerank_direction(ranks.texts, texts[of_text], is_right[of_text], values[of_text]),
        clips=_rerank_direction(ranks.clips, clips[of_clip], is_right[of_clip], values[of_clip]),
    )


def _rerank_direction(ranks: np.ndarray, queries: np.ndarray, is_right: np.ndarray, values: np.ndarray) -> np.ndarray:
    """
    Rank the queries of one direction again.

    Second scores are compared only with each other: sorting them together with first scores would need an offset,
    which might round different scores to equal ones.

    Args:
        ranks (`np.ndarray` of shape `(num_queries,)`): Ranks by the first scores.
        queries (`np.ndarray` of shape `(num_pairs,)`): Query of each scored pair.
        is_right (`np.ndarray` of shape `(num_pairs,)`, bool): Whether its candidate is right.
        values (`np.ndarray` of shape `(num_pairs,)`): Its second score.
    """
    best_right = np.full(len(ranks), -np.inf, values.dtype)
    np.maximum.at(best_right, queries[is_right], values[is_right])
    is_ahead = ~is_right & (values >= best_right[queries])  # wrong candidates come first among equal scores
    num_ahead = np.bincount(queries[is_ahead], minlength=len(ranks))
    num_right = np.bincount(queries[is_right], minlength=len(ranks))
    return np.where(num_right > 0, 1 + num_ahead, ranks)


def refuse_nan(values: np.ndarray) -> None:
    """Raise a `ValueError` if values that a matching head gave are NaN."""
    if num_nan := int(np.isnan(values).sum()):
        raise InputError(
            f"The matching head returned NaN for {num_nan} of {len(values)} pairs. Check the inputs and the weights."
        )
