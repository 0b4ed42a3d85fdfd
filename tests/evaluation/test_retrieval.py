"""Retrieval metrics and their changes against cases computed by hand."""

import numpy as np
import pytest

from simple_multimodal.evaluation.ranking import Ranks, text_clip_ranks
from simple_multimodal.evaluation.retrieval import (
    retrieval_changes,
    retrieval_intervals,
    retrieval_metrics,
    text_clip_retrieval,
    with_prefix,
)


def measure(scores, text_groups, clip_groups, **settings):
    """Rank by a matrix of scores and compute the metrics."""
    ranks = text_clip_ranks(scores, text_groups, clip_groups)
    return text_clip_retrieval(ranks, text_groups, clip_groups, **settings)


def test_metrics_equal_a_case_computed_by_hand():
    assert retrieval_metrics(np.array([1, 1, 2, 6, 11, 3])) == {
        "R@1": 2 / 6,
        "R@5": 4 / 6,
        "R@10": 5 / 6,
        "median_rank": 2.5,
        "mean_rank": 4.0,
        "num_queries": 6,
    }


@pytest.mark.parametrize("ranks", [[], [0, 1], [1.0, 2.0], [[1]]])
def test_invalid_ranks_are_refused(ranks):
    with pytest.raises(ValueError, match="Ranks must be integers from 1"):
        retrieval_metrics(np.array(ranks))


def test_with_prefix_adds_the_direction():
    assert with_prefix({"R@1": 0.5}, "text_to_video_") == {"text_to_video_R@1": 0.5}


def test_text_clip_retrieval_equals_a_case_computed_by_hand():
    # Texts 0 and 1 describe clip 10, text 2 describes clip 20; clip 30 has no text, text 3 no clip.
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.1, 0.4], [0.0, 0.7, 0.9], [0.95, 0.8, 0.1]])
    metrics, intervals = measure(scores, np.array([10, 10, 20, 99]), np.array([10, 20, 30]))
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
    # Two clips are resampled: both captions of clip 10 stay together, so R@1 is 1/2, 1/3 or 0.
    assert intervals["text_to_video_R@1"] == (0.0, 0.5)


def test_text_clip_retrieval_takes_a_prefix():
    metrics, intervals = measure(np.eye(3), np.arange(3), np.arange(3), prefix="matching_")
    assert metrics["matching_video_to_text_R@1"] == 1.0
    assert intervals["matching_video_to_text_R@1"] == pytest.approx((0.025 ** (1 / 3), 1.0))  # three queries


def test_text_clip_retrieval_without_any_pair_is_refused():
    with pytest.raises(ValueError, match="None of 2 texts belongs to any of 3 clips"):
        measure(np.zeros((2, 3)), np.array([1, 2]), np.array([3, 4, 5]))


def test_intervals_contain_the_metrics():
    ranks = np.random.default_rng(0).geometric(0.4, size=100)
    metrics, intervals = retrieval_metrics(ranks), retrieval_intervals(ranks)
    assert list(intervals) == ["R@1", "R@5", "R@10", "median_rank", "mean_rank"]
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
    assert intervals["R@1"][0] < intervals["R@1"][1]


def test_every_caption_of_a_clip_is_a_query_and_the_best_one_counts_for_the_clip():
    scores = np.array([[0.2, 0.9], [0.8, 0.1], [0.7, 0.6]])  # captions 0 and 1 describe clip 0
    metrics, _ = measure(scores, np.array([0, 0, 1]), np.array([0, 1]))
    assert (metrics["text_to_video_num_queries"], metrics["text_to_video_R@1"]) == (3, 1 / 3)
    # Clip 0 ranks caption 1, the better of its two, first; clip 1 ranks caption 0 above its own.
    assert (metrics["video_to_text_num_queries"], metrics["video_to_text_R@1"]) == (2, 1 / 2)
    assert metrics["video_to_text_mean_rank"] == 1.5


def test_changes_equal_a_case_computed_by_hand():
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
    with pytest.raises(ValueError, match="ranks_before has 50 ranks and ranks_after has 49"):
        retrieval_changes(ranks, ranks[1:])


def test_intervals_of_changes_are_resampled_by_clip():
    before = np.full(400, 2)
    after = np.repeat(np.where(np.arange(20) < 10, 1, 2), 20)
    (low, high), (clip_low, clip_high) = (
        retrieval_changes(before, after, groups=groups).intervals["R@1_change"]
        for groups in (None, np.repeat(np.arange(20), 20))
    )
    assert clip_high - clip_low > 3 * (high - low)


def test_changes_from_another_ranking_follow_the_metrics_of_each_direction():
    before = Ranks(np.array([2, 1, 0]), np.array([1, 6]), np.zeros(3, np.int64))
    after = Ranks(np.array([1, 1, 0]), np.array([3, 6]), np.zeros(3, np.int64))
    groups = np.array([0, 1, 7]), np.array([0, 1])
    metrics, intervals = text_clip_retrieval(after, *groups, ranks_before=before, prefix="matching_")
    plain = text_clip_retrieval(after, *groups, prefix="matching_").metrics
    changes = {name: value for name, value in metrics.items() if name.endswith("_change")}
    assert metrics == plain | changes and set(changes) <= set(intervals)
    # The third text is not a query, regardless of its rank.
    for name, value in {"R@1": 0.5, "R@5": 0.0, "median_rank": -0.5, "mean_rank": -0.5}.items():
        assert changes[f"matching_text_to_video_{name}_change"] == value
    assert changes["matching_video_to_text_mean_rank_change"] == 1.0
    directions = [name.removeprefix("matching_")[:13] for name in metrics]
    assert directions == sorted(directions)  # first all of text to video
