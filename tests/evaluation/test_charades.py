"""Charades: points of actions, their measure, and the submission files."""

import numpy as np
import pytest

from simple_multimodal.evaluation.average_precision import average_precisions
from simple_multimodal.evaluation.charades import (
    localization_result,
    point_labels,
    point_seconds,
    write_classification_file,
    write_localization_file,
)
from simple_multimodal.evaluation.classification import multi_label_result
from tests.evaluation.charades_annotations import NUM_CLASSES, read_golden, read_split


def test_points_are_at_25ths_of_the_length_without_its_end():
    seconds = point_seconds([25.0, 10.0])
    assert seconds.shape == (2, 25)
    np.testing.assert_allclose(seconds[0], np.arange(25))
    np.testing.assert_allclose(seconds[1, [0, -1]], [0, 9.6])
    assert point_seconds([]).shape == (0, 25)


def test_both_ends_of_an_action_belong_to_it():
    actions = [
        [(0, 2.0, 4.0), (1, 2.1, 3.9), (1, 8.0, 8.0), (2, 24.1, 30.0)],  # the last one ends after the clip
        [(0, 5.0, 4.0)],  # ends before it starts
        [],
    ]
    labels = point_labels(actions, [25.0, 25.0, 25.0], 3)
    assert labels.shape == (3, 25, 3) and labels.dtype == bool
    assert labels[0, :, 0].nonzero()[0].tolist() == [2, 3, 4]
    assert labels[0, :, 1].nonzero()[0].tolist() == [3, 8]
    assert not labels[0, :, 2].any() and not labels[1:].any()
    assert point_labels([], [], 3).shape == (0, 25, 3)


def test_invalid_actions_are_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        point_labels([[], []], [1.0], 3)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"from 0 to 2, got {label} in clip 1"):
            point_labels([[], [(label, 0.0, 1.0)]], [1.0, 1.0], 3)


def test_points_are_measured_in_the_order_of_clips_and_points_and_none_is_left_out():
    labels = np.zeros((2, 25, 2), dtype=bool)
    labels[0, 3, 0] = labels[1, 0, 0] = True
    result = localization_result(np.zeros(labels.shape), labels)
    assert result.metrics == {
        "localization_mAP": (1 / 4 + 2 / 26) / 2,
        "localization_wAP": (1 / 4 + 2 / 26) / 2,
        "num_points": 50,
        "num_classes": 2,
        "num_measured_classes": 1,
    }
    assert result.intervals.keys() == result.chance.keys() == {"localization_mAP", "localization_wAP"}
    assert result.class_counts.tolist() == [2, 0]
    scores = np.ones(labels.shape)
    scores[0] = np.nan  # the first clip was not read: its points are behind the second one's
    assert localization_result(scores, labels).metrics["localization_mAP"] == (1 + 2 / 29) / 2


def test_points_of_a_clip_are_resampled_together():
    generator = np.random.default_rng(0)
    labels = (generator.random((30, 1, 2)) < 0.5).repeat(25, axis=1)
    scores = generator.random((30, 1, 2)).repeat(25, axis=1) + generator.random(labels.shape) * 1e-3
    low, high = localization_result(scores, labels).intervals["localization_mAP"]
    flat = multi_label_result(scores.reshape(-1, 2), labels.reshape(-1, 2)).intervals["mAP"]
    assert high - low > 3 * (flat[1] - flat[0])
    together = localization_result(scores, labels, groups=np.arange(30) // 10).intervals["localization_mAP"]
    assert together != (low, high)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 24, 3)), np.ones((2, 24, 3), bool), r"\(num_clips, 25, num_classes\), got \(2, 24, 3\)"),
        (np.zeros((2, 3)), np.ones((2, 3), bool), r"got \(2, 3\)"),
        (np.zeros((2, 25, 3)), np.ones((2, 25, 2), bool), "the same shape"),
        (np.zeros((2, 25, 3)), np.zeros((2, 25, 3), bool), "None of 50 rows has a class"),
    ],
)
def test_invalid_points_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        localization_result(scores, labels)


