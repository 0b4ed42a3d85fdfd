"""Question answering metrics: cases computed by hand, naive implementations, and the real questions of MSVD."""

import json
from collections import Counter

import numpy as np
import pytest

from simple_multimodal.evaluation.question_answering import (
    answer_baselines,
    correct_answers,
    first_words,
    predicted_labels,
    question_answering_intervals,
    question_answering_metrics,
    question_only_answers,
)


def test_the_first_of_equal_logits_is_predicted():
    labels = predicted_labels(np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-np.inf, -3.0, -4.0]]))
    assert labels.tolist() == [1, 0, 1]
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "1 of 2 questions contain NaN .first: question 1"),
        (np.zeros(3), r"shape \(num_questions, num_labels\)"),
        (np.zeros((3, 0)), r"got \(3, 0\)"),
    ],
)
def test_invalid_logits_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        predicted_labels(logits)


def test_answers_outside_the_vocabulary_count_as_wrong():
    id2label = {0: "man", 1: "dog"}
    # Label 2 only pads the head; "zebra" is not one of its answers.
    is_correct = correct_answers(np.array([0, 1, 1, 2]), ["man", "cat", "zebra", "man"], id2label=id2label)
    assert is_correct.tolist() == [True, False, False, False]
    assert question_answering_metrics(is_correct) == {"accuracy": 0.25, "num_questions": 4}
    assert question_answering_metrics(is_correct, [""] * 4) == {"accuracy": 0.25, "num_questions": 4}  # without types


def test_labels_and_their_answers_give_the_same_results():
    id2label, answers = {3: "man", 1: "dog"}, ["man", "man", "dog"]
    assert correct_answers([3, 1, 1], answers, id2label=id2label).tolist() == [True, False, True]
    assert correct_answers(["man", "dog", "dog"], answers).tolist() == [True, False, True]
    assert correct_answers(["Man"], ["man"]).tolist() == [False]
    assert correct_answers([], []).tolist() == []


@pytest.mark.parametrize(
    ("predictions", "id2label", "message"),
    [
        (["man"], None, r"got \(1,\) for 2 answers"),
        ([0, 1], None, "int64 without id2label"),
        (["man", "dog"], {0: "man"}, "with id2label"),
    ],
)
def test_invalid_predictions_are_refused(predictions, id2label, message):
    with pytest.raises(ValueError, match=message):
        correct_answers(predictions, ["man", "dog"], id2label=id2label)


def test_metrics_equal_a_case_computed_by_hand():
    is_correct = np.array([True, False, True, True, False])
    assert question_answering_metrics(is_correct, ["who", "what", "who", "what", "when"]) == {
        "accuracy": 0.6,
        "num_questions": 5,
        "what_accuracy": 0.5,
        "what_num_questions": 2,
        "when_accuracy": 0.0,
        "when_num_questions": 1,
        "who_accuracy": 1.0,
        "who_num_questions": 2,
    }


@pytest.mark.parametrize(
    ("is_correct", "types", "message"),
    [
        (np.array([], dtype=bool), None, "at least one"),
        (np.array([1, 0]), None, "of int64"),
        (np.array([True, False]), ["what"], "got 1 types for 2 questions"),
    ],
)
def test_invalid_judgements_are_refused(is_correct, types, message):
    with pytest.raises(ValueError, match=message):
        question_answering_metrics(is_correct, types)


@pytest.mark.parametrize("seed", range(10))
def test_metrics_do_not_depend_on_the_order_of_questions(seed):
    generator = np.random.default_rng(seed)
    is_correct, types = generator.random(30) < 0.4, generator.choice(["what", "who", "how"], size=30)
    order = generator.permutation(30)
    assert question_answering_metrics(is_correct[order], types[order]) == question_answering_metrics(is_correct, types)


def test_intervals_are_resampled_by_clip_within_a_type():
    is_correct = np.array([True, True, False, False, True])
    types, clips = ["what", "what", "what", "who", "who"], np.array(["a", "a", "b", "b", "b"])
    intervals = question_answering_intervals(is_correct, types, groups=clips)
    assert list(intervals) == ["accuracy", "what_accuracy", "who_accuracy"]
    # Resamples are both clips, clip a twice or clip b twice; only clip b has questions with who.
    assert intervals["accuracy"] == pytest.approx((1 / 3, 1.0))
    assert intervals["what_accuracy"] == (0.0, 1.0)
    assert intervals["who_accuracy"] == (0.5, 0.5)
    alone = question_answering_intervals(is_correct, types)["who_accuracy"]
    assert alone == (0.0, 1.0)


