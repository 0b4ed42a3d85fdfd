"""Retrieval metrics and re-ranking against hand-computed cases and naive twins."""

import csv

import numpy as np
import pytest

from simple_multimodal.evaluation import scores as scores_module
from simple_multimodal.evaluation.ranking import retrieval_ranks, text_video_ranks
from simple_multimodal.evaluation.retrieval import (
    dual_softmax,
    duplicate_captions,
    matched_retrieval,
    retrieval_changes,
    retrieval_intervals,
    retrieval_metrics,
    text_video_retrieval,
    with_prefix,
)
from simple_multimodal.evaluation.scores import MatrixScores
from tests.evaluation.processes import together


def test_metrics_by_hand():
    assert retrieval_metrics(np.array([1, 1, 2, 6, 11, 3])) == {
        "R@1": 2 / 6,
        "R@5": 4 / 6,
        "R@10": 5 / 6,
        "median_rank": 2.5,
        "mean_rank": 4.0,
        "num_queries": 6,
    }


@pytest.mark.parametrize("ranks", [[], [0, 1], [1.0, 2.0], [[1]]])
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(ValueError, match="Ranks must be integers from 1"):
        retrieval_metrics(np.array(ranks))


def test_with_prefix_names_the_direction():
    assert with_prefix({"R@1": 0.5}, "text_to_video_") == {"text_to_video_R@1": 0.5}


def test_text_video_retrieval_by_hand():
    # Texts 0 and 1 describe clip 10, text 2 describes clip 20; clip 30 has no text, text 3 no clip.
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.1, 0.4], [0.0, 0.7, 0.9], [0.95, 0.8, 0.1]])
    metrics, intervals = text_video_retrieval(scores, np.array([10, 10, 20, 99]), np.array([10, 20, 30]))
    assert metrics == {
        "text_to_video_R@1": 1 / 3,
        "text_to_video_R@5": 1.0,
        "text_to_video_R@10": 1.0,
        "text_to_video_median_rank": 2.0,
        "text_to_video_mean_rank": 5 / 3,
        "text_to_video_num_queries": 3,
        "text_to_video_num_candidates": 3,
        "video_to_text_R@1": 0.0,
        "video_to_text_R@5": 1.0,
        "video_to_text_R@10": 1.0,
        "video_to_text_median_rank": 2.0,
        "video_to_text_mean_rank": 2.0,
        "video_to_text_num_queries": 2,
        "video_to_text_num_candidates": 4,
    }
    assert set(intervals) == {name for name in metrics if "num_" not in name}
    # Two clips are drawn: both captions of clip 10 come together, so R@1 is 1/2, 1/3 or 0.
    assert intervals["text_to_video_R@1"] == (0.0, 0.5)


def test_text_video_retrieval_takes_a_prefix():
    metrics, intervals = text_video_retrieval(np.eye(3), np.arange(3), np.arange(3), prefix="matching_")
    assert metrics["matching_video_to_text_R@1"] == 1.0
    assert intervals["matching_video_to_text_R@1"] == (1.0, 1.0)


def test_text_video_retrieval_without_any_pair_is_refused():
    with pytest.raises(ValueError, match="None of 2 texts belongs to any of 3 clips"):
        text_video_retrieval(np.zeros((2, 3)), np.array([1, 2]), np.array([3, 4, 5]))


def test_intervals_contain_the_metrics():
    ranks = np.random.default_rng(0).geometric(0.4, size=100)
    metrics, intervals = retrieval_metrics(ranks), retrieval_intervals(ranks)
    assert list(intervals) == ["R@1", "R@5", "R@10", "median_rank", "mean_rank"]
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
    assert intervals["R@1"][0] < intervals["R@1"][1]


