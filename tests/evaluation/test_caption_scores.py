"""Scores of captions: those of pycocoevalcap, and cases computed by hand."""

import json
import math

import numpy as np
import pytest

from simple_multimodal.evaluation.caption_scores import caption_result

CAPTIONS = ["a man plays the guitar", "a dog runs on grass", "a woman cooks"]
REFERENCES = [
    ["a man plays a guitar", "someone plays the guitar"],
    ["a dog runs in the grass"],
    ["a woman is cooking rice", "a woman cooks", "the lady cooks"],
]


def test_scores_equal_those_of_pycocoevalcap(shared_dir):
    golden = json.loads((shared_dir / "data/poses/captions_expected.json").read_text(encoding="utf-8"))
    result = caption_result(
        [row["hypothesis"] for row in golden["rows"]], [row["references"] for row in golden["rows"]]
    )
    expected = {name: value for name, value in golden["expected"].items() if name != "METEOR"}
    assert result.metrics == {
        **{name: pytest.approx(value, abs=1e-6) for name, value in expected.items()},
        "num_rows": 60,
    }
    assert result.row_metric == "CIDEr-D"
    np.testing.assert_allclose(result.row_values, golden["cider_per_row"], atol=1e-6)
    assert result.intervals.keys() == result.signatures.keys() == expected.keys()
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high
    assert "meteor:no" in result.signatures["BLEU-4"]


def test_bleu_counts_over_the_corpus():
    metrics = caption_result(["a b c", "a x"], [["a b d", "c"], ["a"]]).metrics
    # Right of all n-grams: 1-grams 3 + 1 of 5; 2-grams 1 of 3; no 3-gram of 1. Lengths 3 and 2, closest 3 and 1.
    assert metrics["BLEU-1"] == pytest.approx(4 / 5)
    assert metrics["BLEU-2"] == pytest.approx(math.sqrt(4 / 5 * 1 / 3))
    assert metrics["BLEU-3"] == pytest.approx(0, abs=1e-4)
    apart = [
        caption_result([text], [texts]).metrics["BLEU-2"]
        for text, texts in (("a b c", ["a b d", "c"]), ("a x", ["a"]))
    ]
    assert metrics["BLEU-2"] != pytest.approx(np.mean(apart), abs=1e-3)


def test_the_shorter_of_two_equally_close_references_counts():
    assert caption_result(["a b c"], [["a b c d", "a b"]]).metrics["BLEU-1"] == pytest.approx(1.0)
    penalty = math.exp(1 - 4 / 3)
    assert caption_result(["a b c"], [["a b c d"]]).metrics["BLEU-1"] == pytest.approx(penalty)


def test_cider_weighs_ngrams_by_how_few_rows_have_them():
    # "a" is in the references of both rows and weighs nothing; "b" and "c" weigh ln 2.
    result = caption_result(["a b", "a b"], [["a b"], ["a c"]])
    # Row 0: the cosine is 1 for 1-grams and 2-grams, and 0 for longer ones, of which there are none.
    assert result.row_values.tolist() == [pytest.approx(10 * 2 / 4), 0.0]
    assert result.metrics["CIDEr-D"] == pytest.approx(2.5)


def test_cider_of_one_row_is_zero():
    assert caption_result(["a b"], [["a b"]]).metrics["CIDEr-D"] == 0.0


def test_an_empty_caption_counts():
    full, with_empty = caption_result(CAPTIONS, REFERENCES), caption_result([*CAPTIONS[:2], ""], REFERENCES)
    assert with_empty.row_values[2] == 0.0 and with_empty.metrics["num_rows"] == 3
    for name in full.intervals:
        assert with_empty.metrics[name] < full.metrics[name]
    nothing = caption_result([""] * 3, REFERENCES)
    assert {name: nothing.metrics[name] for name in nothing.intervals} == pytest.approx(
        dict.fromkeys(nothing.intervals, 0.0), abs=1e-6
    )


def test_case_and_punctuation_make_no_difference():
    upper = [f"{text.capitalize()}." for text in CAPTIONS]
    assert caption_result(upper, REFERENCES).metrics == caption_result(CAPTIONS, REFERENCES).metrics


def test_rows_of_one_clip_are_resampled_together():
    predictions, references = CAPTIONS * 4, REFERENCES * 4
    apart = caption_result(predictions, references)
    together = caption_result(predictions, references, groups=np.tile([0, 1, 2], 4))
    assert together.metrics == apart.metrics
    for name in apart.intervals:
        assert np.ptp(together.intervals[name]) > np.ptp(apart.intervals[name])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [], "1 predictions and 0 references"),
        ([], [], "0 predictions and 0 references"),
        (["a", "b", "c"], [["a"], [], []], r"2 of 3 rows have no reference caption \(first: row 1\)"),
    ],
)
def test_captions_that_cannot_be_scored_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        caption_result(predictions, references)