def test_intervals_by_clip_are_wider_if_questions_of_a_clip_agree():
    is_correct = np.repeat(np.arange(20) < 10, 20)
    low, high = question_answering_intervals(is_correct)["accuracy"]
    clip_low, clip_high = question_answering_intervals(is_correct, groups=np.repeat(np.arange(20), 20))["accuracy"]
    assert clip_high - clip_low > 3 * (high - low)


def test_first_words_are_answer_types():
    assert first_words(["What is it?", "who", ""]) == ["what", "who", ""]


def test_the_look_up_uses_the_question_then_its_type_then_all_questions():
    questions = ["who sings?", "who sings?", "who sings?", "who runs?", "who eats?", "what is red?", "what is red?"]
    answers = ["man", "dog", "dog", "man", "man", "car", "bus"]
    asked = ["who sings?", "who flies?", "what is red?", "why?"]
    # car and bus occur once each, so the first in training wins; among all answers, man is the most frequent.
    assert question_only_answers(asked, questions, answers) == ["dog", "man", "car", "man"]
    assert question_only_answers(asked, questions[::-1], answers[::-1])[2] == "bus"


def test_the_look_up_can_use_annotated_types():
    answers = question_only_answers(
        ["in which year?", "name it"],
        ["tell the date", "tell the name", "tell the name"],
        ["1999", "Rex", "Rex"],
        answer_types=["when", "what"],
        train_answer_types=["when", "what", "what"],
    )
    assert answers == ["1999", "Rex"]


def test_the_look_up_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="no training question"):
        question_only_answers(["who?"], [], [])
    with pytest.raises(ValueError, match="shorter|longer"):
        question_only_answers(["who?"], ["who?"], [])
    with pytest.raises(ValueError, match="shorter|longer"):
        question_only_answers(["who?"], ["who?"], ["man"], answer_types=[])


def test_baselines_equal_a_case_computed_by_hand():
    train_questions = ["who sings?", "who sings?", "who runs?", "what is red?"]
    train_answers = ["dog", "dog", "man", "car"]
    questions = ["who sings?", "who eats?", "what is red?", "what flies?"]
    answers = ["dog", "man", "car", "bird"]
    assert answer_baselines(questions, answers, train_questions, train_answers) == {
        "majority_accuracy": 0.25,
        "question_only_accuracy": 0.5,
        "seen_question_share": 0.5,
        "seen_answer_share": 0.75,
        "answer_entropy_bits": 2.0,
    }
    constant = answer_baselines(questions, ["dog"] * 4, train_questions, train_answers)
    assert (constant["answer_entropy_bits"], constant["majority_accuracy"]) == (0.0, 1.0)


@pytest.fixture(scope="module")
def msvd(shared_dir):
    """The training and test questions of MSVD-QA."""
    folder = shared_dir / "data/annotations/msvd_qa"
    return [json.loads((folder / f"{split}_qa.json").read_text(encoding="utf-8")) for split in ("train", "test")]


def test_baselines_of_real_questions(msvd):
    train, test = msvd
    baselines = answer_baselines(
        *([row[key] for row in rows] for rows in (test, train) for key in ("question", "answer"))
    )
    assert baselines["question_only_accuracy"] == 2962 / 13157  # 22.5 %
    assert baselines["majority_accuracy"] == 1852 / 13157  # always "man"
    assert baselines["seen_question_share"] == 4255 / 13157
    assert baselines["seen_answer_share"] == (13157 - 779) / 13157
    assert baselines["answer_entropy_bits"] == pytest.approx(7.60031047416492)


def test_first_words_are_the_types_of_real_questions(msvd):
    assert Counter(first_words([row["question"] for row in msvd[1]])) == {
        "what": 8149,
        "who": 4552,
        "how": 370,
        "when": 58,
        "where": 28,
    }
