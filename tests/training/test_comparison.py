"""Comparison of two folders, and repetition of a command."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from simple_multimodal.cli import main

TRAIN = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder = Path(sys.argv[-1])
folder.mkdir(parents=True, exist_ok=True)
value = 1.0 if sys.argv[1] == "same" else float(folder.name[-1])
save_file({"weight": torch.tensor([0.5, value])}, folder / "model.safetensors")
"""


def write(folder, *, weight=(1.0, 2.0), loss=0.5, moment=0.0, runtime=1.0):
    folder.mkdir()
    save_file({"a": torch.zeros(2, 2), "b": torch.tensor(weight)}, folder / "model.safetensors")
    torch.save(
        {"state": {0: {"exp_avg": torch.tensor([moment])}}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer.pt"
    )
    history = [{"loss": loss, "step": 3}, {"train_runtime": runtime, "train_loss": 1.0, "step": 4}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return str(folder)


def test_equal_folders(tmp_path, capsys):
    first = write(tmp_path / "a", loss=float("nan"))
    assert main(["diff", first, write(tmp_path / "b", loss=float("nan"), runtime=2.0)]) == 0
    assert capsys.readouterr().out == f"{first} and {tmp_path / 'b'}: equal, all 6\n"  # a, b, moment, rate, losses


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"weight": (1.0, 2.5)}, "b: 1 of 2 values differ, by at most 0.5 at [1]: 2.0 and 2.5"),
        ({"weight": (float("nan"), 2.0)}, "b: 1 of 2 values differ, by at most nan at [0]: 1.0 and nan"),
        ({"weight": (1.0, 2.0, 3.0)}, "b: torch.float32 (2,) and torch.float32 (3,)"),
        ({"loss": 0.75}, "step 3.loss: 1 of 1 values differ, by at most 0.25 at []: 0.5 and 0.75"),
        ({"moment": -0.0}, "optimizer.state.0.exp_avg: 0 of 1 values differ, by at most 0 at [0]: 0.0 and -0.0"),
    ],
)
def test_differences_are_listed(tmp_path, capsys, values, line):
    assert main(["diff", write(tmp_path / "a"), write(tmp_path / "b", **values)]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("1 of 6 differ") and lines == [f"  {line}"]


def test_tensors_that_only_one_folder_has_are_differences(tmp_path, capsys):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "b/model.safetensors")
    (tmp_path / "b/optimizer.pt").unlink()
    assert main(["diff", first, second]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [f"  b: only in {first}"]


@pytest.mark.parametrize("lacks", [["trainer_state.json"], ["optimizer.pt"], ["trainer_state.json", "optimizer.pt"]])
def test_parts_that_only_one_folder_has_are_not_compared(tmp_path, capsys, lacks):
    """For example a checkpoint and a model folder, which only has weights."""
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for name in lacks:
        (tmp_path / "b" / name).unlink()
    count = 6 - 2 * len(lacks)
    for folders in ((first, second), (second, first)):
        assert main(["diff", *folders]) == 0
        assert capsys.readouterr().out.endswith(f"equal, all {count}\n")


def test_a_missing_folder_is_an_error_with_similar_names(tmp_path, capsys):
    write(tmp_path / "outputs")
    assert main(["diff", str(tmp_path / "outputs"), str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/output: no such folder. Did you mean '{tmp_path}/outputs'?" in error and error.count("\n") == 1


def test_a_folder_without_weights_is_an_error(tmp_path, capsys):
    assert main(["diff", write(tmp_path / "a"), str(tmp_path)]) == 2
    assert "has no weights (*.safetensors)" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "code"), [("same", 0), ("other", 1)])
def test_repeat(tmp_path, capsys, kind, code):
    command = [sys.executable, "-c", TRAIN, kind]
    assert main(["repeat", "--runs", "3", "--output_dir", str(tmp_path), "--", *command]) == code
    lines = capsys.readouterr().out.splitlines()
    if kind == "same":
        assert lines == ["run-1 and run-2: equal, all 1", "run-1 and run-3: equal, all 1"]
    else:
        assert lines[3] == "  weight: 1 of 2 values differ, by at most 2 at [1]: 1.0 and 3.0"


@pytest.mark.parametrize(
    ("runs", "command", "message"),
    [("1", "true", "--runs is 1; give 2 or more"), ("2", "false", "run-1 failed with exit code 1")],
)
def test_errors_of_repeat(tmp_path, capsys, runs, command, message):
    assert main(["repeat", "--runs", runs, "--output_dir", str(tmp_path), "--", command]) == 2
    assert message in capsys.readouterr().err
