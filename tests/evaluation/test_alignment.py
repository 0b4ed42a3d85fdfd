"""ROUGE-L and edit distances: cases computed by hand, and naive implementations."""

import random
from functools import cache

import pytest

from simple_multimodal.evaluation.alignment import common_subsequence_length, edit_distance, rouge_l


def naive_common_subsequence(first, second):
    @cache
    def length(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def naive_edit_distance(first, second):
    @cache
    def distance(i, j):
        if i == len(first) or j == len(second):
            return len(first) - i + len(second) - j
        substituted = distance(i + 1, j + 1) + (first[i] != second[j])
        return min(substituted, distance(i + 1, j) + 1, distance(i, j + 1) + 1)

    return distance(0, 0)


def test_alignments_equal_naive_implementations():
    draw = random.Random(0)
    for _ in range(300):
        first, second = ("".join(draw.choices("abcd", k=draw.randrange(9))) for _ in range(2))
        assert common_subsequence_length(first, second) == naive_common_subsequence(first, second), (first, second)
        assert edit_distance(first, second) == naive_edit_distance(first, second), (first, second)
        assert edit_distance(second, first) == edit_distance(first, second)


@pytest.mark.parametrize(("first", "second", "distance"), [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("a", "a", 0)])
def test_edit_distance_of_empty_and_equal_texts(first, second, distance):
    assert edit_distance(first, second) == distance


def test_rouge_l_takes_precision_and_recall_of_the_best_references():
    # Precision 2 / 2 from the first reference, recall 1 / 1 from the second.
    assert rouge_l(["a", "b"], [["a", "b", "c", "d"], ["a"]]) == pytest.approx(1.0)
    # Precision 1 / 2, recall 1 / 4: (1 + 1.44) * 0.125 / (0.25 + 1.44 * 0.5)
    assert rouge_l(["a", "x"], [["a", "b", "c", "d"]]) == pytest.approx(2.44 * 0.125 / 0.97)


def test_rouge_l_of_nothing_in_common_is_zero():
    assert rouge_l([], [["a"]]) == rouge_l(["b"], [["a"]]) == rouge_l(["a"], [[]]) == rouge_l([], [[]]) == 0.0
