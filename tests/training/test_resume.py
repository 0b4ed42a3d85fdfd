"""Resuming from a checkpoint: rules of the output folder, and weights that do not depend on interruptions."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.training import checkpoints
from simple_multimodal.training.checkpoints import STAGING, begin_run, find_checkpoint, newest_checkpoint, seal
from simple_multimodal.training.run_record import (
    changed_arguments,
    describe_parts,
    earlier_parts,
    make_run_record,
)
from tests.faults.runs import logs
from tests.streams import Stream
from tests.training import tiny_run
from tests.training.tiny_run import flags, run

RECORD = make_run_record({"learning_rate": 0.1, "output_dir": "a"}, command=["train.py"], data={})
RECORD["data"] = {"training": "fingerprint"}


def write_checkpoint(folder: Path, *, complete: bool = True, record: dict = RECORD) -> Path:
    staged = folder.parent / STAGING / folder.name if complete else folder
    staged.mkdir(parents=True)
    (staged / "run.json").write_text(json.dumps(record))
    (staged / "trainer_state.json").write_text("{}")
    if complete:
        seal(staged, folder)
    return folder


def find(folder: Path, *, overwrite: bool = False, resume_from: str | None = None, record: dict = RECORD):
    args = SimpleNamespace(output_dir=folder, overwrite_output_dir=overwrite, resume_from_checkpoint=resume_from)
    return find_checkpoint(args, record)


def test_a_run_that_starts_over_logs_what_it_removes(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "warning", said.append)
    for step in (2, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    begin_run(tmp_path, RECORD, starts_over=False)
    assert said == []
    (tmp_path / "quarantine.jsonl").touch()
    (tmp_path / "checkpoint-99").mkdir()  # it belongs to something else
    assert find(tmp_path, overwrite=True) is None and said == []
    begin_run(tmp_path, RECORD, starts_over=True)
    assert said == [f"Starting over in {tmp_path}: removed checkpoint-2, checkpoint-10, quarantine.jsonl."]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-99"]
    begin_run(tmp_path / "new", RECORD, starts_over=True)
    assert len(said) == 1


def test_a_run_in_a_new_or_empty_folder_starts_from_the_beginning(tmp_path):
    assert find(tmp_path / "new") is None
    assert find(tmp_path) is None
    assert find(tmp_path, resume_from="False") is None


def test_a_run_resumes_from_the_newest_complete_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-9")
    newest = write_checkpoint(tmp_path / "checkpoint-10")  # "9" sorts after "10"
    write_checkpoint(tmp_path / "checkpoint-11", complete=False)
    write_checkpoint(tmp_path / "checkpoint-best")
    assert newest_checkpoint(tmp_path) == newest
    assert find(tmp_path) == find(tmp_path, resume_from="True") == newest
    assert find(tmp_path, resume_from=str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    assert find(tmp_path, overwrite=True) is None


def record_of(command: str, *, data: dict | None = None, **arguments) -> dict:
    return {**make_run_record(arguments, command=[command], data={}), "data": data or {}}


def test_only_arguments_that_change_what_a_run_computes_differ():
    """Rows that changed in the same file are named by its flag; values that follow from flags are not named."""
    first = record_of(
        "a.py", data={"training": "x", "test": "t"}, learning_rate=0.1, output_dir="a", train_file="t.csv"
    )
    other = record_of(
        "b.py", data={"training": "y", "test": "u"}, learning_rate=0.2, output_dir="b", train_file="t.csv"
    )
    other["arguments"] |= {"train_batch_size": 8}
    assert changed_arguments(first, other) == {
        "learning_rate": {"old": 0.1, "new": 0.2},
        "rows of train_file": {"old": "x", "new": "y"},
    }
    other["data"]["evaluation"] = "z"  # evaluates at the end, too
    other["arguments"]["train_file"] = "u.csv"
    assert list(changed_arguments(first, other)) == ["learning_rate", "train_file"]
    for record in (first, other):
        record["arguments"] |= {"dataset_name": "d", "train_file": "t.csv"}
    assert list(changed_arguments(first, other)) == ["learning_rate", "rows of train_split"]


def test_each_earlier_part_is_described_relative_to_the_resumed_run():
    first = record_of("a", learning_rate=0.1, max_steps=5, seed=0)
    second = record_of("b", learning_rate=0.2, max_steps=5, seed=0)
    second["earlier_parts"] = earlier_parts(first, second, 10)
    same = record_of("b", learning_rate=0.2, max_steps=5, seed=0)
    assert earlier_parts(second, same, 15) == second["earlier_parts"]
    third = record_of("c", learning_rate=0.1, max_steps=9, seed=0)
    third["earlier_parts"] = earlier_parts(second, third, 20)
    steps = {"old": 5, "new": 9}
    rates = {"old": 0.2, "new": 0.1}
    assert third["earlier_parts"] == [
        {"command": "a", "first_step": 1, "last_step": 10, "changed_arguments": {"max_steps": steps}},
        {
            "command": "b",
            "first_step": 11,
            "last_step": 20,
            "changed_arguments": {"learning_rate": rates, "max_steps": steps},
        },
    ]
    assert describe_parts(third) == [
        "Steps 1-10 ran with other max_steps.",
        "Steps 11-20 ran with other learning_rate, max_steps.",
    ]
    assert describe_parts(first) == [] and earlier_parts(first, first, 10) == []


def test_a_run_without_a_checkpoint_in_its_own_folder_starts_from_the_beginning(tmp_path):
    begin_run(tmp_path, RECORD, starts_over=True)
    write_checkpoint(tmp_path / "checkpoint-1", complete=False)
    assert find(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "resume_from", "message"),
    [
        ({"notes.txt": ""}, None, "is not empty, but has neither a complete checkpoint nor a run.json"),
        ({"run.json": '{"arguments": {"learning_rate": 0.5}, "data": {}}'}, None, "differs in learning_rate"),
        ({"run.json": '{"arguments": {"learning_rate": 0.1}, "data": {"training": "a"}}'}, None, "rows of train_file"),
        ({"run.json": json.dumps(RECORD)}, "True", "has no complete checkpoint"),
        ({}, "True", "has no complete checkpoint"),
        ({}, "checkpoint-7", "'checkpoint-7' is not a complete checkpoint"),
    ],
)
def test_folders_that_a_run_cannot_use_are_errors(tmp_path, files, resume_from, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        find(tmp_path, resume_from=resume_from)


def test_a_file_is_not_an_output_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        find(tmp_path / "out")


def test_starting_over_removes_checkpoints_of_earlier_runs(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-500")
    (tmp_path / "checkpoint-notes").mkdir()
    begin_run(tmp_path, RECORD, starts_over=False)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-500"
    begin_run(tmp_path, RECORD, starts_over=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-notes", "run.json"]


def test_the_record_does_not_contain_the_hub_token():
    record = make_run_record({}, command=["train.py", "--hub_token", "hf_secret", "--seed", "1"], data={})
    assert record["command"] == "train.py --hub_token <HUB_TOKEN> --seed 1"
    assert "hf_secret" not in make_run_record({}, command=["train.py", "--hub_token=hf_secret"], data={})["command"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def exact(clips, tmp_path_factory) -> list[str]:
    """Flags of a run with dropout that logs between its checkpoints."""
    folder = tmp_path_factory.mktemp("exact")
    configs = tiny_run.config_flags(tiny_run.write_configs(folder, dropout=0.1))
    settings = flags(cache_dir=folder / "cache", num_train_epochs=2, save_steps=2, logging_steps=3)
    return ["--do_train", *tiny_run.data_flags(clips), *configs, *settings]


@pytest.fixture(scope="module")
def straight(exact, tmp_path_factory) -> Callable[..., Path]:
    """Function that returns the folder of an uninterrupted run with further flags; equal flags run once."""
    folders = {}

    def train(**values) -> Path:
        key = json.dumps(values)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("straight") / "out"
            run(*exact, *flags(output_dir=folders[key], **values))
        return folders[key]

    return train


# 7 rows, 2 per batch: 4 steps per epoch, the last with one row. Checkpoint 2 is within the first epoch, 4 at its end.
BATCHES = {"per_device_train_batch_size": 2}
PARTS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("steps", "workers", "values"),
    [
        (3, (0, 2), BATCHES),
        (5, (1, 1), BATCHES),
        pytest.param(5, (0, 1), BATCHES, marks=pytest.mark.slow),
        (8, (1, 0), BATCHES),
        (5, (0, 0), PARTS),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    exact, straight, tmp_path, interrupted_after, steps, workers, values
):
    expected = straight(**values)
    command = [*exact, *flags(output_dir=tmp_path, **values)]
    interrupted_after(steps)
    with pytest.raises(KeyboardInterrupt):
        run(*command, *flags(dataloader_num_workers=workers[0]))
    assert newest_checkpoint(tmp_path).name == f"checkpoint-{steps - 1 if steps < 8 else 6}"
    interrupted_after(None)
    run(*command, *flags(dataloader_num_workers=workers[1]))
    assert_same(weights(expected), weights(tmp_path))
    assert [log["step"] for log in logs(tmp_path)] == [3, 6, 8]
    assert len(logs(tmp_path)[0]) == 15 and logs(tmp_path) == logs(expected)


def test_a_run_killed_after_its_last_checkpoint_equals_an_uninterrupted_one(exact, straight, tmp_path):
    expected = straight(**BATCHES)
    shutil.copytree(expected, tmp_path / "out")
    for name in ("model.safetensors", "trainer_state.json"):
        (tmp_path / "out" / name).unlink()
    run(*exact, *flags(output_dir=tmp_path / "out", **BATCHES))
    assert_same(weights(expected), weights(tmp_path / "out"))
    assert logs(tmp_path / "out") == logs(expected)


def test_resume_from_checkpoint_names_the_checkpoint(start, tmp_path):
    common = [*start, "--do_train", *flags(max_steps=4)]
    run(*common, *flags(output_dir=tmp_path / "straight", save_steps=2))
    checkpoint = tmp_path / "straight/checkpoint-2"
    run(*common, *flags(output_dir=tmp_path / "other", resume_from_checkpoint=checkpoint))
    assert_same(weights(tmp_path / "straight"), weights(tmp_path / "other"))


def test_a_finished_run_is_not_trained_again_unless_it_starts_over(start, tmp_path):
    common = [*start, "--do_train", *flags(max_steps=2, save_steps=1, output_dir=tmp_path / "out")]
    run(*common)
    before = weights(tmp_path / "out")
    run(*common)
    assert_same(before, weights(tmp_path / "out"))
    run(*common, "--overwrite_output_dir", *flags(max_steps=1, seed=7))
    assert newest_checkpoint(tmp_path / "out").name == "checkpoint-1"
    assert not torch.equal(before["multimodal.logit_scale"], weights(tmp_path / "out")["multimodal.logit_scale"])


@pytest.fixture
def command_lines(start, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Function that runs a command in one folder and returns what its trainer said."""

    def command(*tokens: str) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr("sys.argv", ["train.py", *tokens])
        monkeypatch.setattr(
            sys.modules["__main__"], "__file__", "train.py", raising=False
        )  # a worker of xdist has none
        for place in ("trainer", "summary"):
            monkeypatch.setattr(f"simple_multimodal.training.{place}.logger.warning", said.append)
        run(*start, *flags(output_dir=tmp_path / "out", task="retrieval"), *tokens)
        return said

    return command


