"""Classification with many labels and with one: hand-computed cases, naive twins, intervals, and golden values."""

import numpy as np
import pytest

from simple_multimodal.evaluation import bootstrap
from simple_multimodal.evaluation.average_precision import average_precisions
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean
from simple_multimodal.evaluation.classification import class_rows, multi_label_result, single_label_result
from simple_multimodal.evaluation.glossary import chance_levels
from tests.evaluation.charades_annotations import read_golden, read_split
from tests.evaluation.test_average_precision import GOLDEN_SCORES, golden_scores


@pytest.fixture
def few_resamples(monkeypatch):
    """Fewer resamples, for tests of values."""
    draw = bootstrap.resampled_groups
    monkeypatch.setattr(
        "simple_multimodal.evaluation.classification.resampled_groups",
        lambda num_groups, *, num_values: draw(num_groups, num_values=num_values, num_resamples=30),
    )


LABELS = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)  # none in the last class, none in row 1
SCORES = np.array([[0.9, 0.2, 0.6], [0.8, 0.7, 0.1], [0.5, 0.6, 0.2], [0.4, 0.6, 0.3]])


def test_metrics_of_many_labels_by_hand():
    result = multi_label_result(SCORES, LABELS)
    first, second = (1 + 2 / 3) / 2, 2 / 3  # the second class: ranks 2 and 3, one threshold
    assert result.metrics == pytest.approx(
        {
            "mAP": (first + second) / 2,
            "wAP": (first + second) / 2,
            "micro_F1": 2 * 3 / (2 * 3 + 3 + 1),  # right: row 0, and rows 2 and 3 in the second class; one is missed
            "macro_F1": (2 / (2 + 1 + 1) + 4 / (4 + 1)) / 2,
            "num_rows": 4,
            "num_classes": 3,
            "num_measured_classes": 2,
        }
    )
    assert result.metrics.keys() - result.intervals.keys() == {"num_rows", "num_classes", "num_measured_classes"}
    assert result.class_metric == "average_precision"
    np.testing.assert_allclose(result.class_values, [first, second, np.nan])
    np.testing.assert_array_equal(result.class_counts, [2, 2, 0])
    np.testing.assert_array_equal(np.isnan(result.class_intervals), [[False] * 2, [False] * 2, [True] * 2])


def test_the_script_of_charades_ranks_rows_without_classes_last_and_ties_in_the_order_of_rows():
    result = multi_label_result(SCORES, LABELS, charades=True)
    first, second = 1.0, 1.0  # row 1, which has no class, is last
    np.testing.assert_allclose(result.class_values, [first, second, np.nan])
    assert result.metrics["mAP"] == result.metrics["wAP"] == 1
    assert result.metrics["mAP_all_rows"] == multi_label_result(SCORES, LABELS).metrics["mAP"]
    assert result.intervals["mAP_all_rows"] == multi_label_result(SCORES, LABELS).intervals["mAP"]
    assert result.intervals["mAP"] == (pytest.approx(0.025 ** (1 / 4)), 1)  # exact: four clips
    assert result.class_intervals[0].tolist() == [pytest.approx(0.025 ** (1 / 2)), 1]  # two clips have the class
    assert "mAP_all_rows" not in multi_label_result(SCORES, LABELS).metrics


def test_rows_without_scores_are_wrong():
    is_read = np.array([True, True, False, True])
    for missing in (np.nan, -np.inf):
        scores = np.where(is_read[:, None], SCORES, missing)
        metrics = multi_label_result(scores, LABELS).metrics
        assert metrics["mAP"] == pytest.approx((1 / 2 + (1 / 2) / 2) / 2)  # one positive of each class is not found
        assert metrics["micro_F1"] == pytest.approx(2 * 2 / (2 * 2 + 3 + 2))
        official = multi_label_result(scores, LABELS, charades=True).metrics
        # rows 1 and 2 share the end, in the order of the rows: row 2 is the last of four
        assert official["mAP"] == pytest.approx(((1 + 2 / 4) / 2 + (1 + 2 / 4) / 2) / 2)
        assert official["mAP_all_rows"] == metrics["mAP"]
    nothing = multi_label_result(np.full(SCORES.shape, np.nan), LABELS)
    assert nothing.metrics["mAP"] == nothing.metrics["micro_F1"] == nothing.metrics["macro_F1"] == 0
    assert nothing.intervals["mAP"] == (0, pytest.approx(1 - 0.025 ** (1 / 4)))


