"""Scores of translations: those of sacrebleu for spoiled references of PHOENIX-2014T, and the rows they are over."""

import importlib
import json

import numpy as np
import pytest

from simple_multimodal.errors import MissingPackageError
from simple_multimodal.evaluation import translation_scores
from simple_multimodal.evaluation.translation_scores import translation_result

pytest.importorskip("sacrebleu", reason="needs sacrebleu (the extra bleu)")

CASES = ("same", "drop", "replace", "neighbour_swap", "other", "constant", "some_empty", "punctuated")
REFERENCES = ["am freitag regnet es im norden", "heute nacht bleibt es trocken", "morgen schneit es an der see"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(translation_scores, "NUM_RESAMPLES", 10)


@pytest.fixture(scope="module")
def golden(shared_dir):
    return json.loads((shared_dir / "data/poses/translation/dev_expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def phoenix(shared_dir):
    """Targets of the real tables by split."""
    folder = shared_dir / "data/annotations/phoenix2014t"
    return {
        split: [
            line.split("|")[-1]
            for line in (folder / f"PHOENIX-2014-T.{split}.corpus.csv").read_text(encoding="utf-8").splitlines()
        ]
        for split in ("train", "dev", "test")
    }


def spoiled(shared_dir, case):
    text = (shared_dir / f"data/poses/translation/dev_{case}.txt").read_text(encoding="utf-8")
    return text.removesuffix("\n").split("\n")


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_those_of_sacrebleu(case, shared_dir, golden, phoenix, monkeypatch):
    expected = golden["cases"][case]
    if resampled := expected.get("bootstrap"):
        monkeypatch.setattr(translation_scores, "NUM_RESAMPLES", 1000)
    result = translation_result(spoiled(shared_dir, case), phoenix["dev"])
    percent = {name: pytest.approx(100 * value, abs=1e-6) for name, value in result.metrics.items()}
    assert percent["BLEU"] == expected["bleu"]["score"]
    assert percent["chrF"] == expected["chrf"]["score"]
    assert percent["chrF++"] == expected["chrf++"]["score"]
    assert [percent[f"BLEU-{order}"] for order in range(1, 5)] == expected["bleu_lower_none"]["bleu_1_to_4"]
    printed = json.loads(result.sacrebleu_output)
    assert printed["signature"] == expected["bleu"]["signature"]
    assert printed == expected.get("command_w3", printed)
    for name, of in (("BLEU", "bleu"), ("BLEU-4", "bleu_lower_none"), ("chrF", "chrf"), ("chrF++", "chrf++")):
        assert f"|{expected[of]['signature']} = {expected[of]['score']:.3f}" in result.signatures[name]
    if resampled:
        mean, half = resampled["mean"] / 100, resampled["ci"] / 100
        assert result.intervals["BLEU"] == pytest.approx((mean - half, mean + half), abs=1e-8)
    assert result.metrics["num_rows"] == golden["rows"] == len(result.row_values)


def test_intervals_are_those_that_sacrebleu_prints(shared_dir, phoenix, monkeypatch):
    import sacrebleu

    monkeypatch.setattr(translation_scores, "NUM_RESAMPLES", 100)
    monkeypatch.setattr(translation_scores, "MAX_BOOTSTRAP_ELEMENTS", 50 * 7 - 1)  # blocks of 6 resamples
    texts, references = spoiled(shared_dir, "replace")[:50], phoenix["dev"][:50]
    intervals = translation_result(texts, references).intervals
    for name, scorer in (
        ("BLEU", sacrebleu.BLEU()),
        ("chrF", sacrebleu.CHRF()),
        ("chrF++", sacrebleu.CHRF(word_order=2)),
    ):
        score = scorer.corpus_score(texts, [references], n_bootstrap=100)
        printed = score.format(width=4).split("(", 1)[1].split(")", 1)[0]
        low, high = (100 * value for value in intervals[name])
        assert printed == f"μ = {(low + high) / 2:.4f} ± {(high - low) / 2:.4f}", name


def test_effective_order_gives_the_same_corpus_and_scores_short_rows(shared_dir, golden, phoenix):
    import sacrebleu

    effective = sacrebleu.BLEU(effective_order=True, force=True)
    for case in CASES:
        score = effective.corpus_score(spoiled(shared_dir, case), [phoenix["dev"]]).score
        assert score == pytest.approx(golden["cases"][case]["bleu_effective"]["score"], abs=1e-6)
    texts = spoiled(shared_dir, "other")
    result = translation_result(texts, phoenix["dev"])
    rows = [effective.sentence_score(text, [phoenix["dev"][row]]).score for row, text in enumerate(texts[:20])]
    assert 100 * result.row_values[:20] == pytest.approx(np.array(rows))
    assert translation_result(["regen"], ["regen"]).row_values.tolist() == [pytest.approx(1.0)]


def test_repeated_sentences_of_phoenix_are_left_out_of_the_unseen_scores(shared_dir, phoenix):
    result = translation_result(spoiled(shared_dir, "drop"), phoenix["dev"], training_texts=phoenix["train"])
    assert result.metrics["num_rows"] == 519 and result.metrics["num_unseen_rows"] == 519 - 25
    assert sum(text in set(phoenix["train"]) for text in phoenix["test"]) == 32
    names = {"BLEU", "chrF", "chrF++", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"}
    assert result.intervals.keys() == result.signatures.keys() == names | {f"unseen_{name}" for name in names}
    assert len(result.row_values) == 519


def test_unseen_scores_are_those_of_the_other_rows_alone():
    predictions = ["am freitag regnet es", "heute bleibt es trocken", "morgen schneit es"]
    result = translation_result(
        predictions, REFERENCES, training_texts=[REFERENCES[0], "Heute nacht bleibt es trocken"]
    )
    alone = translation_result(predictions[1:], REFERENCES[1:])
    for name in alone.intervals:
        assert result.metrics[f"unseen_{name}"] == alone.metrics[name] != result.metrics[name]
        assert result.intervals[f"unseen_{name}"] == alone.intervals[name]
    assert result.metrics["num_unseen_rows"] == 2


def test_without_an_unseen_row_there_are_no_unseen_scores():
    result = translation_result(REFERENCES, REFERENCES, training_texts=REFERENCES)
    assert result.metrics["num_unseen_rows"] == 0
    assert not any(name.startswith("unseen_") for name in (*result.intervals, *result.signatures))
    untrained = translation_result(REFERENCES, REFERENCES, training_texts=[])
    assert untrained.metrics["unseen_BLEU"] == untrained.metrics["BLEU"] and untrained.metrics["num_unseen_rows"] == 3


def test_bleu_of_a_corpus_is_not_the_mean_of_its_batches(shared_dir, phoenix):
    texts, references = spoiled(shared_dir, "replace")[:60], phoenix["dev"][:60]
    whole = translation_result(texts, references).metrics["BLEU"]
    batches = [slice(start, start + 20) for start in range(0, 60, 20)]
    mean = np.mean([translation_result(texts[part], references[part]).metrics["BLEU"] for part in batches])
    assert abs(mean - whole) > 1e-4


def test_an_empty_translation_counts():
    full = translation_result(REFERENCES, REFERENCES)
    with_empty = translation_result([*REFERENCES[:2], ""], REFERENCES)
    for name in full.intervals:
        assert full.metrics[name] == pytest.approx(1.0) and with_empty.metrics[name] < 0.9
    assert with_empty.row_values.tolist() == pytest.approx([1, 1, 0])
    nothing = translation_result([""] * 3, REFERENCES)
    assert all(nothing.metrics[name] == 0 and nothing.intervals[name] == (0, 0) for name in nothing.intervals)


def test_line_breaks_and_tabs_count_as_spaces_as_in_the_files():
    # sacrebleu's tokenizer would join a word that a line break divides behind a hyphen.
    broken = ["am freitag-\nregnet es\tim\u2028norden"]
    assert (
        translation_result(broken, REFERENCES[:1]).metrics
        == translation_result(["am freitag- regnet es im norden"], REFERENCES[:1]).metrics
    )


def test_rouge_l_is_over_lower_case_words():
    result = translation_result(["Am FREITAG schneit es"], ["am freitag regnet es im norden"])
    precision, recall = 3 / 4, 3 / 6
    assert result.metrics["ROUGE-L"] == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert result.metrics["BLEU-1"] > result.metrics["BLEU"]  # whose case is as it is


@pytest.mark.parametrize(("predictions", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_numbers_of_texts_that_differ_are_refused(predictions, references):
    with pytest.raises(ValueError, match=f"{len(predictions)} predictions and {len(references)} references"):
        translation_result(predictions, references)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingPackageError, match=r"pip install 'simple-multimodal\[bleu\]'"):
        translation_result(["a"], ["a"])
