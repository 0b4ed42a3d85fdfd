"""Error rates of transcripts: cases computed by hand."""

import numpy as np
import pytest

from simple_multimodal.evaluation.transcript_scores import transcript_result, transcript_words


def test_words_are_compared_without_case_and_punctuation():
    assert transcript_words("It’s a HIGH-five, Dr. Jones!  5 % 'ok'") == [
        "it's", "a", "high", "five", "dr", "jones", "5", "ok",
    ]  # fmt: skip
    assert transcript_words("ｆｕｌｌ ｗｉｄｔｈ ﬁne") == ["full", "width", "fine"]
    assert transcript_words("e\u0301te\u0301") == ["été"]
    assert transcript_words("... - '") == transcript_words("") == []


def test_error_rates_are_those_of_all_words_not_the_mean_of_rows():
    result = transcript_result(["The cat sat.", "one"], ["the bat sat", "one two three four"])
    # Words: one substitution of 3, three deletions of 4. Characters: 1 of 11, and 15 of 18 ("one" is left).
    assert result.metrics == {
        "WER": pytest.approx(4 / 7), "CER": pytest.approx(16 / 29), "num_rows": 2, "num_words": 7,
    }  # fmt: skip
    assert result.row_metric == "WER" and result.row_values.tolist() == pytest.approx([1 / 3, 3 / 4])
    assert result.intervals["WER"] == pytest.approx((1 / 3, 3 / 4))
    assert "numbers:as written" in result.signatures["WER"]


def test_an_empty_transcript_misses_all_words():
    result = transcript_result(["", "yes"], ["no no", "yes"])
    assert result.metrics["WER"] == pytest.approx(2 / 3)
    assert transcript_result([""], ["a b"]).metrics["CER"] == 1.0


def test_invented_words_count_even_where_nothing_was_said():
    result = transcript_result(["two words", "yes"], ["", "yes"])
    assert result.metrics["WER"] == 2.0
    assert result.row_values.tolist() == [2.0, 0.0]
    assert np.isfinite(result.intervals["WER"]).all()


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["...", ""], "1 predictions and 2 references"),
        ([], [], "0 predictions"),
        (["a", "b"], ["...", ""], "None of 2 references has a word"),
    ],
)
def test_transcripts_that_cannot_be_scored_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        transcript_result(predictions, references)