def test_classes_that_the_model_does_not_know_are_wrong():
    """A class whose scores are all `-inf`: none of its positives is found."""
    labels = np.column_stack([LABELS, [True, False, True, False]])
    scores = np.column_stack([SCORES, np.full(4, -np.inf)])
    scores[3, :3] = np.nan  # not read
    known, result = (multi_label_result(scores[:, :n], labels[:, :n]) for n in (3, 4))
    np.testing.assert_array_equal(result.class_values, [*known.class_values, 0])
    assert result.metrics["mAP"] == pytest.approx(known.metrics["mAP"] * 2 / 3)
    assert result.metrics["micro_F1"] < known.metrics["micro_F1"]


def test_the_threshold_of_f1_is_exclusive():
    labels = np.array([[True], [True]])
    assert multi_label_result(np.array([[0.5], [0.51]]), labels).metrics["micro_F1"] == pytest.approx(2 / 3)
    assert multi_label_result(np.array([[-1.0], [0.1]]), labels, threshold=0.0).metrics["micro_F1"] == (
        pytest.approx(2 / 3)
    )


def test_one_row_and_one_class():
    result = multi_label_result(np.array([[0.7]]), np.array([[True]]), charades=True)
    for name in ("mAP", "mAP_all_rows", "wAP", "micro_F1", "macro_F1"):
        assert result.metrics[name] == 1
        assert result.intervals[name] == (pytest.approx(0.025), 1)


def test_chance_of_many_labels():
    generator = np.random.default_rng(0)
    labels = generator.random((40, 6)) < 0.2
    labels[:5] = False
    result = multi_label_result(generator.random(labels.shape), labels, charades=True)
    random = [generator.random(labels.shape) for _ in range(500)]
    has_class = labels.any(axis=1)
    assert result.chance["mAP_all_rows"] == pytest.approx(
        np.mean([average_precisions(scores, labels) for scores in random]), rel=0.03
    )
    assert result.chance["mAP"] == pytest.approx(
        np.mean([average_precisions(scores[has_class], labels[has_class]) for scores in random]), rel=0.03
    )
    everything = multi_label_result(np.ones(labels.shape), labels).metrics
    for name in ("micro_F1", "macro_F1"):
        assert result.chance[name] == pytest.approx(everything[name])
    assert result.chance.keys() == {"mAP", "wAP", "mAP_all_rows", "micro_F1", "macro_F1"}


def test_intervals_of_many_labels_equal_those_of_repeated_rows(monkeypatch):
    generator = np.random.default_rng(1)
    labels, scores = generator.random((12, 4)) < 0.4, generator.random((12, 4))
    groups = np.array(list("aabbcddefghi"))
    names, members = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(bootstrap.SEED).integers(len(names), size=(bootstrap.NUM_RESAMPLES, len(names)))
    micro, macro = [], []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(members == group) for group in draw])
        given, own = scores[rows] > 0.5, labels[rows]
        right, both = (given & own).sum(axis=0), given.sum(axis=0) + own.sum(axis=0)
        micro.append(2 * right.sum() / both.sum())
        macro.append(np.mean((2 * right / np.maximum(both, 1))[own.any(axis=0)]))
    result = multi_label_result(scores, labels, groups=groups)
    for name, values in (("micro_F1", micro), ("macro_F1", macro)):
        np.testing.assert_allclose(result.intervals[name], np.quantile(values, [0.025, 0.975]), rtol=1e-6)
    monkeypatch.setattr(bootstrap, "MAX_BOOTSTRAP_ELEMENTS", 12 * 16 * 7)
    again = multi_label_result(scores, labels, groups=groups)  # in blocks of seven resamples
    for name, interval in result.intervals.items():
        np.testing.assert_allclose(again.intervals[name], interval, rtol=1e-12)
    np.testing.assert_allclose(again.class_intervals, result.class_intervals, rtol=1e-12)


def test_intervals_of_random_scores_include_their_value_and_chance():
    """Copies that ranked before each other would raise the resamples of rare classes above both."""
    generator = np.random.default_rng(2)
    labels = generator.random((400, 60)) < 0.03
    result = multi_label_result(generator.random(labels.shape), labels, charades=True)
    for name in ("mAP", "mAP_all_rows", "wAP"):
        low, high = result.intervals[name]
        assert low < result.metrics[name] < high
        assert low < result.chance[name] < high


