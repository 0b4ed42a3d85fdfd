"""ALPRO's numbers, literals and rows against its own, recorded ones, and by hand."""

import ast
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from simple_multimodal.alpro.metrics import (
    alpro_question_answering_metrics,
    alpro_retrieval_metrics,
    padded_positions,
    question_answering_rows,
    retrieval_rows,
    scores_from_rows,
)
from simple_multimodal.evaluation.question_answering import correct_answers, first_words, predicted_labels
from simple_multimodal.evaluation.scores import ScoredPairs

RETRIEVAL_CASES = ("no_ties_a", "no_ties_b_shuffled_rows", "ties", "several_captions_per_video")
ANSWER_CASES = ("msrvtt_qa_all_types", "msvd_qa_one_type_absent", "ties")


def read_case(shared_dir, name: str, task: str) -> dict:
    """One case of the recorded numbers, its rows as dictionaries."""
    content = json.loads((shared_dir / f"data/alpro/{task}_metrics_golden.json").read_text(encoding="utf-8"))
    (case,) = (case for case in content["cases"] if case["name"] == name)
    case["rows"] = [dict(zip(case["columns"], row, strict=True)) for row in case["rows"]]
    return case


@pytest.mark.parametrize("name", RETRIEVAL_CASES)
def test_retrieval_equals_the_reference(shared_dir, name):
    case = read_case(shared_dir, name, "retrieval")
    scores, right_clips = scores_from_rows(case["rows"], dict(case["ground_truth"]))
    assert scores.shape == (case["n_texts"], case["n_videos"])
    worst, best = (alpro_retrieval_metrics(scores, right_clips, ties=ties) for ties in ("worst", "best"))
    if not case["tie_dependent"]:
        assert worst == best == case["expected"]
        return
    assert {"best": best, "worst": worst} == case["bounds"]
    for direction, expected in case["expected"].items():
        for metric, value in expected.items():
            low, high = sorted((worst[direction][metric], best[direction][metric]))
            assert low <= value <= high


@pytest.mark.parametrize("name", RETRIEVAL_CASES)
def test_rows_go_to_a_matrix_and_back(shared_dir, name):
    case = read_case(shared_dir, name, "retrieval")
    clip_of_caption = dict(case["ground_truth"])
    scores, right_clips = scores_from_rows(case["rows"], clip_of_caption)
    clips = list(dict.fromkeys(row["vid_id"] for row in case["rows"]))
    scored = ScoredPairs(np.argwhere(np.ones_like(scores)), scores.ravel())
    rows = list(retrieval_rows(scored, np.zeros(scores.size), list(clip_of_caption), clips))
    again, right_again = scores_from_rows(rows, clip_of_caption)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(right_again, right_clips)


@pytest.mark.parametrize("name", ANSWER_CASES)
def test_answers_equal_the_reference(shared_dir, name):
    case = read_case(shared_dir, name, "qa")
    labels, answers, types = (
        [row[key] for row in case["rows"]] for key in ("predicted_label", "answer", "answer_type")
    )
    if case["tie_dependent"]:
        assert predicted_labels(np.array(case["logits"])).tolist() == labels
    id2label = {label: answer for answer, label in case["ans2label"].items()}
    metrics = alpro_question_answering_metrics(correct_answers(labels, answers, id2label=id2label), types)
    assert metrics == case["expected"]


def test_retrieval_by_hand_is_printed_as_a_literal():
    # Clip 0 has the captions 0 and 2; only the last counts from clip to text.
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.6]])
    metrics = alpro_retrieval_metrics(scores, np.array([0, 1, 0]))
    assert str(metrics) == (
        "{'text2video': {'r1': 66.66666666666667, 'r5': 100.0, 'r10': 100.0, 'medianR': 1.0, "
        "'meanR': 1.3333333333333333}, "
        "'video2text': {'r1': 0.0, 'r5': 100.0, 'r10': 100.0, 'medianR': 2.0, 'meanR': 2.0}}"
    )
    assert ast.literal_eval(str(metrics)) == metrics