def test_golden_values_of_localization(shared_dir):
    """The intervals, a thousand resamples of 46,575 points, are left out."""
    golden, split = read_golden(shared_dir), read_split(shared_dir, "test")
    labels = point_labels(split.actions, split.lengths, NUM_CLASSES).reshape(-1, NUM_CLASSES)
    facts = golden["facts"]["test"]
    assert len(labels) == facts["points"] == 46_575
    assert labels.sum() == facts["point_positives"] == 175_341
    assert (~labels.any(axis=1)).sum() == facts["points_without_actions"] == 3_518
    scores = np.random.RandomState(golden["seed"] + 3).random_sample(labels.shape) + 0.25 * labels
    found = average_precisions(scores, labels, ties="file_order")
    expected = golden["sets"]["test_localisation"]["official"]
    np.testing.assert_allclose(found, expected["per_class"], rtol=0, atol=1e-9)
    assert found.mean() == pytest.approx(expected["mAP"], abs=1e-9)
    assert np.average(found, weights=labels.sum(axis=0)) == pytest.approx(expected["wAP"], abs=1e-9)


def test_the_facts_of_the_annotations(shared_dir):
    for split, facts in read_golden(shared_dir)["facts"].items():
        labels = read_split(shared_dir, split).labels
        assert (len(labels), labels.sum()) == (facts["rows"], facts["positives"])
        assert labels.sum(axis=0).tolist() == facts["positives_per_class"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_classification_file_holds_the_scores(tmp_path, dtype):
    scores = np.random.default_rng(0).random((4, NUM_CLASSES)).astype(dtype)
    scores[1] = np.nan  # not read
    scores[2, :3] = [1e-30, -5, np.inf]
    write_classification_file(tmp_path / "scores.txt", ["YSKX3", "AAH6R", "015XE", "0"], scores)
    lines = (tmp_path / "scores.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["YSKX3", "015XE", "0"]
    read = np.array([line.split(" ")[1:] for line in lines]).astype(dtype)
    np.testing.assert_array_equal(read, scores[[0, 2, 3]])


def test_the_localization_file_holds_the_scores_of_each_point(tmp_path):
    scores = np.random.default_rng(0).random((3, 25, NUM_CLASSES))
    scores[1], scores[2, 0] = -np.inf, np.nan
    write_localization_file(tmp_path / "scores.txt", ["YSKX3", "AAH6R", "015XE"], scores)
    fields = [line.split(" ") for line in (tmp_path / "scores.txt").read_text(encoding="utf-8").splitlines()]
    expected = [("YSKX3", point) for point in range(1, 26)] + [("015XE", point) for point in range(2, 26)]
    assert [(name, int(point)) for name, point, *_ in fields] == expected
    read = np.array([values for _, _, *values in fields]).astype(float)
    np.testing.assert_array_equal(read, np.concatenate([scores[0], scores[2, 1:]]))


def test_files_without_clips_are_empty(tmp_path):
    """As of a set none of whose clips could be read."""
    write_classification_file(tmp_path / "scores.txt", ["a"], np.full((1, 3), np.nan))
    assert (tmp_path / "scores.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        (["a"], np.zeros((2, 3)), "1 ids for 2 clips"),
        (["a", "a"], np.zeros((2, 3)), "2 clips have 1 ids"),
        (["a", "b c"], np.zeros((2, 3)), "white space, which separates scores; got 'b c'"),
        (["a", ""], np.zeros((2, 3)), "got ''"),
        (["a", "b"], np.zeros(2), r"\(num_clips, num_classes\), got \(2,\)"),
        (["a", "b"], np.array([[0, np.nan], [0, 0]]), "NaN for some classes"),
    ],
)
def test_invalid_submissions_are_refused(tmp_path, ids, scores, message):
    with pytest.raises(ValueError, match=message):
        write_classification_file(tmp_path / "scores.txt", ids, scores)
    assert not (tmp_path / "scores.txt").exists()
    with pytest.raises(ValueError, match=r"\(num_clips, 25, num_classes\)"):
        write_localization_file(tmp_path / "scores.txt", ids, scores)