def test_rows_of_one_clip_are_resampled_together():
    generator = np.random.default_rng(3)
    labels = (generator.random((20, 3)) < 0.5).repeat(20, axis=0)
    scores = generator.random((20, 3)).repeat(20, axis=0) + 0.2 * labels
    low, high = multi_label_result(scores, labels).intervals["mAP"]
    group_low, group_high = multi_label_result(scores, labels, groups=np.arange(20).repeat(20)).intervals["mAP"]
    assert group_high - group_low > 2 * (high - low)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros((2, 3), bool), {}, "None of 2 rows has a class"),
        (np.ones((2, 3), bool), {"groups": np.zeros(3)}, "one group per value"),
        (np.ones((2, 3)), {}, "must be bool"),
    ],
)
def test_invalid_labels_of_many_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        multi_label_result(np.zeros((2, 3)), labels, **options)


@pytest.mark.parametrize(
    ("split", "name"), [("train", "random"), ("train", "informed"), *(("test", name) for name in GOLDEN_SCORES)]
)
def test_golden_values_of_charades(shared_dir, few_resamples, split, name):
    golden, labels = read_golden(shared_dir), read_split(shared_dir, split).labels
    scores = golden_scores(name, labels, golden["seed"] - (split == "train"))
    labels = labels[: len(scores)]
    values = golden["sets"][f"{split}_{name}"]
    result = multi_label_result(scores, labels, charades=True)
    check_golden(result, values["official"])
    assert result.metrics["mAP_all_rows"] == pytest.approx(values["all_rows_by_threshold"]["mAP"], abs=1e-9)
    check_golden(multi_label_result(scores, labels), values["all_rows_by_threshold"])


def check_golden(result, expected) -> None:
    """Compare the means, the number of classes and each class."""
    assert result.metrics["mAP"] == pytest.approx(expected["mAP"], abs=1e-9)
    assert result.metrics["wAP"] == pytest.approx(expected["wAP"], abs=1e-9)
    assert result.metrics["num_measured_classes"] == expected["classes"]
    np.testing.assert_allclose(result.class_values, np.array(expected["per_class"], float), rtol=0, atol=1e-9)


def test_golden_values_of_rows_that_were_not_handed_in(shared_dir, few_resamples):
    golden, labels = read_golden(shared_dir), read_split(shared_dir, "test").labels
    scores = golden_scores("informed", labels, golden["seed"])
    scores[7::20] = np.nan
    check_golden(multi_label_result(scores, labels, charades=True), golden["sets"]["test_missing_rows"]["official"])


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_golden_values_of_f1(shared_dir, few_resamples, threshold):
    golden, labels = read_golden(shared_dir), read_split(shared_dir, "test").labels
    metrics = multi_label_result(
        golden_scores("informed", labels, golden["seed"]), labels, threshold=threshold
    ).metrics
    expected = golden["sets"][f"test_micro_f1_above_{threshold}"]
    assert metrics["micro_F1"] == pytest.approx(expected["micro_f1"], abs=1e-9)
    assert metrics["macro_F1"] == pytest.approx(expected["macro_f1"], abs=1e-9)


ONE_LABEL_SCORES = np.array(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],  # right
        [0.9, 0.9, 0.2, 0.3, 0.4, 0.5],  # a tie with the right class
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],  # the third of six
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],  # the last of six
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],  # a class that the model does not know
        [np.nan] * 6,  # not read
    ]
)
ONE_LABEL = np.array([0, 1, 2, 5, -1, 0])


def test_metrics_of_one_label_by_hand():
    result = single_label_result(ONE_LABEL_SCORES, ONE_LABEL)
    assert result.metrics == {
        "top1_accuracy": 1 / 6,
        "top5_accuracy": 3 / 6,
        "mean_class_accuracy": (1 / 2 + 0 + 0 + 0 + 0) / 5,  # classes 0, 1, 2 and 5, and the unknown one
        "num_rows": 6,
        "num_classes": 6,
        "num_measured_classes": 5,
    }
    assert result.intervals.keys() == {"top1_accuracy", "top5_accuracy", "mean_class_accuracy"}
    assert result.class_metric == "accuracy"
    np.testing.assert_array_equal(result.class_values, [1 / 2, 0, 0, np.nan, np.nan, 0])
    np.testing.assert_array_equal(result.class_counts, [2, 1, 1, 0, 0, 1])
    np.testing.assert_allclose(result.class_intervals[1], [0, 0.975])  # exact, of one trial
    assert np.isnan(result.class_intervals[3]).all()


@pytest.mark.parametrize("scores", [np.zeros((4, 6)), np.full((4, 6), np.nan), np.full((4, 6), -np.inf)])
def test_constant_scores_are_wrong(scores):
    metrics = single_label_result(scores, np.array([0, 1, 2, 5])).metrics
    assert metrics["top1_accuracy"] == metrics["top5_accuracy"] == metrics["mean_class_accuracy"] == 0