def test_of_several_captions_each_is_a_query_and_the_best_finds_for_its_clip():
    scores = np.array([[0.2, 0.9], [0.8, 0.1], [0.7, 0.6]])  # captions 0 and 1 describe clip 0
    metrics, _ = text_video_retrieval(scores, np.array([0, 0, 1]), np.array([0, 1]))
    assert (metrics["text_to_video_num_queries"], metrics["text_to_video_R@1"]) == (3, 1 / 3)
    # Clip 0 has caption 1 first, the better of its two; clip 1 has caption 0 before its own.
    assert (metrics["video_to_text_num_queries"], metrics["video_to_text_R@1"]) == (2, 1 / 2)
    assert metrics["video_to_text_mean_rank"] == 1.5


def test_changes_by_hand():
    metrics, intervals = retrieval_changes(np.array([2, 1, 7, 30]), np.array([1, 1, 3, 12]))
    assert metrics == {
        "R@1_change": 0.25,
        "R@5_change": 0.25,
        "R@10_change": 0.0,
        "median_rank_change": -2.5,
        "mean_rank_change": -5.75,
    }
    assert set(intervals) == set(metrics)
    assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())


def test_intervals_of_changes_are_paired():
    ranks = np.random.default_rng(0).geometric(0.3, size=50)
    _, intervals = retrieval_changes(ranks, ranks + 2)
    assert intervals["mean_rank_change"] == pytest.approx((2.0, 2.0), rel=1e-12)
    assert intervals["median_rank_change"] == (2.0, 2.0)
    with pytest.raises(ValueError, match="Got 50 ranks before and 49 after"):
        retrieval_changes(ranks, ranks[1:])


def test_intervals_of_changes_are_drawn_by_clip():
    before = np.full(400, 2)
    after = np.repeat(np.where(np.arange(20) < 10, 1, 2), 20)
    (low, high), (clip_low, clip_high) = (
        retrieval_changes(before, after, groups=groups).intervals["R@1_change"]
        for groups in (None, np.repeat(np.arange(20), 20))
    )
    assert clip_high - clip_low > 3 * (high - low)


def test_dual_softmax_by_hand():
    # Weights of the first column: exp(ln 3) to exp(0), of the second: equal.
    scores = np.array([[np.log(3), 0.5], [0.0, 0.5]])
    np.testing.assert_allclose(dual_softmax(scores, temperature=1.0), [[0.75 * np.log(3), 0.25], [0.0, 0.25]])


def test_dual_softmax_takes_a_clip_away_from_the_query_that_fits_it_less():
    scores = np.array([[0.9, 0.6], [0.8, 0.75]])
    assert retrieval_ranks(scores, np.eye(2, dtype=bool)).tolist() == [1, 2]
    assert retrieval_ranks(dual_softmax(scores, temperature=0.05), np.eye(2, dtype=bool)).tolist() == [1, 1]
    # One query alone has nothing to compare with.
    np.testing.assert_array_equal(dual_softmax(scores[:1], temperature=0.05), scores[:1])


@pytest.mark.parametrize("seed", range(10))
def test_dual_softmax_follows_the_order_of_queries_and_keeps_what_is_not_positive(seed):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(5, 4))
    weighed = dual_softmax(scores, temperature=0.1)
    order = generator.permutation(5)
    np.testing.assert_allclose(dual_softmax(scores[order], temperature=0.1), weighed[order], rtol=1e-12)
    np.testing.assert_array_equal(weighed[scores <= 0], scores[scores <= 0])
    assert (weighed[scores > 0] >= 0).all()


