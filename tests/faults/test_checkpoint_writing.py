"""A process that is killed while it writes a checkpoint, files that are damaged later, and a full disk."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from simple_multimodal.training import checkpoints
from simple_multimodal.training.checkpoints import (
    STAGING,
    begin_run,
    find_checkpoint,
    newest_checkpoint,
    problem_of,
    publish,
    rotate,
    seal,
)
from simple_multimodal.training.run_record import make_run_record
from tests.faults.runs import FORK, commands, finish, full_disk, kill_at_event, logs, outcome
from tests.training.tiny_run import flags, write_clips

RECORD = make_run_record({"learning_rate": 0.1}, command=["train.py"], data={})


def stage(output: Path, step: int) -> Path:
    """Write the files of a checkpoint to the staging folder, one of them in a subfolder."""
    staged = output / STAGING / f"checkpoint-{step}"
    (staged / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/0", "trainer_state.json"):
        (staged / name).write_text(f"{name} of {step}")
    (staged / "run.json").write_text(json.dumps(RECORD))
    return staged


def save(output: Path, step: int) -> Path:
    final = output / f"checkpoint-{step}"
    seal(stage(output, step), final)
    return final


def find(folder: Path, resume_from: str | None = None) -> Path | None:
    args = SimpleNamespace(output_dir=folder, overwrite_output_dir=False, resume_from_checkpoint=resume_from)
    return find_checkpoint(args, RECORD)


def in_child(work) -> int:
    process = FORK.Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_a_sealed_checkpoint_is_complete_and_leaves_no_staged_files(tmp_path):
    final = save(tmp_path, 5)
    assert problem_of(final) is None and newest_checkpoint(tmp_path) == final
    written = json.loads((final / "checkpoint.json").read_text())["files"]
    assert written["shards/0"]["size"] == len("shards/0 of 5")
    assert sorted(written) == ["model.safetensors", "optimizer.pt", "run.json", "shards/0", "trainer_state.json"]
    assert list((tmp_path / STAGING).iterdir()) == []


@pytest.mark.parametrize("replaces", [False, True])
def test_sealing_and_rotating_may_be_killed_at_any_point(tmp_path, replaces):
    ends = []
    for number in range(1, 60):
        output = tmp_path / str(number)
        save(output, 4)
        if replaces:
            save(output, 5)

        def work(output=output, number=number):
            kill_at_event(number, output)
            seal(stage(output, 5), output / "checkpoint-5")
            rotate(output, 1, keep={output / "checkpoint-5"})

        code = in_child(work)
        found = find(output)
        assert found in (output / "checkpoint-4", output / "checkpoint-5")
        for folder in checkpoints.list_checkpoints(output).values():
            assert problem_of(folder) is None  # every folder with the name of a checkpoint is complete
        begin_run(output, RECORD, starts_over=False)
        assert not (output / STAGING).exists() and found.is_dir()
        ends.append((code, found.name))
        if code == 0:
            break
    assert ends[-1] == (0, "checkpoint-5")
    assert {code for code, _ in ends[:-1]} == {-signal.SIGKILL} and len(ends) > 20
    assert {name for _, name in ends} == {"checkpoint-4", "checkpoint-5"}


def test_publishing_a_model_may_be_killed_at_any_point(tmp_path):
    for number in range(1, 40):
        output = tmp_path / str(number)
        staged = output / STAGING / "model"
        staged.mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (output / name).write_text("old")
            (staged / name).write_text("new")

        def work(output=output, staged=staged, number=number):
            kill_at_event(number, output)
            publish(staged, output)

        code = in_child(work)
        texts = {path.name: path.read_text() for path in output.iterdir() if path.is_file()}
        if "model.safetensors" in texts:  # otherwise the folder cannot be loaded
            assert set(texts.values()) in ({"old"}, {"new"})
        if code == 0:
            break
    assert code == 0 and set(texts.values()) == {"new"} and len(texts) == 3 and number > 8


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "remove", "empty"])
def test_damage_to_any_file_of_the_newest_checkpoint_is_detected(tmp_path, monkeypatch, damage):
    said = []
    monkeypatch.setattr(
        checkpoints.logger, "warning", lambda text: text.startswith("Skipped checkpoints") and said.append(text)
    )
    save(tmp_path, 4)
    names = [
        path.relative_to(newest) for newest in [save(tmp_path, 5)] for path in newest.rglob("*") if path.is_file()
    ]
    assert len(names) == 6
    for name in names:
        path = tmp_path / "checkpoint-5" / name
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
            path.write_bytes(
                {"flip": flipped, "truncate": content[:-3], "extend": content + b"0", "empty": b""}[damage]
            )
        assert find(tmp_path) == tmp_path / "checkpoint-4"
        assert "checkpoint-5 (" in said[-1] and "checkpoint-4 is the newest complete" in said[-1]
        # A flipped bit in the manifest may be one of another file's hash.
        assert name.name in said[-1] or (name.name, damage) == (checkpoints.MANIFEST, "flip")
        path.write_bytes(content)
        assert find(tmp_path) == tmp_path / "checkpoint-5"
    assert len(said) == len(names)


def test_a_named_checkpoint_that_is_damaged_is_refused(tmp_path):
    path = save(tmp_path, 5) / "optimizer.pt"
    path.write_text("optimizer.pt of 6")
    with pytest.raises(ValueError, match="not a complete checkpoint: optimizer.pt is damaged"):
        find(tmp_path, str(path.parent))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, 1, [1, 2, 3, 4]), (2, 3, [3, 4]), (2, 1, [1, 4]), (1, 1, [1, 4]), (3, 4, [2, 3, 4])],
)
def test_a_limit_keeps_the_newest_and_best_checkpoints(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    rotate(tmp_path, limit, keep={tmp_path / "checkpoint-4", tmp_path / f"checkpoint-{best}"})
    assert sorted(checkpoints.list_checkpoints(tmp_path)) == left


def test_a_limit_never_leaves_only_a_damaged_checkpoint(tmp_path):
    for step in (4, 6):
        save(tmp_path, step)
    (tmp_path / "checkpoint-6/optimizer.pt").write_text("")  # skipped: the run resumed from 4, and saves 5
    save(tmp_path, 5)
    rotate(tmp_path, 1, keep={tmp_path / "checkpoint-5"})
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_a_run_json_is_complete_or_missing(tmp_path):
    for number in range(1, 9):
        output = tmp_path / str(number)

        def work(output=output, number=number):
            kill_at_event(number, output)
            begin_run(output, RECORD, starts_over=True)

        code = in_child(work)
        assert find(output) is None  # the folder can be used
        if code == 0:
            break
    assert code == 0 and number > 2


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("faults")
    write_clips(folder / "clips")
    return [*commands(folder), *flags(max_steps=4, save_steps=1, logging_steps=1)]


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "out"
    assert finish([*command, *flags(output_dir=folder)], folder.parent / "log") == 0
    return folder


def test_saved_files_have_the_permissions_of_the_umask(straight):
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.relative_to(straight): path.stat().st_mode & 0o777 for path in straight.rglob("*") if path.is_file()}
    assert {Path("model.safetensors"), Path("checkpoint-4/model.safetensors"), Path("run.json")} < modes.keys()
    assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("name", ["optimizer.pt", "seal"])
def test_a_temporarily_full_disk_costs_only_checkpoints(command, straight, tmp_path, name):
    out = tmp_path / "out"
    argv = [*command, *flags(output_dir=out, save_total_limit=1)]
    assert finish(argv, tmp_path / "log", prepare=full_disk(at_steps=(2, 3), name=name)) == 0
    log = (tmp_path / "log").read_text()
    assert log.count(f"CHECKPOINT 2 COULD NOT BE SAVED in {out}: [Errno 28] No space left on device") == 1
    assert outcome(out) == outcome(straight)
    assert problem_of(out / "checkpoint-4") is None
    assert not {"checkpoint-2", "checkpoint-3", "checkpoint-1", STAGING} & set(os.listdir(out))


def test_a_disk_that_stays_full_ends_the_run_with_an_error(command, straight, tmp_path):
    out = tmp_path / "out"
    argv = [*command, *flags(output_dir=out)]
    assert finish(argv, tmp_path / "log", prepare=full_disk(at_steps=(3, 4), name="scheduler.pt")) == 1
    assert f"The last checkpoint could not be saved in {out}: [Errno 28]" in (tmp_path / "log").read_text()
    assert newest_checkpoint(out) == out / "checkpoint-2" and not (out / "model.safetensors").exists()
    assert finish(argv, tmp_path / "log") == 0
    assert outcome(out) == outcome(straight)


def test_a_damaged_newest_checkpoint_is_trained_again(command, straight, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    (out / "model.safetensors").unlink()
    for step in (3, 4):
        path = out / f"checkpoint-{step}/optimizer.pt"
        path.write_bytes(path.read_bytes()[:-1])
    assert finish([*command, *flags(output_dir=out)], tmp_path / "log") == 0
    assert "Skipped checkpoints" in (tmp_path / "log").read_text()
    assert outcome(out) == outcome(straight) and len(logs(out)) == 5
    assert problem_of(out / "checkpoint-3") is None  # written again in its place
