"""Files of generated text: read by the scripts of others, line by line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from simple_multimodal.evaluation.generated_text import TextResult, one_line
from simple_multimodal.evaluation.generated_text_files import GeneratedText, write_generated_texts
from simple_multimodal.evaluation.translation_scores import translation_result

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
HARD_TEXTS = [
    "am freitag regnet es im norden",
    "",
    "zwei\nzeilen",
    "windows\r\nzeilen",
    "ein\ttab",
    *(f"trenner{end}nummer {number}" for number, end in enumerate(LINE_ENDS)),
    "\n \tam rand\u2028",
    "[3] \tL [4] \tklammern \\ & / %s",
    "L [7] \tP [8] \ttext",
    "wort " * 20_000 + "ende",
    "日本語 😀 e\u0301 ü",
    "ein halbes zeichen \ud83d",
    "",
]


def hard_rows():
    return [
        GeneratedText(f"clip{number}", text[::-1], (text,), -0.5 * number) for number, text in enumerate(HARD_TEXTS)
    ]


def read_lines(path):
    """Return the lines of a file by the separator of Unix tools."""
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_sed_line_of_multimodalhugs_returns_the_references(tmp_path, locale):
    if shutil.which("sed") is None:
        pytest.skip("needs sed")
    write_generated_texts(tmp_path, hard_rows())
    command = ["sed", "-n", r"s/^L \[[0-9]\+\]\s*//p", str(tmp_path / "predictions_labels.txt")]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"LC_ALL": locale})
    references = done.stdout.decode("utf-8").removesuffix("\n").split("\n")
    assert references == [one_line(text) for text in HARD_TEXTS]
    assert len(references) == len(read_lines(tmp_path / "generated_predictions.txt")) == len(HARD_TEXTS)


def test_every_text_is_one_line_for_every_reader(tmp_path):
    write_generated_texts(tmp_path, hard_rows())
    content = (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8")
    assert (
        content.splitlines() == content.removesuffix("\n").split("\n") == [one_line(text[::-1]) for text in HARD_TEXTS]
    )
    assert "\t" not in content
    pairs = (tmp_path / "predictions_labels.txt").read_text(encoding="utf-8").splitlines()
    assert pairs[:4] == [f"L [0] \t{HARD_TEXTS[0]}", f"P [0] \t{HARD_TEXTS[0][::-1]}", "L [1] \t", "P [1] \t"]
    assert len(pairs) == 2 * len(HARD_TEXTS)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb", "a b"), ("a\r\nb", "a b"), ("a\n\nb", "a  b"), (" a\t", "a"), ("\n", ""), ("", ""), ("\ud83d", "?")],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_rows_keep_the_text_as_it_is(tmp_path):
    write_generated_texts(tmp_path, hard_rows())
    content = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    assert rows == [
        {"row": f"clip{number}", "prediction": text[::-1], "references": [text], "score": -0.5 * number}
        for number, text in enumerate(HARD_TEXTS)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generated_predictions.txt", "predictions_labels.txt", "results.jsonl",
    ]  # fmt: skip


def test_scores_have_the_names_and_the_scale_of_multimodalhugs(tmp_path):
    result = TextResult(
        {"BLEU": 0.25, "chrF": 0.5, "CIDEr-D": 0.7, "num_rows": 2},
        {"BLEU": (0.2, 0.3), "chrF": (0.4, 0.6), "CIDEr-D": (0.6, 0.8)},
        {},
        "BLEU",
        np.array([0.125, 0.5]),
    )
    rows = [GeneratedText(0, "a", ("b",)), GeneratedText(1, "c"), GeneratedText(2, "d", ("e", "f"))]
    write_generated_texts(tmp_path, rows, result)
    assert json.loads((tmp_path / "predict_results.json").read_text()) == {
        "predict_CIDEr-D": 70.0, "predict_chrf": 50.0, "predict_sacrebleu": 25.0, "predict_samples": 2,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line.get("BLEU") for line in lines] == [0.125, None, 0.5]
    assert lines[1] == {"row": 1, "prediction": "c", "references": [], "score": None}
    assert (tmp_path / "predictions_labels.txt").read_text() == (
        "L [0] \tb\nP [0] \ta\nP [1] \tc\nL [2] \te\nL [2] \tf\nP [2] \td\n"
    )
    assert not (tmp_path / "test_score.bleu").exists()


def test_a_score_that_is_not_finite_is_refused_and_leaves_the_old_file(tmp_path):
    write_generated_texts(tmp_path, [GeneratedText(0, "old", score=-1.0)])
    with pytest.raises(ValueError, match="[Oo]ut of range float"):
        write_generated_texts(tmp_path, [GeneratedText(0, "new", score=float("-inf"))])
    assert json.loads((tmp_path / "results.jsonl").read_text())["prediction"] == "old"


def test_no_rows_give_empty_files(tmp_path):
    write_generated_texts(tmp_path, [])
    for name in ("generated_predictions.txt", "predictions_labels.txt", "results.jsonl"):
        assert (tmp_path / name).read_text() == ""


@pytest.mark.parametrize("piped", [False, True], ids=["file", "standard input"])
def test_the_command_of_sacrebleu_prints_our_number(tmp_path, piped):
    pytest.importorskip("sacrebleu", reason="needs sacrebleu (the extra bleu)")
    # The last text is empty, and the reader of standard input takes a tab as the end of one system's output.
    references = ["am freitag regnet es im norden", "heute nacht\nbleibt es trocken", "morgen\tschneit es", "ja"]
    predictions = ["am freitag schneit-\nes im norden", "heute bleibt es\u2028trocken", "morgen\tschneit es\r", ""]
    result = translation_result(predictions, references)
    rows = [
        GeneratedText(number, text, (reference,))
        for number, (text, reference) in enumerate(zip(predictions, references, strict=True))
    ]
    write_generated_texts(tmp_path, rows, result)
    labels = [line.split("\t", 1)[1] for line in read_lines(tmp_path / "predictions_labels.txt") if line[0] == "L"]
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")

    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "labels.txt"), "-w", "3"]
    file = tmp_path / "generated_predictions.txt"
    if piped:
        done = subprocess.run(command, input=file.read_bytes(), capture_output=True, check=True)
    else:
        done = subprocess.run([*command, "-i", str(file)], capture_output=True, check=True)
    assert done.stdout.decode("utf-8") == (tmp_path / "test_score.bleu").read_text(encoding="utf-8")
    printed = json.loads(done.stdout)["score"]
    assert printed == round(100 * result.metrics["BLEU"], 3) > 0
    assert printed == round(json.loads((tmp_path / "predict_results.json").read_text())["predict_sacrebleu"], 3)