def test_wrong_dual_softmax_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are infinite"):
        dual_softmax(np.array([[0.0, -np.inf]]), temperature=1.0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        dual_softmax(np.zeros((1, 2)), temperature=0)


def test_duplicates_are_captions_of_several_clips():
    captions = ["a man sings", "A man\tsings ", "a dog", "a dog", "a man runs"]
    assert duplicate_captions(captions, np.array(["x", "y", "z", "z", "x"])).tolist() == [True, True, *[False] * 3]
    assert duplicate_captions([], np.array([])).tolist() == []
    with pytest.raises(ValueError, match="got 5 captions and 1 groups"):
        duplicate_captions(captions, np.array([0]))


def test_duplicates_of_a_real_test_set(shared_dir):
    with open(shared_dir / "data/annotations/msrvtt/MSRVTT_JSFUSION_test.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    captions, clips = [row["sentence"] for row in rows], np.array([row["video_id"] for row in rows])
    assert duplicate_captions(captions, clips).sum() == 9


def test_a_second_model_scores_the_first_candidates_and_what_else_is_needed():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    second = np.array([[-1.0, 2.0, 9.0], [9.0, 5.0, 1.0]])
    seen = []

    def match(pairs: np.ndarray) -> np.ndarray:
        seen.append(pairs.tolist())
        return second[pairs[:, 0], pairs[:, 1]]

    groups = np.array([0, 1]), np.array([0, 1, 2])
    result, scored = matched_retrieval(scores, *groups, match, top_k=1)
    assert seen.pop() == [[0, 0], [0, 1], [1, 2]]  # the best of a text, or of a clip
    assert (scored.pairs.tolist(), scored.values.tolist()) == ([[0, 0], [0, 1], [1, 2]], [-1.0, 2.0, 1.0])
    assert result.metrics["matching_text_to_video_R@1"] == 0.5  # one candidate each: the order stays
    # Asking for others besides changes no rank.
    result, scored = matched_retrieval(scores, *groups, match, top_k=1, needed=np.array([[1, 0], [0, 2], [1, 0]]))
    assert seen.pop() == scored.pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]]
    assert result.metrics["matching_text_to_video_mean_rank"] == (1 + 2) / 2
    _, scored = matched_retrieval(scores, *groups, match, top_k=0, needed=np.array([[0, 1]]))
    assert seen.pop() == scored.pairs.tolist() == [[0, 1]]
    result, _ = matched_retrieval(scores, *groups, match, top_k=2)
    assert seen.pop() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    ranks = result.metrics["matching_text_to_video_mean_rank"]
    assert ranks == (2 + 1) / 2  # the first text's clip falls behind, the second's rises
    every, scored = matched_retrieval(scores, *groups, match)
    assert every.metrics["matching_text_to_video_mean_rank"] == (3 + 2) / 2
    assert scored.values.reshape(scores.shape).tolist() == second.tolist()
    assert set(every.intervals) <= set(every.metrics)


def test_reranked_ranks_by_hand():
    # Of the first text, candidates 0 and 1 are scored, and change places; the second finds none of its own among them.
    scores = np.array([[0.6, 0.5, 0.4, 0.3, 0.2], [0.9, 0.8, 0.1, 0.1, 0.1]])
    second = np.array([[-3.0, 9.0, 99.0, 99.0, 99.0], [0.0, 1.0, 99.0, 99.0, 99.0]])
    for right, mean_rank in {0: (2 + 2) / 2, 1: (1 + 1) / 2, 2: (3 + 5) / 2, 4: (5 + 5) / 2}.items():
        result, _ = matched_retrieval(
            scores,
            np.array([right, right]),
            np.arange(5),
            lambda pairs: second[pairs[:, 0], pairs[:, 1]],
            top_k=2,
        )
        assert result.metrics["matching_text_to_video_mean_rank"] == mean_rank


