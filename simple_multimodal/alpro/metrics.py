"""Metrics and rows as ALPRO (salesforce/ALPRO, commit 4ff6163) prints and writes them, to compare with its own.

Percentages, rounded scores, and rows counted twice belong to that protocol and stay in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import ANSWER_TYPES
from simple_multimodal.evaluation.ranking import retrieval_ranks
from simple_multimodal.evaluation.retrieval import RECALL_CUTOFFS
from simple_multimodal.evaluation.scores import ScoredPairs

SCORE_DECIMALS = 4


def alpro_retrieval_metrics(
    scores: np.ndarray, right_clips: np.ndarray, *, ties: Literal["worst", "best"] = "worst"
) -> dict[str, dict[str, float]]:
    """
    Compute metrics of retrieval in both directions as ALPRO does; `str` of the result is the literal that it prints.

    Scores are rounded to four decimals first, which creates ties. ALPRO's sort breaks these arbitrarily: its own
    numbers lie between those for `ties="worst"` and `ties="best"`. From clip to text only the **last** caption of a
    clip counts as correct and its others as wrong, so that direction is only meaningful with one caption per clip.

    Args:
        scores (`np.ndarray` of shape `(num_captions, num_clips)`):
            Probability that caption and clip match, captions in the order of the annotation.
        right_clips (`np.ndarray` of shape `(num_captions,)`, integers): Position of the clip of each caption.
        ties (`str`, *optional*, defaults to `"worst"`): As for [`retrieval_ranks`].

    Returns:
        `dict`: `text2video` and `video2text`, each with `r1`, `r5` and `r10` in percent, `medianR` and `meanR`.

    Raises:
        ValueError: If [`retrieval_ranks`] refuses the scores, or there is no clip at a position.

    Example:

    ```python
    >>> print({"text2video": alpro_retrieval_metrics(np.eye(2), np.arange(2))["text2video"]})
    {'text2video': {'r1': 100.0, 'r5': 100.0, 'r10': 100.0, 'medianR': 1.0, 'meanR': 1.0}}
    ```
    """
    scores, right_clips = _rounded(scores), np.asarray(right_clips)
    is_right = right_clips[:, None] == np.arange(scores.shape[1])  # (num_captions, num_clips)
    last_captions = dict(zip(right_clips.tolist(), range(len(right_clips)), strict=True))  # the last one stays
    clips = np.array(list(last_captions))
    is_last = np.array(list(last_captions.values()))[:, None] == np.arange(len(scores))  # (num_queries, num_captions)
    text_ranks = retrieval_ranks(scores, is_right, ties=ties)
    return {
        "text2video": _rank_statistics(text_ranks),
        "video2text": _rank_statistics(retrieval_ranks(scores.T[clips], is_last, ties=ties)),
    }


def alpro_question_answering_metrics(is_correct: np.ndarray, answer_types: Sequence[str]) -> dict:
    """
    Compute accuracies and shares of the answer types as ALPRO prints them; `str` of the result is that literal.

    Args:
        is_correct (`np.ndarray` of shape `(num_questions,)`, bool): As returned by [`correct_answers`].
        answer_types (`Sequence[str]` of length `num_questions`): Type of each question, one of `ANSWER_TYPES`.

    Returns:
        `dict`: `ratios` with `[percent of the questions, number of questions]` under `what_ratio`, …; `overall_acc`,
        `what_acc`, …, in percent. Percentages have two decimals; a type without a question has accuracy 0.

    Raises:
        ValueError: If there is no question, or not one type per question, or a type is not one of `ANSWER_TYPES`.

    Example:

    ```python
    >>> alpro_question_answering_metrics(np.array([True, False, True]), ["who", "what", "who"])["ratios"]["who_ratio"]
    [66.67, 2]
    ```
    """
    is_correct, types = np.asarray(is_correct), np.asarray(answer_types)
    if len(is_correct) == 0 or types.shape != is_correct.shape:
        raise InputError(f"Every question needs one type: got {len(types)} types for {len(is_correct)} questions.")
    unknown = sorted(set(types.tolist()) - set(ANSWER_TYPES))
    if unknown:
        raise InputError(f"ALPRO knows the answer types {', '.join(ANSWER_TYPES)}; got {unknown[0]!r}.")
    counts = {kind: int((types == kind).sum()) for kind in ANSWER_TYPES}
    return {
        "ratios": {f"{kind}_ratio": [_percent(count, len(types)), count] for kind, count in counts.items()},
        "overall_acc": _percent(int(is_correct.sum()), len(types)),
        **{
            f"{kind}_acc": _percent(int(is_correct[types == kind].sum()), count) if count else 0
            for kind, count in counts.items()
        },
    }


def padded_positions(num_rows: int, world_size: int) -> np.ndarray:
    """
    Return the positions of the rows that PyTorch's unshuffled `DistributedSampler` gives to all processes together.

    It repeats the first rows until every process has the same number, and ALPRO counts the repeated ones: its 13,160
    questions of MSVD-QA are 13,157, its 72,824 of MSR-VTT-QA 72,821, for 8 processes. Index with these positions to
    reproduce published counts; our own metrics count every row once.

    Args:
        num_rows (`int`): Rows of the dataset in the order of the loader; ALPRO's groups the questions of a clip.
        world_size (`int`): Number of processes.

    Returns:
        `np.ndarray` of shape `(ceil(num_rows / world_size) * world_size,)`, int64: all positions, then the repeated.

    Raises:
        ValueError: If one of the two is below 1.
    """
    if num_rows < 1 or world_size < 1:
        raise InputError(f"Padding needs at least one row and one process, got {num_rows} and {world_size}.")
    return np.arange(-(-num_rows // world_size) * world_size) % num_rows


def retrieval_rows(
    scored: ScoredPairs, similarities: np.ndarray, caption_ids: Sequence[int], clip_ids: Sequence[str]
) -> Iterator[dict[str, str | int | float]]:
    """
    Yield the rows of ALPRO's `results.json`, grouped by clip.

    Args:
        scored ([`ScoredPairs`]): Pairs of caption and clip that have a row, and their ranking scores, in ALPRO the
            probability that they match.
        similarities (`np.ndarray` of shape `(num_pairs,)`): Contrastive score of each pair.
        caption_ids (`Sequence[int]` of length `num_captions`): Ids of the captions, in ALPRO the rows of the
            annotation, from 0.
        clip_ids (`Sequence[str]` of length `num_clips`): Names of the clips.

    Yields:
        `dict`: `vid_id`, `txt_id`, `score` and `sim`, the last two rounded to four decimals.

    Raises:
        ValueError: If there is not one score and one similarity per pair.
    """
    if not (len(scored.pairs),) == np.shape(scored.values) == np.shape(similarities):
        raise InputError(
            f"Every pair needs one score and one similarity: got {len(scored.pairs)} pairs, scores of shape "
            f"{np.shape(scored.values)} and similarities of shape {np.shape(similarities)}."
        )
    order = np.lexsort(scored.pairs.T)  # by clip, then by caption
    ends = np.searchsorted(scored.pairs[order, 1], np.arange(len(clip_ids)), side="right")
    return (
        {"vid_id": clip, "txt_id": caption_ids[caption], "score": score, "sim": similarity}
        for clip, own in zip(clip_ids, np.split(order, ends[:-1]), strict=True)
        for caption, score, similarity in zip(
            scored.pairs[own, 0].tolist(),
            _rounded(scored.values[own]).tolist(),
            _rounded(similarities[own]).tolist(),
            strict=True,
        )
    )


def scores_from_rows(rows: Iterable[Mapping], clip_of_caption: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """
    Put the rows of a `results.json` into a matrix, to measure them with [`alpro_retrieval_metrics`].

    Args:
        rows (`Iterable[Mapping]`):
            Rows with `vid_id`, `txt_id` and `score`, in any order. Of a repeated pair the first row counts.
        clip_of_caption (`Mapping[int, str]`): `vid_id` of the clip of each `txt_id`, in the order of the annotation.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: float64 scores of shape `(num_captions, num_clips)`, captions in the order of
        `clip_of_caption` and clips in that of their first row; and the position `(num_captions,)` of the clip of each
        caption.

    Raises:
        ValueError: If `clip_of_caption` lacks the caption of a row, or a caption lacks a clip's score or its own clip.
    """
    captions = {caption: position for position, caption in enumerate(clip_of_caption)}
    clips: dict[str, int] = {}
    values: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["txt_id"] not in captions:
            raise InputError(f"A row has the caption {row['txt_id']!r}, which the annotation lacks.")
        pair = captions[row["txt_id"]], clips.setdefault(row["vid_id"], len(clips))
        values.setdefault(pair, row["score"])
    missing = sorted(set(clip_of_caption.values()) - set(clips))
    if missing or len(values) != len(captions) * len(clips):
        raise InputError(
            f"{len(values)} pairs of {len(captions)} captions and {len(clips)} clips are scored"
            + (f", none with {missing[0]!r}" if missing else "")
            + "; ranks need a score of every caption with every clip."
        )
    scores = np.empty((len(captions), len(clips)))
    scores[tuple(np.array(list(values)).T)] = list(values.values())
    return scores, np.array([clips[clip] for clip in clip_of_caption.values()])


def question_answering_rows(
    labels: np.ndarray,
    questions: Sequence[str],
    clip_ids: Sequence[str],
    answers: Sequence[str],
    answer_types: Sequence[str],
) -> Iterator[dict]:
    """
    Yield the rows of ALPRO's `results_all.json`; the id of a question is its row in the annotation, from 0.

    Args:
        labels (`np.ndarray` of shape `(num_questions,)`, integers): Predicted labels.
        questions (`Sequence[str]` of length `num_questions`): Questions.
        clip_ids (`Sequence[str]` of length `num_questions`): Name of the clip of each question.
        answers (`Sequence[str]` of length `num_questions`): Correct answers.
        answer_types (`Sequence[str]` of length `num_questions`): Types of the questions.

    Yields:
        `dict`: `question_id`, `answer` (the predicted label), and `data` with `question`, `vid_id`, `answer` (the
        correct one), `question_id` and `answer_type`.

    Raises:
        ValueError: If lengths differ.
    """
    columns = zip(np.asarray(labels).tolist(), questions, clip_ids, answers, answer_types, strict=True)
    for number, (label, question, clip, answer, kind) in enumerate(columns):
        data = {
            "question": question,
            "vid_id": clip,
            "answer": answer,
            "question_id": number,
            "answer_type": kind,
        }
        yield {"question_id": number, "answer": label, "data": data}


def _rank_statistics(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"r{cutoff}": float(100 * (ranks <= cutoff).sum() / len(ranks)) for cutoff in RECALL_CUTOFFS}
    return {**recalls, "medianR": float(np.median(ranks)), "meanR": float(ranks.mean())}


def _rounded(scores: np.ndarray) -> np.ndarray:
    """Return scores as ALPRO's files have them, in float64."""
    # A float32 times 10,000 is exact in float64, so that this is Python's `round` of each, which ALPRO calls.
    return np.asarray(scores, dtype=np.float64).round(SCORE_DECIMALS)


def _percent(count: int, total: int) -> float:
    return round(count / total * 100, 2)
