"""The dual softmax against cases computed by hand; blocks of scores are tested in `test_ranking.py`."""

import numpy as np
import pytest

from simple_multimodal.evaluation.ranking import retrieval_ranks
from simple_multimodal.evaluation.scores import dual_softmax_scores


def test_dual_softmax_equals_a_case_computed_by_hand():
    # Weights of the first column: exp(ln 3) to exp(0), of the second: equal.
    scores = np.array([[np.log(3), 0.5], [0.0, 0.5]])
    np.testing.assert_allclose(dual_softmax_scores(scores, temperature=1.0), [[0.75 * np.log(3), 0.25], [0.0, 0.25]])


def test_dual_softmax_lowers_a_clip_for_the_query_that_fits_it_less():
    scores = np.array([[0.9, 0.6], [0.8, 0.75]])
    assert retrieval_ranks(scores, np.eye(2, dtype=bool)).tolist() == [1, 2]
    assert retrieval_ranks(dual_softmax_scores(scores, temperature=0.05), np.eye(2, dtype=bool)).tolist() == [1, 1]
    # A single query has nothing to compare with.
    np.testing.assert_array_equal(dual_softmax_scores(scores[:1], temperature=0.05), scores[:1])


@pytest.mark.parametrize("seed", range(10))
def test_dual_softmax_follows_the_order_of_queries_and_keeps_scores_that_are_not_positive(seed):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(5, 4))
    weighed = dual_softmax_scores(scores, temperature=0.1)
    order = generator.permutation(5)
    np.testing.assert_allclose(dual_softmax_scores(scores[order], temperature=0.1), weighed[order], rtol=1e-12)
    np.testing.assert_array_equal(weighed[scores <= 0], scores[scores <= 0])
    assert (weighed[scores > 0] >= 0).all()


def test_invalid_arguments_of_the_dual_softmax_are_refused():
    with pytest.raises(ValueError, match="2 of 3 scores are infinite or NaN"):
        dual_softmax_scores(np.array([[0.0, -np.inf, np.nan]]), temperature=1.0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        dual_softmax_scores(np.zeros((1, 2)), temperature=0)