def test_rounding_makes_ties_that_have_two_bounds():
    scores = np.array([[0.50004, 0.49996], [0.2, 0.8]], dtype=np.float32)
    assert alpro_retrieval_metrics(scores, np.arange(2))["text2video"]["r1"] == 50.0
    assert alpro_retrieval_metrics(scores, np.arange(2), ties="best")["text2video"]["r1"] == 100.0
    assert alpro_retrieval_metrics(scores + [[0.0001, 0], [0, 0]], np.arange(2))["text2video"]["r1"] == 100.0


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_does_not_depend_on_the_order_of_clips(seed):
    generator = np.random.default_rng(seed)
    scores, right_clips = generator.integers(0, 4, size=(8, 5)) / 10, generator.integers(5, size=8)
    order = generator.permutation(5)
    for ties in ("worst", "best"):
        turned = alpro_retrieval_metrics(scores[:, order], np.argsort(order)[right_clips], ties=ties)
        assert turned == alpro_retrieval_metrics(scores, right_clips, ties=ties)


def test_a_caption_without_its_clip_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries have no right candidate"):
        alpro_retrieval_metrics(np.eye(2), np.array([0, 2]))


def test_answers_by_hand_are_printed_as_a_literal():
    is_correct = np.array([True, False, True])
    assert str(alpro_question_answering_metrics(is_correct, ["who", "what", "who"])) == (
        "{'ratios': {'what_ratio': [33.33, 1], 'who_ratio': [66.67, 2], 'how_ratio': [0.0, 0], "
        "'where_ratio': [0.0, 0], 'when_ratio': [0.0, 0]}, 'overall_acc': 66.67, 'what_acc': 0.0, "
        "'who_acc': 100.0, 'how_acc': 0, 'where_acc': 0, 'when_acc': 0}"
    )


def test_wrong_answer_types_are_refused():
    with pytest.raises(ValueError, match="what, who, how, where, when; got 'why'"):
        alpro_question_answering_metrics(np.array([True]), ["why"])
    with pytest.raises(ValueError, match="got 1 types for 2 questions"):
        alpro_question_answering_metrics(np.array([True, False]), ["who"])
    with pytest.raises(ValueError, match="got 0 types for 0 questions"):
        alpro_question_answering_metrics(np.array([], dtype=bool), [])


@pytest.mark.parametrize(("num_rows", "world_size"), [(1, 1), (10, 4), (8, 8), (3, 8), (2, 5), (13, 3)])
def test_padding_is_that_of_the_distributed_sampler(num_rows, world_size):
    drawn = [
        list(DistributedSampler(torch.arange(num_rows), world_size, rank, shuffle=False)) for rank in range(world_size)
    ]
    expected = [position for together in zip(*drawn, strict=True) for position in together]
    assert padded_positions(num_rows, world_size).tolist() == expected


def test_padding_by_hand():
    assert padded_positions(5, 2).tolist() == [0, 1, 2, 3, 4, 0]
    assert (len(padded_positions(72_821, 8)), len(padded_positions(13_157, 8))) == (72_824, 13_160)
    with pytest.raises(ValueError, match="got 0 and 8"):
        padded_positions(0, 8)


def test_padding_explains_the_published_counts(shared_dir):
    rows = json.loads((shared_dir / "data/annotations/msvd_qa/test_qa.json").read_text(encoding="utf-8"))
    types = np.array(first_words([row["question"] for row in rows]))[padded_positions(len(rows), 8)]
    assert Counter(types.tolist()) == {"what": 8150, "who": 4554, "how": 370, "when": 58, "where": 28}
    ratios = alpro_question_answering_metrics(np.ones(len(types), dtype=bool), types)["ratios"]
    assert ratios == {
        "what_ratio": [61.93, 8150],
        "who_ratio": [34.6, 4554],
        "how_ratio": [2.81, 370],
        "where_ratio": [0.21, 28],
        "when_ratio": [0.44, 58],
    }