def test_fewer_than_six_classes_have_no_top_five():
    for num_classes in (1, 2, 5):
        result = single_label_result(np.eye(num_classes), np.arange(num_classes), train_labels=np.array([0]))
        assert result.metrics["top1_accuracy"] == result.metrics["mean_class_accuracy"] == 1
        assert not [name for name in (*result.metrics, *result.intervals) if "top5" in name]
        assert result.intervals["mean_class_accuracy"] == result.intervals["top1_accuracy"]  # exact
        assert result.intervals["top1_accuracy"] == (pytest.approx(0.025 ** (1 / num_classes)), 1)
    assert single_label_result(np.eye(6), np.arange(6)).metrics["top5_accuracy"] == 1
    assert single_label_result(np.array([[np.nan]]), np.array([0])).metrics["top1_accuracy"] == 0


def test_intervals_of_one_label():
    generator = np.random.default_rng(0)
    labels, groups = generator.integers(-1, 7, size=30), generator.integers(12, size=30)
    scores = generator.random((30, 7)) + 0.5 * np.eye(8)[labels][:, :7]
    result = single_label_result(scores, labels, groups=groups)
    is_correct = np.array([label >= 0 and row.argmax() == label for row, label in zip(scores, labels, strict=True)])
    assert result.metrics["top1_accuracy"] == is_correct.mean()
    assert result.intervals["top1_accuracy"] == bootstrap_interval(is_correct, resampled_mean, groups=groups)
    members = np.unique(groups, return_inverse=True)[1]
    num_groups = members.max() + 1
    draws = np.random.default_rng(bootstrap.SEED).integers(num_groups, size=(bootstrap.NUM_RESAMPLES, num_groups))
    means = []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(members == group) for group in draw])
        means.append(np.mean([is_correct[rows[labels[rows] == label]].mean() for label in np.unique(labels[rows])]))
    np.testing.assert_allclose(result.intervals["mean_class_accuracy"], np.quantile(means, [0.025, 0.975]), rtol=1e-12)
    for label in np.flatnonzero(result.class_counts):
        own = labels == label
        expected = bootstrap_interval(is_correct[own], resampled_mean, groups=groups[own])
        assert tuple(result.class_intervals[label]) == expected


def test_chance_of_one_label():
    train_labels = np.array([2, 2, 1, 1, 0, -1, -1, -1])  # classes 1 and 2 are equally frequent: the lower comes first
    labels = np.array([1, 1, 1, 2, 6, -1])
    metrics = single_label_result(np.zeros((6, 7)), labels, train_labels=train_labels).metrics
    assert metrics["majority_top1_accuracy"] == 3 / 6
    assert metrics["majority_top5_accuracy"] == 4 / 6
    levels = chance_levels(metrics)
    assert levels == {"top1_accuracy": 3 / 6, "top5_accuracy": 4 / 6, "mean_class_accuracy": 1 / 4}
    constant = single_label_result(np.eye(7)[[1] * 6], labels).metrics
    assert constant["mean_class_accuracy"] == levels["mean_class_accuracy"]
    levels = chance_levels(single_label_result(np.zeros((6, 7)), labels).metrics)
    assert levels == {"top1_accuracy": 1 / 7, "top5_accuracy": 5 / 7, "mean_class_accuracy": 1 / 4}


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.array([0, 3]), {}, "from 0 to 2, or -1 if unknown to the model, got 0 to 3"),
        (np.array([0, -2]), {}, "got -2 to 0"),
        (np.array([0.0, 1.0]), {}, "Labels must be integers"),
        (np.array([0]), {}, "1 labels for 2 rows"),
        (np.array([0, 1]), {"train_labels": np.array([3])}, "Training labels must be from 0 to 2"),
        (np.array([0, 1]), {"train_labels": np.array([], np.int64)}, "at least one"),
        (np.array([0, 1]), {"groups": np.zeros(3)}, "one group per value"),
    ],
)
def test_invalid_labels_of_one_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        single_label_result(np.zeros((2, 3)), labels, **options)


def test_rows_by_class():
    rows = class_rows(multi_label_result(SCORES, LABELS), ["run", "sit", "eat"])
    assert [row["label"] for row in rows] == ["run", "sit", "eat"]
    assert rows[0]["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert rows[0]["num_rows"] == 2 and len(rows[0]["interval"]) == 2
    assert rows[2] == {"label": "eat", "average_precision": None, "interval": None, "num_rows": 0}
    result = single_label_result(ONE_LABEL_SCORES, ONE_LABEL)
    assert class_rows(result, list("abcdef"))[0]["accuracy"] == 1 / 2
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        class_rows(multi_label_result(SCORES, LABELS), ["run", "sit"])
