"""Ranks and first candidates against cases computed by hand and naive implementations, as a whole and in blocks."""

import numpy as np
import pytest
import torch

from simple_multimodal.evaluation import scores as scores_module
from simple_multimodal.evaluation.ranking import (
    all_pairs,
    first_keys,
    first_pairs,
    is_query,
    keys_of_pairs,
    pairs_of_keys,
    positives_from_groups,
    ranking,
    retrieval_ranks,
    right_pairs,
    text_clip_ranks,
)
from simple_multimodal.evaluation.retrieval import retrieval_metrics
from simple_multimodal.evaluation.scores import CosineScores, MatrixScores
from tests.evaluation.processes import together


def naive_rank(scores, positives):
    """Sort with wrong candidates first among equal scores, and return the position of the first right one."""
    order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], bool(positives[candidate])))
    return 1 + [bool(positives[candidate]) for candidate in order].index(True)


def random_case(seed):
    """Make scores with few distinct values, so that ties are frequent, and at least one right candidate per query."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 8, size=2))
    positives = generator.random(shape) < 0.3
    positives[np.arange(shape[0]), generator.integers(shape[1], size=shape[0])] = True
    return generator.integers(0, 4, size=shape).astype(np.float32), positives


def test_ranks_equal_a_case_computed_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    ranks = retrieval_ranks(scores, np.eye(3, dtype=bool))
    assert ranks.tolist() == [1, 3, 2]
    assert ranks.dtype == np.int64


def test_ties_count_against_the_model():
    scores = np.array([[0.5, 0.5, 0.5, 0.1], [0.5, 0.7, 0.5, 0.5]])
    positives = np.array([[True, False, False, False], [False, False, True, False]])
    assert retrieval_ranks(scores, positives).tolist() == [3, 4]


def test_constant_scores_have_a_recall_of_zero():
    ranks = retrieval_ranks(np.zeros((20, 20)), np.eye(20, dtype=bool))
    assert ranks.tolist() == [20] * 20
    metrics = retrieval_metrics(ranks)
    assert (metrics["R@1"], metrics["R@5"], metrics["R@10"]) == (0, 0, 0)


def test_only_the_best_of_several_positives_counts():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])
    assert retrieval_ranks(scores, np.array([[False, True, True, True]])).tolist() == [2]
    assert retrieval_ranks(np.ones((1, 4)), np.array([[False, True, True, True]])).tolist() == [2]
    assert retrieval_ranks(np.ones((1, 3)), np.ones((1, 3), dtype=bool)).tolist() == [1]


def test_groups_and_the_matrix_of_positives_give_the_same_ranks():
    query_groups, candidate_groups = np.array([7, 7, 3]), np.array([3, 7, 5])
    matrix = positives_from_groups(query_groups, candidate_groups)
    assert matrix.tolist() == [[False, True, False], [False, True, False], [True, False, False]]
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    assert retrieval_ranks(scores, (query_groups, candidate_groups)).tolist() == [2, 2, 3]
    names = (np.array(["b", "b", "a"]), np.array(["a", "b", "c"]))
    assert retrieval_ranks(scores, names).tolist() == [2, 2, 3]


def test_groups_with_64_bits_are_not_rounded():
    # In float64 both would be 2**62.
    assert positives_from_groups(np.array([2**62]), np.array([2**62 + 1])).tolist() == [[False]]


def test_groups_of_different_kinds_are_refused():
    with pytest.raises(ValueError, match="of one kind"):
        positives_from_groups(np.array(["1"]), np.array([1]))


@pytest.mark.parametrize("seed", range(60))
def test_ranks_equal_a_naive_implementation(seed):
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
def test_ranking_has_the_first_right_candidate_at_its_rank(seed):
    scores, positives = random_case(seed)
    order = ranking(scores, positives, scores.shape[1])
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(scores.shape[1]), (len(scores), 1)))
    assert (np.diff(np.take_along_axis(scores, order, axis=1), axis=1) <= 0).all()
    first = np.take_along_axis(positives, order, axis=1).argmax(axis=1)
    np.testing.assert_array_equal(first + 1, retrieval_ranks(scores, positives))


def test_ranking_is_truncated_and_allows_queries_without_a_right_candidate():
    scores = np.array([[0.1, 0.9, 0.9, 0.2]])
    assert ranking(scores, np.array([[False, True, False, False]]), 3).tolist() == [[2, 1, 3]]
    assert ranking(scores, np.zeros((1, 4), dtype=bool), 9).tolist() == [[1, 2, 3, 0]]


def test_infinite_scores_are_ordered():
    scores = np.array([[-np.inf, 0.0, np.inf], [-np.inf, -np.inf, 0.0]])
    assert retrieval_ranks(scores, np.array([[False, True, False], [True, False, False]])).tolist() == [2, 3]


def test_unsigned_scores_are_ordered():
    assert ranking(np.array([[0, 200, 100]], dtype=np.uint8), np.zeros((1, 3), dtype=bool), 3).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        (np.array([[0.0, np.nan]]), np.ones((1, 2), dtype=bool), "1 of 1 queries contain NaN"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "1 of 2 queries have no right.*query 1"),
        (np.zeros((2, 2)), np.ones((2, 3), dtype=bool), r"shape of the scores \(2, 2\)"),
        (np.zeros((2, 2)), np.ones((2, 2), dtype=int), "must be bool"),
        (np.zeros((2, 2)), (np.zeros(2, int), np.zeros(3, int)), r"got shape \(2, 3\)"),
        (np.zeros((2, 2)), (np.zeros((2, 1), int), np.zeros(2, int)), "one-dimensional"),
        (np.zeros(2), np.ones(2, dtype=bool), r"shape \(num_queries, num_candidates\)"),
        (np.zeros((0, 2)), np.ones((0, 2), dtype=bool), "neither 0"),
    ],
)
def test_invalid_scores_and_positives_are_refused(scores, positives, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(scores, positives)


def test_ranks_with_the_best_order_of_ties_are_the_other_bound():
    scores = np.array([[0.5, 0.5, 0.5, 0.1], [0.5, 0.7, 0.5, 0.5]])
    positives = np.array([[True, False, False, False], [False, False, True, False]])
    assert retrieval_ranks(scores, positives, ties="best").tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_differ_by_the_number_of_tied_wrong_candidates(seed):
    scores, positives = random_case(seed)
    best = np.where(positives, scores, -1).max(axis=1, keepdims=True)
    num_equal = ((scores == best) & ~positives).sum(axis=1)
    difference = retrieval_ranks(scores, positives) - retrieval_ranks(scores, positives, ties="best")
    np.testing.assert_array_equal(difference, num_equal)


def random_set(seed):
    """Make scores with few distinct values, some of them the lowest, and groups, some of which have only one side."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 40, size=2))
    groups = [generator.integers(0, generator.integers(1, 25), size=size) for size in shape]
    scores = generator.integers(0, generator.integers(1, 6), size=shape).astype(np.float32)
    if seed % 2:
        scores += generator.random(shape, dtype=np.float32)
    scores[generator.integers(shape[0])] = -np.inf
    scores[:, generator.integers(shape[1])] = -np.inf
    return scores, *groups


