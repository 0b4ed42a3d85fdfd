"""Metrics of twins against cases computed by hand."""

import numpy as np
import pytest

from simple_multimodal.evaluation.twins import pair_accuracy, pair_accuracy_interval, pair_choices


def test_pair_accuracy_equals_a_case_computed_by_hand():
    scores = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both right
            [[0.4, 0.6], [0.3, 0.5]],  # first wrong
            [[0.5, 0.5], [0.7, 0.2]],  # a tie and a wrong one
        ]
    )
    assert pair_choices(scores).tolist() == [[0, 1], [1, 1], [-1, 0]]
    assert pair_accuracy(scores) == {"pair_accuracy": 0.5, "num_pairs": 3}
    assert pair_accuracy_interval(scores[:1]) == pytest.approx((0.025, 1.0))  # one pair
    assert pair_accuracy_interval(scores) == (0.0, 1.0)


def test_constant_pair_scores_are_all_wrong_and_never_flip():
    assert pair_accuracy(np.zeros((4, 2, 2)), np.zeros((4, 2, 2))) == {
        "pair_accuracy": 0.0,
        "num_pairs": 4,
        "pair_flip_share": 0.0,
    }


def test_flips_equal_a_case_computed_by_hand():
    scores = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]])
    swapped = np.array([[[0.0, 1.0], [0.2, 0.9]], [[0.3, 0.3], [1.0, 0.0]]])
    # flipped, unchanged, became a tie, was a tie
    assert pair_accuracy(scores, swapped)["pair_flip_share"] == 0.25
    assert pair_accuracy(scores, scores[:, :, ::-1])["pair_flip_share"] == 0.75


def test_invalid_pairs_are_refused():
    with pytest.raises(ValueError, match="1 of 4 pair scores are NaN"):
        pair_accuracy(np.array([[[np.nan, 0], [0, 0]]]))
    with pytest.raises(ValueError, match="at least one pair"):
        pair_accuracy(np.zeros((0, 2, 2)))
    with pytest.raises(ValueError, match="Got 2 pairs but 1 swapped"):
        pair_accuracy(np.zeros((2, 2, 2)), np.zeros((1, 2, 2)))