def test_retrieval_rows_by_hand():
    scores = np.array([[0.12344, 0.9], [0.5, 0.00004]], dtype=np.float32)
    pairs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    rows = list(retrieval_rows(ScoredPairs(pairs, scores.ravel()), scores.ravel() - 1, [0, 1], ["video7", "video3"]))
    assert rows == [
        {"vid_id": "video7", "txt_id": 0, "score": 0.1234, "sim": -0.8766},
        {"vid_id": "video7", "txt_id": 1, "score": 0.5, "sim": -0.5},
        {"vid_id": "video3", "txt_id": 0, "score": 0.9, "sim": -0.1},
        {"vid_id": "video3", "txt_id": 1, "score": 0.0, "sim": -1.0},
    ]
    some = ScoredPairs(pairs[1:], np.array([0.25, 0.5, 0.00004]))  # the first pair has no score, a third clip none
    assert [tuple(row.values())[:3] for row in retrieval_rows(some, np.ones(3), [7, 8], ["a", "b", "c"])] == [
        ("a", 8, 0.5),
        ("b", 7, 0.25),
        ("b", 8, 0.0),
    ]
    with pytest.raises(ValueError, match=r"got 3 pairs, scores of shape \(3,\) and similarities of shape \(2,\)"):
        retrieval_rows(some, np.ones(2), [7, 8], ["a", "b"])


def test_scores_are_rounded_as_python_rounds():
    halves = np.arange(0.5, 400) / 10_000
    scores = np.concatenate([np.random.default_rng(0).random(2000), halves]).astype(np.float32)[None]
    pairs = np.stack([np.zeros(scores.size, int), np.arange(scores.size)], axis=1)
    scored = ScoredPairs(pairs, scores[0])
    rounded = [row["score"] for row in retrieval_rows(scored, scores[0], [0], list(range(scores.size)))]
    assert rounded == [round(score, 4) for score in scores[0].tolist()]


def test_rows_in_any_order_make_the_matrix_and_repeats_count_once():
    pairs = [("b", 1, 0.1), ("a", 0, 0.2), ("b", 0, 0.3), ("a", 1, 0.4), ("a", 1, 0.9)]
    rows = [{"vid_id": clip, "txt_id": caption, "score": score} for clip, caption, score in pairs]
    scores, right_clips = scores_from_rows(rows, {0: "a", 1: "b"})
    assert scores.tolist() == [[0.3, 0.2], [0.1, 0.4]]
    assert right_clips.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0), ("a", 1), ("b", 0)], "3 pairs of 2 captions and 2 clips are scored;"),
        ([("a", 0), ("a", 1)], "2 pairs of 2 captions and 1 clips are scored, none with 'b'"),
        ([("a", 0), ("a", 5)], "caption 5, which the annotation lacks"),
        ([], "0 pairs"),
    ],
)
def test_incomplete_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        scores_from_rows([{"vid_id": v, "txt_id": t, "score": 0.0} for v, t in rows], {0: "a", 1: "b"})


def test_answer_rows_by_hand():
    columns = ["who sings?", "what barks?"], ["video1", "video2"], ["man", "zebra"], ["who", "what"]
    assert list(question_answering_rows(np.array([4, 7]), *columns)) == [
        {
            "question_id": 0,
            "answer": 4,
            "data": {
                "question": "who sings?",
                "vid_id": "video1",
                "answer": "man",
                "question_id": 0,
                "answer_type": "who",
            },
        },
        {
            "question_id": 1,
            "answer": 7,
            "data": {
                "question": "what barks?",
                "vid_id": "video2",
                "answer": "zebra",
                "question_id": 1,
                "answer_type": "what",
            },
        },
    ]
    with pytest.raises(ValueError, match="shorter|longer"):
        list(question_answering_rows(np.array([4]), *columns))