@pytest.fixture(params=["a row", "seven rows", "all rows"])
def block_height(request, monkeypatch):
    """A function that sets the number of rows per block."""

    def set_for(num_clips):
        number = {"a row": 1, "seven rows": 7 * num_clips, "all rows": 1 << 24}[request.param]
        monkeypatch.setattr(scores_module, "MAX_BLOCK_ELEMENTS", number)

    monkeypatch.setattr(scores_module, "ROW_MULTIPLE", 2)
    return set_for


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_ranks_do_not_depend_on_blocks_and_processes(block_height, seed, num_processes):
    scores, *groups = random_set(seed)
    block_height(scores.shape[1])
    positives = positives_from_groups(*groups)
    expected = []
    for matrix, right in ((scores, positives), (scores.T, positives.T)):
        ranks = np.zeros(len(right), np.int64)
        ranks[right.any(axis=1)] = [naive_rank(*row) for row in zip(matrix, right, strict=True) if row[1].any()]
        expected.append(ranks)
    first_wrong = np.where(positives, -np.inf, scores).argmax(axis=1)
    for ranks in together(num_processes, lambda own: text_clip_ranks(MatrixScores(scores, own), *groups)):
        np.testing.assert_array_equal(ranks.texts, expected[0])
        np.testing.assert_array_equal(ranks.clips, expected[1])
        np.testing.assert_array_equal(ranks.first_wrong, first_wrong)


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_first_candidates_do_not_depend_on_blocks_and_processes(block_height, seed, num_processes):
    scores, *groups = random_set(seed)
    block_height(scores.shape[1])
    positives = positives_from_groups(*groups)
    for num_results in (0, 1, 2, 5, 20, 39, None):
        for_texts, for_clips = np.zeros(scores.shape, np.bool_), np.zeros(scores.shape, np.bool_)
        kept = max(scores.shape) if num_results is None else num_results
        np.put_along_axis(for_texts, ranking(scores, positives, kept), True, axis=1)
        np.put_along_axis(for_clips, ranking(scores.T, positives.T, kept).T, True, axis=0)
        for chosen in together(
            num_processes, lambda own, kept=num_results: first_keys(MatrixScores(scores, own), *groups, kept)
        ):
            assert [keys.tolist() for keys in chosen] == [
                np.flatnonzero(for_texts).tolist(),
                np.flatnonzero(for_clips).tolist(),
            ]
        pairs = first_pairs(scores, *groups, num_results)
        assert pairs.dtype == np.int64
        np.testing.assert_array_equal(pairs, np.argwhere(for_texts | for_clips))


