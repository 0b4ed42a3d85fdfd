"""Re-ranking against cases computed by hand and a naive implementation."""

import numpy as np
import pytest

from simple_multimodal.evaluation import scores as scores_module
from simple_multimodal.evaluation.ranking import all_pairs, text_clip_ranks
from simple_multimodal.evaluation.reranking import choose_candidates, rerank
from simple_multimodal.evaluation.scores import MatrixScores
from tests.evaluation.processes import together


def rerank_by(second, scores, text_groups, clip_groups, top_k=None, **settings):
    """Rank by `scores`, re-rank by the matrix `second`, and return the new ranks and the scored pairs."""
    ranks = text_clip_ranks(scores, text_groups, clip_groups)
    candidates = choose_candidates(scores, text_groups, clip_groups, top_k, **settings)
    reranked = rerank(ranks, candidates, second[tuple(candidates.pairs.T)], text_groups, clip_groups)
    return reranked, candidates.pairs.tolist()


def test_first_candidates_and_further_pairs_are_chosen_once():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    groups = np.array([0, 1]), np.array([0, 1, 2])
    candidates = choose_candidates(scores, *groups, 1)
    assert candidates.pairs.tolist() == [[0, 0], [0, 1], [1, 2]]
    assert candidates.is_of_text.tolist() == [True, False, True]
    assert candidates.is_of_clip.tolist() == [True, True, True]
    candidates = choose_candidates(scores, *groups, 1, needed=np.array([[1, 0], [0, 2], [1, 0], [0, 0]]))
    assert candidates.pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]]
    assert candidates.is_of_text.tolist() == [True, False, False, False, True]
    assert choose_candidates(scores, *groups, 0, needed=np.array([[0, 1]])).pairs.tolist() == [[0, 1]]
    # With two candidates, each clip has all texts: all pairs are scored, although a text has three clips.
    candidates = choose_candidates(scores, *groups, 2)
    assert candidates.pairs.tolist() == all_pairs(scores.shape).tolist()
    assert candidates.is_of_text.tolist() == [True, True, False, False, True, True] and candidates.is_of_clip.all()
    every = choose_candidates(scores, *groups)
    assert every.pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert every.is_of_text.all() and every.is_of_clip.all()


def test_further_pairs_do_not_change_ranks():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    second = np.array([[-1.0, 2.0, 9.0], [9.0, 5.0, 1.0]])
    groups = np.array([0, 1]), np.array([0, 1, 2])
    ranks, _ = rerank_by(second, scores, *groups, top_k=1)
    assert ranks.texts.tolist() == [1, 2]  # one candidate each: the order does not change
    ranks, _ = rerank_by(second, scores, *groups, top_k=1, needed=all_pairs(scores.shape))
    assert ranks.texts.tolist() == [1, 2]
    ranks, _ = rerank_by(second, scores, *groups, top_k=2)
    assert ranks.texts.tolist() == [2, 1]  # the first text's clip falls behind, the second's rises
    assert ranks.clips.tolist() == [2, 1, 0]  # no text describes the third clip
    ranks, _ = rerank_by(second, scores, *groups)
    assert ranks.texts.tolist() == [3, 2]


def test_reranked_ranks_equal_a_case_computed_by_hand():
    # Candidates 0 and 1 of the first text swap places; the candidates of the second do not include its own clip.
    scores = np.array([[0.6, 0.5, 0.4, 0.3, 0.2], [0.9, 0.8, 0.1, 0.1, 0.1]])
    second = np.array([[-3.0, 9.0, 99.0, 99.0, 99.0], [0.0, 1.0, 99.0, 99.0, 99.0]])
    for right, expected in {0: [2, 2], 1: [1, 1], 2: [3, 5], 4: [5, 5]}.items():
        ranks, _ = rerank_by(second, scores, np.array([right, right]), np.arange(5), top_k=2)
        assert ranks.texts.tolist() == expected


def naive_reranked_rank(scores, second, positives, top_k):
    """Sort the first `top_k` candidates again, wrong ones first among equals, and find the first right one."""
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], bool(positives[c]), c))
    order = sorted(order[:top_k], key=lambda c: (-second[c], bool(positives[c]))) + order[top_k:]
    return 1 + [bool(positives[c]) for c in order].index(True)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("rows_per_block", [1, 5, 99])
@pytest.mark.parametrize("seed", range(8))
def test_reranking_in_blocks_equals_a_naive_implementation(monkeypatch, seed, rows_per_block, num_processes):
    generator = np.random.default_rng(seed)
    num_texts, num_clips = generator.integers(2, 25, size=2)
    texts, clips = generator.integers(0, 12, size=num_texts), generator.integers(0, 12, size=num_clips)
    texts[0] = clips[0]
    scores = generator.integers(0, 5, size=(num_texts, num_clips)).astype(np.float32)
    second = generator.integers(-3, 3, size=scores.shape).astype(np.float32)
    second[generator.random(scores.shape) < 0.2] = -np.inf  # samples that could not be read
    monkeypatch.setattr(scores_module, "MAX_BLOCK_ELEMENTS", rows_per_block * num_clips)
    monkeypatch.setattr(scores_module, "ROW_MULTIPLE", 1)
    right = texts[:, None] == clips
    for top_k in (1, 3, 30):
        expected = [
            [naive_reranked_rank(*row, top_k) if row[2].any() else 0 for row in zip(*matrices, strict=True)]
            for matrices in ((scores, second, right), (scores.T, second.T, right.T))
        ]
        for ranks, _ in together(
            num_processes,
            lambda own, top_k=top_k: rerank_by(second, MatrixScores(scores, own), texts, clips, top_k=top_k),
        ):
            assert [ranks.texts.tolist(), ranks.clips.tolist()] == expected
    by_second = text_clip_ranks(second, texts, clips)  # if all are candidates, first scores do not matter
    assert [by_second.texts.tolist(), by_second.clips.tolist()] == expected


def test_groups_can_be_strings():
    scores, second = np.array([[0.2, 0.1], [0.3, 0.4]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    ranks, _ = rerank_by(second, scores, np.array(["a", "b"]), np.array(["a", "b"]))
    assert ranks.texts.tolist() == ranks.clips.tolist() == [2, 2]


def test_ranks_do_not_change_without_candidates():
    groups = np.arange(3), np.arange(3)
    ranks = text_clip_ranks(np.eye(3), *groups)._replace(texts=np.array([3, 3, 3]))
    reranked = rerank(ranks, choose_candidates(np.eye(3), *groups, 0), np.empty(0, np.float32), *groups)
    assert reranked.texts.tolist() == [3, 3, 3] and reranked.clips.tolist() == [1, 1, 1]


def test_nan_in_second_scores_is_refused():
    second = np.array([[0, 0], [np.nan, 1]])
    with pytest.raises(ValueError, match="NaN for 1 of 4 pairs"):
        rerank_by(second, np.eye(2), np.arange(2), np.arange(2))
