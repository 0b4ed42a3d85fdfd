"""Retrieval and pair metrics against hand-computed cases and naive twins."""

import csv

import numpy as np
import pytest

from simple_multimodal.evaluation.retrieval import (
    dual_softmax,
    duplicate_captions,
    matched_retrieval,
    pair_accuracy,
    pair_accuracy_interval,
    pair_choices,
    pair_scores,
    positives_from_groups,
    ranking,
    reranked_ranks,
    retrieval_changes,
    retrieval_intervals,
    retrieval_metrics,
    retrieval_ranks,
    text_video_retrieval,
    top_candidates,
    with_prefix,
)


def naive_rank(scores, positives):
    """Put every wrong candidate of an equal score first, sort, and look where the first right one stands."""
    order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], bool(positives[candidate])))
    return 1 + [bool(positives[candidate]) for candidate in order].index(True)


def random_case(seed):
    """Scores of few distinct values, so that ties are frequent, and at least one right candidate per query."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 8, size=2))
    positives = generator.random(shape) < 0.3
    positives[np.arange(shape[0]), generator.integers(shape[1], size=shape[0])] = True
    return generator.integers(0, 4, size=shape).astype(np.float32), positives


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    ranks = retrieval_ranks(scores, np.eye(3, dtype=bool))
    assert ranks.tolist() == [1, 3, 2]
    assert ranks.dtype == np.int64


def test_ties_count_against_the_model():
    scores = np.array([[0.5, 0.5, 0.5, 0.1], [0.5, 0.7, 0.5, 0.5]])
    positives = np.array([[True, False, False, False], [False, False, True, False]])
    assert retrieval_ranks(scores, positives).tolist() == [3, 4]


def test_constant_scores_have_no_recall():
    ranks = retrieval_ranks(np.zeros((20, 20)), np.eye(20, dtype=bool))
    assert ranks.tolist() == [20] * 20
    metrics = retrieval_metrics(ranks)
    assert (metrics["R@1"], metrics["R@5"], metrics["R@10"]) == (0, 0, 0)


def test_best_of_several_positives_counts_and_the_others_do_not_push_it_down():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    assert retrieval_ranks(scores, np.array([[False, True, True, True]])).tolist() == [2]
    assert retrieval_ranks(np.ones((1, 4)), np.array([[False, True, True, True]])).tolist() == [2]
    assert retrieval_ranks(np.ones((1, 3)), np.ones((1, 3), dtype=bool)).tolist() == [1]


def test_groups_say_the_same_as_the_matrix():
    query_groups, candidate_groups = np.array([7, 7, 3]), np.array([3, 7, 5])
    matrix = positives_from_groups(query_groups, candidate_groups)
    assert matrix.tolist() == [[False, True, False], [False, True, False], [True, False, False]]
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    assert retrieval_ranks(scores, (query_groups, candidate_groups)).tolist() == [2, 2, 3]
    names = (np.array(["b", "b", "a"]), np.array(["a", "b", "c"]))
    assert retrieval_ranks(scores, names).tolist() == [2, 2, 3]


def test_groups_of_64_bits_are_not_rounded():
    # As float64 both would be 2**62.
    assert positives_from_groups(np.array([2**62]), np.array([2**62 + 1])).tolist() == [[False]]


def test_groups_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match="of one kind"):
        positives_from_groups(np.array(["1"]), np.array([1]))


@pytest.mark.parametrize("seed", range(60))
def test_ranks_equal_the_naive_twin(seed):
    scores, positives = random_case(seed)
    ranks = retrieval_ranks(scores, positives)
    assert ranks.tolist() == [naive_rank(*row) for row in zip(scores.tolist(), positives, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_ranks_do_not_depend_on_the_order_of_candidates_or_the_scale(seed):
    scores, positives = random_case(seed)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    ranks = retrieval_ranks(scores, positives)
    np.testing.assert_array_equal(retrieval_ranks(scores[:, order], positives[:, order]), ranks)
    np.testing.assert_array_equal(retrieval_ranks(3 * scores - 5, positives), ranks)


@pytest.mark.parametrize("seed", range(20))
def test_ranking_shows_the_first_right_candidate_at_its_rank(seed):
    scores, positives = random_case(seed)
    order = ranking(scores, positives, scores.shape[1])
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(scores.shape[1]), (len(scores), 1)))
    assert (np.diff(np.take_along_axis(scores, order, axis=1), axis=1) <= 0).all()
    first = np.take_along_axis(positives, order, axis=1).argmax(axis=1)
    np.testing.assert_array_equal(first + 1, retrieval_ranks(scores, positives))


def test_ranking_cuts_and_allows_queries_without_a_right_candidate():
    scores = np.array([[0.1, 0.9, 0.9, 0.2]])
    assert ranking(scores, np.array([[False, True, False, False]]), 3).tolist() == [[2, 1, 3]]
    assert ranking(scores, np.zeros((1, 4), dtype=bool), 9).tolist() == [[1, 2, 3, 0]]


def test_infinite_scores_have_an_order():
    scores = np.array([[-np.inf, 0.0, np.inf], [-np.inf, -np.inf, 0.0]])
    assert retrieval_ranks(scores, np.array([[False, True, False], [True, False, False]])).tolist() == [2, 3]


def test_unsigned_scores_are_ordered():
    assert ranking(np.array([[0, 200, 100]], dtype=np.uint8), np.zeros((1, 3), dtype=bool), 3).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        (np.array([[0.0, np.nan]]), np.ones((1, 2), dtype=bool), "1 of 1 queries hold NaN"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "1 of 2 queries have no right.*query 1"),
        (np.zeros((2, 2)), np.ones((2, 3), dtype=bool), r"shape of the scores \(2, 2\)"),
        (np.zeros((2, 2)), np.ones((2, 2), dtype=int), "must be bool"),
        (np.zeros((2, 2)), (np.zeros(2, int), np.zeros(3, int)), r"got shape \(2, 3\)"),
        (np.zeros((2, 2)), (np.zeros((2, 1), int), np.zeros(2, int)), "one-dimensional"),
        (np.zeros(2), np.ones(2, dtype=bool), r"shape \(num_queries, num_candidates\)"),
        (np.zeros((0, 2)), np.ones((0, 2), dtype=bool), "neither 0"),
    ],
)
def test_wrong_scores_and_positives_are_refused(scores, positives, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(scores, positives)


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


def test_ranks_with_ties_for_the_model_are_the_other_bound():
    scores = np.array([[0.5, 0.5, 0.5, 0.1], [0.5, 0.7, 0.5, 0.5]])
    positives = np.array([[True, False, False, False], [False, False, True, False]])
    assert retrieval_ranks(scores, positives, ties="best").tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_the_two_bounds_differ_by_the_equal_wrong_candidates(seed):
    scores, positives = random_case(seed)
    best = np.where(positives, scores, -1).max(axis=1, keepdims=True)
    num_equal = ((scores == best) & ~positives).sum(axis=1)
    difference = retrieval_ranks(scores, positives) - retrieval_ranks(scores, positives, ties="best")
    np.testing.assert_array_equal(difference, num_equal)


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


def test_top_candidates_take_the_wrong_one_of_equals():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3]])
    positives = np.array([[False, True, False, False], [True, False, False, False]])
    assert top_candidates(scores, positives, 2).tolist() == [[True, False, True, False], [False, True, True, False]]
    assert top_candidates(scores, positives, 9).all()


def test_reranked_ranks_by_hand():
    scores = np.array([[0.5, 0.6, 0.4, 0.45], [0.1, 0.2, 0.3, 0.3]])
    matching = np.array([[3.0, -7.0, 99.0, 99.0], [99.0, np.nan, -0.5, -0.5]])
    is_matched = np.array([[True, True, False, False], [False, False, True, True]])
    ranks = [
        reranked_ranks(scores, matching, is_matched, np.tile(np.arange(4) == right, (2, 1))).tolist()
        for right in range(4)
    ]
    # First row: 0, 1, 3, 2. Second: 2 and 3 are equal, which counts against either; then 1, 0.
    assert ranks == [[1, 4], [2, 3], [4, 2], [3, 2]]


def test_reranking_makes_no_new_ties():
    # Shifted below odds of -1e6, these two cosines would be one float32.
    scores = np.array([[0.5, 0.5000001, 0.9]], dtype=np.float32)
    matching = np.array([[0.0, 0.0, -1e6]], dtype=np.float32)
    is_matched = np.array([[False, False, True]])
    assert reranked_ranks(scores, matching, is_matched, np.array([[False, True, False]])).tolist() == [2]


@pytest.mark.parametrize("seed", range(20))
def test_reranked_order_equals_the_naive_twin_for_any_order_of_candidates(seed):
    scores, positives = random_case(seed)
    generator = np.random.default_rng(seed)
    matching = generator.integers(-3, 3, size=scores.shape).astype(np.float32)
    is_matched = top_candidates(scores, positives, 2)
    ranks = reranked_ranks(scores, np.where(is_matched, matching, np.nan), is_matched, positives)
    for row, rank in enumerate(ranks):
        keys = [
            (not is_matched[row, c], -(matching if is_matched[row, c] else scores)[row, c], bool(positives[row, c]), c)
            for c in range(scores.shape[1])
        ]
        order = [key[-1] for key in sorted(keys)]
        assert rank == 1 + [bool(positives[row, c]) for c in order].index(True)
    turned = generator.permutation(scores.shape[1])
    shuffled = (matrix[:, turned] for matrix in (scores, matching, is_matched, positives))
    np.testing.assert_array_equal(reranked_ranks(*shuffled), ranks)


def test_wrong_reranking_is_refused():
    mask = np.ones((1, 2), dtype=bool)
    with pytest.raises(ValueError, match="three matrices of one shape"):
        reranked_ranks(np.zeros((1, 2)), np.zeros((1, 3)), mask, mask)
    with pytest.raises(ValueError, match="bool: got .* int64"):
        reranked_ranks(np.zeros((1, 2)), np.zeros((1, 2)), mask.astype(np.int64), mask)
    with pytest.raises(ValueError, match="hold NaN"):
        reranked_ranks(np.zeros((1, 2)), np.full((1, 2), np.nan), mask, mask)
    with pytest.raises(ValueError, match="no right candidate"):
        reranked_ranks(np.zeros((1, 2)), np.zeros((1, 2)), mask, ~mask)


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


def test_pair_accuracy_by_hand():
    scores = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both right
            [[0.4, 0.6], [0.3, 0.5]],  # first wrong
            [[0.5, 0.5], [0.7, 0.2]],  # a tie and a wrong one
        ]
    )
    assert pair_choices(scores).tolist() == [[0, 1], [1, 1], [-1, 0]]
    assert pair_accuracy(scores) == {"pair_accuracy": 0.5, "num_pairs": 3}
    assert pair_accuracy_interval(scores[:1]) == (1.0, 1.0)
    assert pair_accuracy_interval(scores) == (0.0, 1.0)


def test_constant_pair_scores_are_all_wrong_and_never_flip():
    assert pair_accuracy(np.zeros((4, 2, 2)), np.zeros((4, 2, 2))) == {
        "pair_accuracy": 0.0,
        "num_pairs": 4,
        "pair_flip_share": 0.0,
    }


def test_flips_by_hand():
    scores = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]])
    swapped = np.array([[[0.0, 1.0], [0.2, 0.9]], [[0.3, 0.3], [1.0, 0.0]]])
    # flipped, stayed, became a tie, was a tie
    assert pair_accuracy(scores, swapped)["pair_flip_share"] == 0.25
    assert pair_accuracy(scores, scores[:, :, ::-1])["pair_flip_share"] == 0.75


def test_pair_scores_are_cut_from_the_matrix():
    scores = np.arange(16).reshape(4, 4)
    assert pair_scores(scores, np.array([[0, 1], [3, 1]])).tolist() == [[[0, 1], [4, 5]], [[15, 13], [7, 5]]]


def test_wrong_pairs_are_refused():
    with pytest.raises(ValueError, match="square matrix, got shape"):
        pair_scores(np.zeros((2, 3)), np.array([[0, 1]]))
    with pytest.raises(ValueError, match="from 0 to 1, got -1 to 1"):
        pair_scores(np.zeros((2, 2)), np.array([[-1, 1]]))
    with pytest.raises(ValueError, match=r"shape \(num_pairs, 2\)"):
        pair_scores(np.zeros((2, 2)), np.array([0, 1]))
    with pytest.raises(ValueError, match="1 of 4 pair scores are NaN"):
        pair_accuracy(np.array([[[np.nan, 0], [0, 0]]]))
    with pytest.raises(ValueError, match="at least one pair"):
        pair_accuracy(np.zeros((0, 2, 2)))
    with pytest.raises(ValueError, match="Got 2 pairs and 1 swapped"):
        pair_accuracy(np.zeros((2, 2, 2)), np.zeros((1, 2, 2)))


def test_a_second_model_scores_the_first_candidates_and_what_else_is_needed():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4]])
    second = np.array([[-1.0, 2.0, 9.0], [9.0, 5.0, 1.0]])
    seen = []

    def match(pairs: np.ndarray) -> np.ndarray:
        seen.append(pairs.tolist())
        return second[pairs[:, 0], pairs[:, 1]]

    groups = np.array([0, 1]), np.array([0, 1, 2])
    result, matrix = matched_retrieval(scores, *groups, match, top_k=1)
    assert seen.pop() == [[0, 0], [0, 1], [1, 2]]  # the best of a text, or of a clip
    assert np.isnan(matrix).tolist() == [[False, False, True], [True, True, False]]
    assert result.metrics["matching_text_to_video_R@1"] == 0.5  # one candidate each: the order stays
    result, _ = matched_retrieval(scores, *groups, match, top_k=2, is_needed=np.eye(2, 3, dtype=bool))
    assert seen.pop() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    ranks = result.metrics["matching_text_to_video_mean_rank"]
    assert ranks == (2 + 1) / 2  # the first text's clip falls behind, the second's rises
    every, _ = matched_retrieval(scores, *groups, match)
    assert every.metrics["matching_text_to_video_mean_rank"] == (3 + 2) / 2
    assert set(every.intervals) <= set(every.metrics)


def test_changes_by_reranking_by_hand():
    """All pairs are scored once; the change is that of the ranks of the first two from the ranks of all."""
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.9, 0.5], [0.7, 0.6, 0.5]])
    second = np.array([[0.3, 0.2, 0.9], [0.1, 0.9, 0.8], [0.5, 0.6, 0.7]], dtype=np.float32)
    calls = []

    def match(pairs):
        calls.append(pairs.tolist())
        return second[pairs[:, 0], pairs[:, 1]]

    groups = np.arange(3), np.arange(3)
    result, matrix = matched_retrieval(scores, *groups, match, top_k=2, measures_change=True)
    assert calls == [[[text, clip] for text in range(3) for clip in range(3)]]
    np.testing.assert_array_equal(matrix, second)
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