def test_files_of_a_run_say_which_steps_ran_with_other_arguments(command_lines, tmp_path, capsys):
    """Also when the finished run is started again, and when its folder is only evaluated."""
    said: list[str] = []
    comparison = logging.getLogger("transformers.trainer_utils")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    comparison.addHandler(handler)
    out, record_file = tmp_path / "out", tmp_path / "out/run.json"
    command_lines("--do_train", *flags(max_steps=2, logging_steps=2))
    assert "earlier_parts" not in json.loads(record_file.read_text())
    changed = ["--do_train", "--do_eval", *flags(max_steps=4, logging_steps=1)]
    assert command_lines(*changed)[0] == (
        f"Resuming from {out}/checkpoint-2, which was started with other max_steps; this run continues with the new "
        "values, so it may not equal an uninterrupted one."
    )
    comparison.removeHandler(handler)
    assert said == [] and not comparison.disabled
    assert "Training: 4 steps, 2 of them now (epoch 1)" in capsys.readouterr().out
    assert [log["step"] for log in logs(out) if "loss" in log] == [2, 3, 4]
    before = record_file.read_text()
    assert json.loads(before)["earlier_parts"] == [
        {
            "command": "train.py --do_train --max_steps 2 --logging_steps 2",
            "first_step": 1,
            "last_step": 2,
            "changed_arguments": {"max_steps": {"old": 2, "new": 4}},
        }
    ]

    def page() -> str:
        return (out / "report.html").read_text()

    note, trained = "Steps 1-2 ran with other max_steps.", "<pre>python train.py --do_train --do_eval --max_steps 4"
    for text in (page(), (out / "README.md").read_text().replace("\\_", "_")):
        assert note in text and "The evaluation ran later" not in text
    again = [*changed, *flags(per_device_train_batch_size=8)]
    assert command_lines(*again) == [
        "Already trained (4 of 4 steps; with other per_device_train_batch_size); to train on, increase --max_steps or "
        "--num_train_epochs; to start over, pass --overwrite_output_dir."
    ]
    assert record_file.read_text() == before
    assert note in page() and trained in page() and page().count("<p>The evaluation ran later: python train.py") == 1
    command_lines("--do_eval", *flags(model_name_or_path=out))
    assert record_file.read_text() == before
    assert note in page() and trained in page() and "<p>The evaluation ran later: python train.py --do_eval" in page()
    assert "No losses were logged" not in page()


