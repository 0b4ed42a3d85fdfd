"""Question answering on one's own clips, and the warning about answers that the model does not know."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import simple_multimodal as smm
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS
from simple_multimodal.tasks.registry import get_task
from tests.media.media_files import write_media
from tests.training.tiny_run import flags, run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def write(path: Path, answers: list[str | None]) -> Path:
    rows = [{"video": f"{row}.mp4", "question": "what is it?", "answer": answer} for row, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answers", "unknown"),
    [
        (["cat", "dog"], 0),
        (["cat", "bird"], 0),  # not more than half
        (["cat", "bird", "fish"], 2),
        (["bird"], 1),
        ([None, None, "cat"], 2),
    ],
)
def test_rows_are_doubted_if_the_model_knows_less_than_half_of_the_answers(answers, unknown):
    rows = [{"video": "a.mp4", "question": "what is it?", "answer": answer} for answer in answers]
    model = SimpleNamespace(config=SimpleNamespace(label2id={"cat": 0, "dog": 1}))
    warning = get_task("question_answering")().warning_about(model, smm.Dataset(rows, **QUESTION_COLUMNS))
    assert (warning is not None) == (unknown > 0)
    if warning is not None:
        assert warning.startswith(f"{unknown} of {len(rows)} questions have no known answer: the model chooses among")
    assert get_task("retrieval")().warning_about(model, smm.Dataset(rows, **QUESTION_COLUMNS)) is None


@pytest.mark.parametrize("known", [True, False])
def test_a_run_says_at_its_start_that_answers_are_unknown(start, tmp_path, monkeypatch, known):
    said: list[str] = []
    monkeypatch.setattr("simple_multimodal.training.trainer.logger.warning", said.append)
    files = {
        "train_file": write(tmp_path / "train.jsonl", ["cat", "dog", "cat"]),
        "validation_file": write(tmp_path / "validation.jsonl", ["dog", "cat"] if known else ["a dog", "a cat"]),
    }
    metrics = run(*start, *flags(task="question_answering", max_steps=1, output_dir=tmp_path / "out", **files))
    warnings = [line for line in said if "answer" in line]
    if known:
        assert warnings == [] and metrics["eval_loss"] > 0
    else:
        (warning,) = warnings
        assert warning.startswith("Evaluation rows: 2 of 2 questions have no known answer: the model chooses among")
        assert metrics["eval_loss"] == metrics["eval_accuracy"] == 0


def test_the_manifest_of_the_readme_trains(start, tmp_path):
    """The command is tested in `tests/test_readme.py`."""
    manifest = next(block for block in re.findall(r"```csv\n(.*?)```", README, re.DOTALL) if "question" in block)
    (tmp_path / "clips").mkdir()
    for clip in set(re.findall(r"^clips/\w+\.mp4", manifest, re.MULTILINE)):
        write_media(tmp_path / clip, num_frames=6)
    (tmp_path / "questions.csv").write_text(manifest)
    files = dict.fromkeys(("train_file", "validation_file"), tmp_path / "questions.csv")
    settings = {"task": "question_answering", "max_steps": 1, "video_root": tmp_path, "output_dir": tmp_path / "out"}
    assert run(*start, *flags(**settings, **files))["eval_loss"] > 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert set(config["label2id"]) == {line.split(",")[-1] for line in manifest.splitlines()[1:]}
