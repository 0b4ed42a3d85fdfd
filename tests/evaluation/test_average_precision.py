"""Average precision: hand-computed cases, naive twins, and the golden values of Charades."""

import numpy as np
import pytest

from simple_multimodal.evaluation.average_precision import (
    average_precisions,
    check_scores,
    precision_chance,
    precision_statistics,
)
from simple_multimodal.evaluation.bootstrap import resampled_groups
from tests.evaluation.charades_annotations import read_golden, read_split

T, F = True, False


def column(*values) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "file_order"),
    [
        ([0.9, 0.8, 0.7, 0.6], [T, F, T, F], (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),
        ([0.9, 0.5, 0.5, 0.1], [F, T, F, T], (1 / 3 + 2 / 4) / 2, (1 / 2 + 2 / 4) / 2),  # a tie with a negative
        ([0.5, 0.5, 0.5], [F, F, T], 1 / 3, 1 / 3),  # constant scores: the share of positives, or the file's order
        ([0.5, 0.5, 0.5], [T, F, F], 1 / 3, 1.0),
        ([0.1, 0.9, 0.5], [T, T, T], 1.0, 1.0),  # all positive
        ([0.1, 0.9, 0.5], [F, F, F], np.nan, np.nan),  # no positive
        ([0.1], [T], 1.0, 1.0),  # one row
        ([3, 1, 2], [F, T, T], (1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2),  # integers
        ([0.9, np.nan, 0.5], [F, T, T], (1 / 2) / 2, (1 / 2 + 2 / 3) / 2),  # a positive that was not read
        ([0.9, np.nan, -np.inf], [T, F, T], 1 / 2, (1 + 2 / 3) / 2),
        ([np.nan, np.nan], [T, F], 0.0, 1.0),
        ([-0.0, 0.0], [T, F], 1 / 2, 1.0),  # equal
    ],
)
def test_cases_computed_by_hand(scores, labels, threshold, file_order):
    for ties, expected in (("threshold", threshold), ("file_order", file_order)):
        value = average_precisions(column(*scores), column(*labels), ties=ties)
        np.testing.assert_allclose(value, [expected], rtol=1e-15)


def naive_average_precision(scores, labels, ties) -> float:
    """From the definition: the precision among the rows that rank at or before each positive."""
    precisions = []
    for place, (score, is_positive) in enumerate(zip(scores, labels, strict=True)):
        if is_positive:
            ranked = scores > score
            ranked |= scores == score if ties == "threshold" else (scores == score) & (np.arange(len(scores)) <= place)
            precisions.append(labels[ranked].mean())
    return float(np.mean(precisions)) if precisions else float("nan")


@pytest.mark.parametrize("ties", ["threshold", "file_order"])
def test_equal_a_naive_implementation(ties):
    generator = np.random.default_rng(0)
    for num_levels in (3, 1000):
        scores = generator.integers(num_levels, size=(40, 12)).astype(np.float32) / num_levels
        labels = generator.random((40, 12)) < np.arange(12) / 12  # the first class has no positive
        expected = [naive_average_precision(s, y, ties) for s, y in zip(scores.T, labels.T, strict=True)]
        np.testing.assert_allclose(average_precisions(scores, labels, ties=ties), expected, rtol=1e-14)


def test_rows_without_scores_never_raise_the_value():
    generator = np.random.default_rng(1)
    for _ in range(50):
        scores, labels = generator.random((12, 5)), generator.random((12, 5)) < 0.4
        is_read = generator.random(12) < 0.7
        is_read[0] = labels[0] = True
        values = average_precisions(np.where(is_read[:, None], scores, np.nan), labels)
        assert (values <= average_precisions(scores[is_read], labels[is_read])).all()


@pytest.mark.parametrize("ties", ["threshold", "file_order"])
def test_copies_in_a_resample_do_not_rank_before_each_other(ties):
    """A positive's precision is that of one copy of its row among the other rows of the resample."""
    generator = np.random.default_rng(2)
    scores, labels = generator.integers(4, size=(9, 6)) / 4, generator.random((9, 6)) < 0.4
    labels[:, 0] = np.arange(9) == 3  # lost in a third of the resamples
    labels[:, 1] = F
    members = np.array([0, 0, 1, 2, 3, 3, 4, 5, 6])
    statistics = precision_statistics(*check_scores(scores, labels), members, ties=ties)
    for group_counts in resampled_groups(7, num_values=9, num_resamples=30):
        found = statistics(group_counts)
        assert found["class_values"].shape == (6, 30)
        for number, counts in enumerate(group_counts[:, members]):
            expected, weights = np.full(6, np.nan), (counts[:, None] * labels).sum(axis=0)
            for label in np.flatnonzero(weights):
                precisions, copies = [], []
                for row in np.flatnonzero(labels[:, label] & (counts > 0)):
                    rows = np.repeat(np.arange(9), np.where(np.arange(9) == row, 1, counts))
                    own, is_positive = scores[rows, label], labels[rows, label]
                    ranked = own > scores[row, label]
                    ranked |= (own == scores[row, label]) & ((rows <= row) if ties == "file_order" else True)
                    precisions.append(is_positive[ranked].mean())
                    copies.append(counts[row])
                expected[label] = np.average(precisions, weights=copies)
            np.testing.assert_allclose(found["class_values"][:, number], expected, rtol=1e-12)
            np.testing.assert_allclose(found["mAP"][number], np.nanmean(expected), rtol=1e-12)
            known = weights > 0
            np.testing.assert_allclose(
                found["wAP"][number], np.average(expected[known], weights=weights[known]), rtol=1e-12
            )


def test_chance_is_the_average_of_random_orders():
    generator = np.random.default_rng(3)
    labels = np.arange(30)[:, None] < np.array([1, 3, 12, 0])
    found = [average_precisions(generator.random(labels.shape), labels)[:3] for _ in range(4000)]
    expected = np.mean(found, axis=0)
    chance = precision_chance(labels.sum(axis=0), len(labels))
    assert chance["mAP"] == pytest.approx(expected.mean(), rel=0.01)
    assert chance["wAP"] == pytest.approx(np.average(expected, weights=[1, 3, 12]), rel=0.01)
    assert precision_chance(np.array([1]), 1) == {"mAP": 1.0, "wAP": 1.0}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), np.zeros(3, bool), r"\(num_rows, num_classes\), neither 0, got shape \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3), bool), "neither 0"),
        (np.zeros((2, 3), complex), np.zeros((2, 3), bool), "real numbers"),
        (np.zeros((2, 3)), np.zeros((2, 2), bool), r"the shape of the scores \(2, 3\), got shape \(2, 2\)"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int64), "must be bool"),
        (np.array([[0, 1], [np.nan, 0]]), np.zeros((2, 2), bool), r"1 of 2 rows have NaN for some .*first: row 1"),
    ],
)
def test_invalid_arguments_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        average_precisions(scores, labels)