def test_first_candidates_prefer_wrong_ones_among_ties():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3]])
    texts, clips = np.array([1, 0]), np.array([0, 1, 2, 3])
    for_texts, _ = first_keys(MatrixScores(scores), texts, clips, 2)
    assert for_texts.tolist() == [0, 2, 4 + 1, 4 + 2]


def test_keys_of_pairs_follow_the_order_of_the_matrix():
    pairs = all_pairs((2, 3))
    assert pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert keys_of_pairs(pairs, 3).tolist() == list(range(6))
    np.testing.assert_array_equal(pairs_of_keys(keys_of_pairs(pairs[::-1], 3), 3), pairs[::-1])


def test_texts_and_clips_without_a_right_candidate_are_not_queries():
    ranks = text_clip_ranks(np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]), np.array([1, 9]), np.array([0, 1, 2]))
    assert ranks.texts.tolist() == [2, 0] and is_query(ranks.texts).tolist() == [True, False]
    assert is_query(ranks.clips).tolist() == [False, True, False]


def test_right_pairs_share_a_group():
    assert right_pairs(np.array([7, 5, 3, 7]), np.array([3, 7, 9, 7])).tolist() == [
        [0, 1],
        [0, 3],
        [2, 0],
        [3, 1],
        [3, 3],
    ]
    assert right_pairs(np.array(["a"]), np.array(["b"])).shape == (0, 2)


@pytest.mark.parametrize("num_processes", [1, 3])
def test_single_scores_equal_those_in_blocks(block_height, num_processes):
    scores, *_ = random_set(5)
    block_height(scores.shape[1])
    pairs = np.random.default_rng(0).integers(scores.shape, size=(100, 2))  # in any order, some twice
    for found in together(num_processes, lambda own: MatrixScores(scores, own).at(pairs)):
        np.testing.assert_array_equal(found, scores[pairs[:, 0], pairs[:, 1]])


def test_equal_texts_in_different_blocks_have_equal_cosines(monkeypatch):
    """Products with different numbers of rows may round differently; these blocks have 96, 96 and 7 new rows."""
    generator = torch.Generator().manual_seed(0)
    text, clips = torch.randn(1, 512, generator=generator), torch.randn(301, 512, generator=generator)
    monkeypatch.setattr(scores_module, "MAX_BLOCK_ELEMENTS", 100 * len(clips))
    monkeypatch.setattr(scores_module, "ROW_MULTIPLE", 32)
    scores = CosineScores(text.repeat(199, 1), clips)
    assert [rows.stop - rows.start for rows, _ in scores.blocks()] == [96, 96, 7]
    for _, block in scores.blocks():
        np.testing.assert_array_equal(block, np.repeat(block[:1], len(block), axis=0))
    columns = np.concatenate([block[:1] for _, block in scores.blocks()])
    np.testing.assert_array_equal(columns, np.repeat(columns[:1], 3, axis=0))


def test_cosines_of_a_small_set_are_computed_at_once():
    generator = torch.Generator().manual_seed(0)
    texts, clips = torch.randn(50, 16, generator=generator), torch.randn(30, 16, generator=generator)
    bad_texts, bad_clips = np.arange(50) % 7 == 0, np.arange(30) == 4
    (rows, block), *others = CosineScores(texts, clips, bad_texts=bad_texts, bad_clips=bad_clips).blocks()
    expected = (texts @ clips.T).numpy()
    expected[bad_texts] = -np.inf
    expected[:, bad_clips] = -np.inf
    assert (rows, others) == (slice(0, 50), [])
    np.testing.assert_array_equal(block, expected)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_nan_is_refused_by_all_processes(monkeypatch, num_processes):
    monkeypatch.setattr(scores_module, "MAX_BLOCK_ELEMENTS", 1)
    scores = np.zeros((5, 2))
    scores[3, 1] = np.nan

    def measure(own):
        with pytest.raises(ValueError, match="1 of 5 queries contain NaN .first: query 3"):
            text_clip_ranks(MatrixScores(scores, own), np.zeros(5, int), np.zeros(2, int))

    together(num_processes, measure)


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [
        (np.zeros((2, 3)), (np.zeros(2, int), np.zeros(2, int)), r"\(2, 3\) need one group per text.*got 2 and 2"),
        (np.zeros((2, 0)), (np.zeros(2, int), np.zeros(0, int)), "neither 0"),
        (np.zeros(2), (np.zeros(2, int), np.zeros(0, int)), "shape"),
        (np.zeros((1, 1)), (np.zeros(1, int), np.zeros(1, np.uint64)), "of one kind"),
    ],
)
def test_invalid_scores_and_groups_of_sets_are_refused(scores, groups, message):
    with pytest.raises(ValueError, match=message):
        text_clip_ranks(scores, *groups)