def naive_reranked_rank(scores, second, positives, top_k):
    """Sort the first `top_k` candidates anew, wrong ones first among equals, and look for the first right one."""
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], bool(positives[c]), c))
    order = sorted(order[:top_k], key=lambda c: (-second[c], bool(positives[c]))) + order[top_k:]
    return 1 + [bool(positives[c]) for c in order].index(True)


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("rows_per_block", [1, 5, 99])
@pytest.mark.parametrize("seed", range(8))
def test_reranking_in_blocks_equals_the_naive_twin(monkeypatch, seed, rows_per_block, num_processes):
    generator = np.random.default_rng(seed)
    num_texts, num_clips = generator.integers(2, 25, size=2)
    texts, clips = generator.integers(0, 12, size=num_texts), generator.integers(0, 12, size=num_clips)
    texts[0] = clips[0]
    scores = generator.integers(0, 5, size=(num_texts, num_clips)).astype(np.float32)
    second = generator.integers(-3, 3, size=scores.shape).astype(np.float32)
    monkeypatch.setattr(scores_module, "MAX_BLOCK_ELEMENTS", rows_per_block * num_clips)
    monkeypatch.setattr(scores_module, "ROW_MULTIPLE", 1)
    right = texts[:, None] == clips
    for top_k in (1, 3, 30):
        for result, scored in together(
            num_processes,
            lambda own, top_k=top_k: matched_retrieval(
                MatrixScores(scores, own), texts, clips, lambda pairs: second[pairs[:, 0], pairs[:, 1]], top_k=top_k
            ),
        ):
            for direction, matrices in (
                ("text_to_video", (scores, second, right)),
                ("video_to_text", (scores.T, second.T, right.T)),
            ):
                rows = zip(*matrices, strict=True)
                expected = [naive_reranked_rank(*row, top_k) for row in rows if row[2].any()]
                assert result.metrics[f"matching_{direction}_mean_rank"] == np.mean(expected)
                assert result.metrics[f"matching_{direction}_R@1"] == np.mean(np.array(expected) == 1)
            np.testing.assert_array_equal(scored.values, second[scored.pairs[:, 0], scored.pairs[:, 1]])


def test_known_ranks_are_not_measured_again():
    scores, groups = np.eye(3), (np.arange(3), np.arange(3))
    ranks = text_video_ranks(scores, *groups)._replace(texts=np.array([3, 3, 3]))
    assert text_video_retrieval(scores, *groups, ranks=ranks).metrics["text_to_video_mean_rank"] == 3
    result, _ = matched_retrieval(scores, *groups, lambda pairs: np.zeros(len(pairs)), top_k=0, ranks=ranks)
    assert result.metrics["matching_text_to_video_mean_rank"] == 3


def test_a_second_score_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="1 of 4 pairs have a NaN"):
        matched_retrieval(np.eye(2), np.arange(2), np.arange(2), lambda pairs: np.array([0, 0, np.nan, 1]))


def test_changes_by_reranking_by_hand():
    """All pairs are scored once; the change is that of the ranks of the first two from the ranks of all."""
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.9, 0.5], [0.7, 0.6, 0.5]])
    second = np.array([[0.3, 0.2, 0.9], [0.1, 0.9, 0.8], [0.5, 0.6, 0.7]], dtype=np.float32)
    calls = []

    def match(pairs):
        calls.append(pairs.tolist())
        return second[pairs[:, 0], pairs[:, 1]]

    groups = np.arange(3), np.arange(3)
    result, scored = matched_retrieval(scores, *groups, match, top_k=2, measures_change=True)
    assert calls == [[[text, clip] for text in range(3) for clip in range(3)]]
    np.testing.assert_array_equal(scored.values.reshape(scores.shape), second)
    # Texts: ranks among all pairs 2, 1, 1; by the first two 1 (the third clip is not seen), 1, 3 (left below both).
    # Clips: among all 2, 1, 3; by the first two (texts 0 and 2; 1 and 0; 1 and 2) 2, 1, 2.
    metrics = result.metrics
    assert metrics["matching_text_to_video_mean_rank"] == (1 + 1 + 3) / 3
    changes = {name.removeprefix("matching_"): value for name, value in metrics.items() if name.endswith("_change")}
    assert changes == {
        "text_to_video_R@1_change": 0.0,
        "text_to_video_R@5_change": 0.0,
        "text_to_video_R@10_change": 0.0,
        "text_to_video_median_rank_change": 0.0,
        "text_to_video_mean_rank_change": pytest.approx(1 / 3),
        "video_to_text_R@1_change": 0.0,
        "video_to_text_R@5_change": 0.0,
        "video_to_text_R@10_change": 0.0,
        "video_to_text_median_rank_change": 0.0,
        "video_to_text_mean_rank_change": pytest.approx(-1 / 3),
    }
    low, high = result.intervals["matching_text_to_video_R@1_change"]
    assert low < 0 < high  # one query gains, another loses
    plain, _ = matched_retrieval(scores, *groups, match, top_k=2)
    assert plain.metrics == {name: value for name, value in metrics.items() if not name.endswith("_change")}