GOLDEN_SCORES = ("random", "informed", "ties", "constant", "first_100_rows", "views_mean", "views_max")


def golden_scores(name: str, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the seeded scores of the test split that the README of the golden values describes."""
    uniform = np.random.RandomState(seed + 1).random_sample(labels.shape)
    views = np.random.RandomState(seed + 2).random_sample((3, *labels.shape)) + 0.25 * labels
    return {
        "random": uniform,
        "informed": uniform + 0.5 * labels,
        "first_100_rows": (uniform + 0.5 * labels)[:100],
        "ties": np.floor(8 * (uniform + 0.25 * labels)) / 8,
        "constant": np.zeros(labels.shape),
        "views_mean": views.mean(axis=0),
        "views_max": views.max(axis=0),
    }[name]


@pytest.mark.parametrize("name", GOLDEN_SCORES)
def test_golden_values_over_all_rows(shared_dir, name):
    golden, labels = read_golden(shared_dir), read_split(shared_dir, "test").labels
    scores = golden_scores(name, labels, golden["seed"])
    labels = labels[: len(scores)]
    found = average_precisions(scores, labels)
    expected = np.array(golden["sets"][f"test_{name}"]["all_rows_by_threshold"]["per_class"], dtype=float)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    # the lowest value of any order of equal scores: negatives stand before positives in the file
    order = [np.argsort(own, kind="stable") for own in labels.T]
    found = np.concatenate(
        [
            average_precisions(s[rows, None], y[rows, None], ties="file_order")
            for rows, s, y in zip(order, scores.T, labels.T, strict=True)
        ]
    )
    expected = np.array(golden["sets"][f"test_{name}"]["all_rows_worst_order"]["per_class"], dtype=float)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