def test_a_finished_run_that_is_started_again_shows_no_bar(command_lines, monkeypatch):
    training = ["--do_train", *flags(max_steps=2, disable_tqdm=False)]
    terminals = [Stream(True), Stream(True)]
    for terminal in terminals:
        monkeypatch.setattr(sys, "stderr", terminal)
        command_lines(*training)
    assert "2/2" in terminals[0].getvalue() and "/2" not in terminals[1].getvalue()


def test_a_run_that_stopped_early_says_so_when_it_is_started_again(command_lines):
    selection = flags(metric_for_best_model="loss", greater_is_better=True, eval_strategy="steps", eval_steps=1)
    patience = flags(early_stopping_patience=1, save_strategy="steps", save_steps=1, save_total_limit=9)
    training = ["--do_train", *flags(max_steps=9, learning_rate=1e-3), *selection, *patience]
    command_lines(*training)
    (line,) = command_lines(*training)
    assert "of 9 steps, then stopped early); to train on" in line


def test_early_stopping_can_be_added_to_a_resumed_run(command_lines):
    training = ["--do_train", *flags(max_steps=1, metric_for_best_model="loss", eval_strategy="steps", eval_steps=1)]
    command_lines(*training)
    assert command_lines(*training, *flags(max_steps=2, early_stopping_patience=5))[0].startswith("Resuming from")
