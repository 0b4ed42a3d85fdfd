"""SIGTERM and Ctrl-C to one process or one of two, a killed process, steps with NaN gradients, and two runs in one
folder.
"""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed import TCPStore
from transformers.trainer_callback import TrainerControl, TrainerState

from simple_multimodal.training import run_control
from simple_multimodal.training.checkpoints import list_checkpoints, problem_of
from simple_multimodal.training.rendezvous import leave_store_of_launcher
from simple_multimodal.training.run_control import (
    EXIT_REQUEUE,
    EarlyStopping,
    HostCopy,
    RunControl,
)
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.faults.loaders import own
from tests.faults.runs import (
    FORK,
    AtStep,
    InEvaluation,
    commands,
    finish,
    finish_elastic,
    finish_together,
    logs,
    outcome,
    send,
    start,
    with_callback,
    with_nan_gradients,
)
from tests.training.tiny_run import flags, write_clips


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("faults")
    write_clips(folder / "clips")
    return [*commands(folder), *flags(max_steps=6, save_steps=100, logging_steps=4)]


def terminated(*, at_step: int, times: int = 1, by: str = "TERM", in_evaluation: bool = False):
    """Send SIGTERM to this process and its loader processes from outside, like a scheduler, or SIGINT, like a
    terminal: after a step, or in the evaluation that follows.
    """

    def action():
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        for _ in range(times):
            subprocess.run(["kill", f"-{by}", *(str(process.pid) for process in processes)])

    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes may ignore it
        with_callback((InEvaluation if in_evaluation else AtStep)(at_step, action))()

    return prepare


# 4 steps per epoch: a signal in step 2 ends the run after step 3, within an epoch, and one in step 3 at its end.
@pytest.mark.parametrize(
    ("step", "loading"),
    [
        pytest.param(2, {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}, id="fork"),
        pytest.param(
            2,
            {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "forkserver"},
            id="forkserver",
            marks=pytest.mark.slow,
        ),
        pytest.param(3, {"dataloader_num_workers": 0}, id="main process"),
    ],
)
def test_sigterm_ends_a_run_with_a_checkpoint_that_resumes_exactly(command, tmp_path, capfd, step, loading):
    argv = [*command, *flags(logging_strategy="epoch" if step == 3 else "steps")]
    assert finish([*argv, *flags(output_dir=tmp_path / "straight")], tmp_path / "log") == 0
    argv += flags(output_dir=tmp_path / "out", **loading)
    assert finish(argv, tmp_path / "log", prepare=terminated(at_step=step, times=2)) == EXIT_REQUEUE == 75
    assert (
        capfd.readouterr().err.count("SIGTERM: the run ends after the step that is running, with a checkpoint.") == 1
    )
    assert list(list_checkpoints(tmp_path / "out")) == [step + 1]
    assert problem_of(tmp_path / f"out/checkpoint-{step + 1}") is None
    assert not (tmp_path / "out/model.safetensors").exists()
    assert finish(argv, tmp_path / "log") == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "straight")


@pytest.mark.parametrize(("step", "workers"), [(2, 1), (3, 0)])
def test_ctrl_c_ends_a_run_like_sigterm(command, tmp_path, capfd, step, workers):
    """Under a launcher the signal comes twice, since the launcher passes it on."""
    argv = [*command, *flags(output_dir=tmp_path / "out", dataloader_num_workers=workers)]
    assert finish(argv, tmp_path / "log", prepare=terminated(at_step=step, times=2, by="INT")) == EXIT_REQUEUE
    assert list(list_checkpoints(tmp_path / "out")) == [step + 1]
    log = (tmp_path / "log").read_text()
    assert capfd.readouterr().err.count("Ctrl-C: the run ends after the step that is running, with a checkpoint;") == 1
    assert (
        log.count(f"Stopped by Ctrl-C after step {step + 1}; run the same command to resume from the checkpoint") == 1
    )
    assert "Traceback" not in log
    assert finish(argv, tmp_path / "log") == 0
    assert f"Resuming from {tmp_path}/out/checkpoint-{step + 1}." in (tmp_path / "log").read_text()


@pytest.mark.parametrize("by", ["TERM", "INT"])
def test_a_signal_during_an_evaluation_does_not_end_its_loader_processes(command, tmp_path, by):
    """It ends the run after the next step, with a checkpoint."""
    evaluates = flags("--do_eval", eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2)
    argv = [*command, *evaluates, *flags(output_dir=tmp_path / "out", dataloader_num_workers=1)]
    prepare = terminated(at_step=2, by=by, in_evaluation=True)
    assert finish(argv, tmp_path / "log", prepare=prepare) == EXIT_REQUEUE, (tmp_path / "log").read_text()
    assert list(list_checkpoints(tmp_path / "out")) == [3]
    assert [log["step"] for log in logs(tmp_path / "out/checkpoint-3") if "eval_loss" in log] == [2]


def test_a_second_ctrl_c_ends_a_run_at_once(command, tmp_path, monkeypatch):
    monkeypatch.setattr(run_control, "PATIENCE_SECONDS", -1.0)
    argv = [*command, *flags(output_dir=tmp_path / "out")]
    assert finish(argv, tmp_path / "log", prepare=terminated(at_step=2, times=2, by="INT")) == 130
    log = (tmp_path / "log").read_text()
    assert log.endswith("train.py: interrupted; run the same command to resume from the newest checkpoint, if any.\n")
    assert "Traceback" not in log and not list_checkpoints(tmp_path / "out")


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(command, tmp_path):
    out = tmp_path / "out"
    straight = [*command, *flags(output_dir=tmp_path / "straight", save_steps=2)]
    assert finish(straight, tmp_path / "log") == 0
    argv = [*command, *flags(output_dir=out, save_steps=2)]
    reached, ends = FORK.Event(), FORK.SimpleQueue()

    def wait():
        reached.set()
        ends.get()  # nothing ever comes

    first = start(argv, tmp_path / "first.log", prepare=with_callback(AtStep(4, wait)))
    reached.wait()
    others = [*argv, "--overwrite_output_dir"], [*argv, *flags(max_steps=8)], argv
    for number, other in enumerate(others):
        assert finish(other, tmp_path / f"second{number}.log") == 1
        (line,) = (tmp_path / f"second{number}.log").read_text().splitlines()
        assert line.startswith(f"train.py: error: {out} is being written by train.py (process {first.pid} on")
    both = finish_together(argv, tmp_path, prepare={})  # the first process checks
    assert both == [1, 1] and f"{first.pid} on" in (tmp_path / "rank-1.log").read_text()
    assert list_checkpoints(out) and problem_of(out / "checkpoint-2") is None
    first.kill()
    first.join()
    assert finish(argv, tmp_path / "log") == 0
    assert outcome(out) == outcome(tmp_path / "straight")
    assert not (out / ".lock").exists()


def recording_rows(file: Path):
    """Record the rows of each step."""

    def patch():
        original = MultimodalTrainer.compute_loss

        def compute_loss(self, model, inputs, **kwargs):
            with open(file, "a") as out:
                print(json.dumps(inputs["row_ids"].tolist()), file=out)
            return original(self, model, inputs, **kwargs)

        MultimodalTrainer.compute_loss = compute_loss

    return patch


def rows(file: Path) -> list[list[int]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_sigterm_to_one_of_two_processes_stops_both(command, tmp_path):
    """After SIGTERM to one of two, both stop after one step and resume exactly; one process can resume for both."""
    argv = [*command, *flags(per_device_train_batch_size=1, save_steps=2)]
    straight = [*argv, *flags(output_dir=tmp_path / "straight")]
    records = {rank: recording_rows(tmp_path / f"rows-{rank}") for rank in range(2)}
    assert finish_together(straight, tmp_path, prepare=records) == [0, 0]

    out = tmp_path / "out"
    argv_out = [*argv, *flags(output_dir=out)]
    assert finish_together(argv_out, tmp_path, prepare={1: terminated(at_step=2)}) == [EXIT_REQUEUE] * 2
    assert sorted(list_checkpoints(out)) == [2, 3]
    names = {path.name for path in (out / "checkpoint-3").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "running_0.pth", "running_1.pth"} < names
    assert finish_together(argv_out, tmp_path, prepare={}) == [0, 0]
    assert outcome(out) == outcome(tmp_path / "straight")

    one = [*command, *flags(output_dir=tmp_path / "one", resume_from_checkpoint=out / "checkpoint-3")]
    assert finish(one, tmp_path / "log", prepare=recording_rows(tmp_path / "rows")) == 0
    both = [
        first + second for first, second in zip(*(rows(tmp_path / f"rows-{rank}") for rank in range(2)), strict=True)
    ]
    # The seventh row of an epoch is a batch of one; two processes complete it with the epoch's first row.
    assert [batch[: len(alone)] for batch, alone in zip(both[3:], rows(tmp_path / "rows"), strict=True)] == rows(
        tmp_path / "rows"
    )
    assert [log["step"] for log in outcome(tmp_path / "one")[1]] == [4, 6]


def wait_for(file: Path, process: BaseProcess) -> str:
    """Return the content of a file as soon as it exists; a process of this one writes it."""
    while not file.exists():
        assert process.is_alive()
        time.sleep(0.01)
    return file.read_text()


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def loading(request, tmp_path) -> tuple[BaseProcess, psutil.Process]:
    """An owner, which has no forkserver of other tests, and its loader process."""
    owner = multiprocessing.get_context("spawn").Process(target=own, args=(request.param, tmp_path))
    owner.start()
    return owner, psutil.Process(int(wait_for(tmp_path / "pid", owner)))


def test_a_loader_process_obeys_no_sigterm_but_that_of_its_owner(loading, tmp_path):
    """Nor does a forkserver that started it, which torch would take for the end of the owner."""
    owner, loader = loading
    started_by = loader.parent()
    for process in {loader, started_by} - {psutil.Process(owner.pid)}:
        process.send_signal(signal.SIGTERM)
    with pytest.raises(psutil.TimeoutExpired):
        loader.wait(0.3)
    assert started_by.is_running() and started_by.status() != psutil.STATUS_ZOMBIE and (tmp_path / "7").exists()
    (tmp_path / "end").touch()
    owner.join()
    assert (tmp_path / "code").read_text() == "0"


def test_a_loader_process_ends_with_its_owner(loading):
    owner, loader = loading
    with pytest.raises(psutil.TimeoutExpired):
        loader.wait(0.3)  # the thread that started it has ended
    owner.kill()
    owner.join()
    loader.wait(2)  # torch would allow it 5 seconds, and the child of a forkserver any time


def test_restarted_processes_meet_in_a_store_without_earlier_addresses():
    launcher = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher.set("address", "of a process that died")
    found = FORK.SimpleQueue()

    def work(rank: int, restart: str):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launcher.port), "RANK": str(rank)}
        os.environ |= {"TORCHELASTIC_RESTART_COUNT": restart, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        leave_store_of_launcher(60)
        store = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
        found.put((restart, store.check(["address"])))
        store.set(f"{restart}, {rank}", "was here")
        store.wait([f"{restart}, 0", f"{restart}, 1"])

    for restart in "012":
        processes = [FORK.Process(target=work, args=(rank, restart)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    assert [found.get() for _ in range(6)] == [("0", True)] * 2 + [("1", False)] * 2 + [("2", False)] * 2


def test_all_ranks_are_restarted_if_one_is_killed(command, tmp_path):
    """Torchrun's agent restarts them; the first process is late, so the second looks for its address too early."""

    def prepare():
        place = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
        if place == ("1", "0"):
            with_callback(AtStep(3, functools.partial(send, signal.SIGKILL)))()
        elif place == ("0", "1"):
            time.sleep(2)

    argv = [*command, *flags(per_device_train_batch_size=1, max_steps=4, save_steps=2)]
    assert finish_together([*argv, *flags(output_dir=tmp_path / "straight")], tmp_path, prepare={}) == [0, 0]
    out = flags(output_dir=tmp_path / "out", dataloader_num_workers=1, ddp_timeout=60)
    assert finish_elastic([*argv, *out], tmp_path / "log", prepare) == 0, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "out") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("settings", [{}, {"optim": "adamw_torch"}, {"fp16": True}], ids=["fused", "plain", "fp16"])
def test_a_nan_step_changes_nothing_and_is_counted(command, tmp_path, settings):
    argv = [*command, *flags(output_dir=tmp_path / "out", max_steps=3, save_steps=1, logging_steps=1, **settings)]
    assert finish(argv, tmp_path / "log", prepare=with_nan_gradients(2)) == 0
    before, after = (torch.load(tmp_path / f"out/checkpoint-{step}/optimizer.pt")["state"] for step in (1, 2))
    for number, state in before.items():
        assert all(torch.equal(value, after[number][name]) for name, value in state.items())
    weights = [(tmp_path / f"out/checkpoint-{step}/model.safetensors").read_bytes() for step in (1, 2, 3)]
    assert weights[0] == weights[1] != weights[2]
    first, second, third = [log for log in outcome(tmp_path / "out")[1] if "loss" in log]
    assert "nan_steps" not in first and second["nan_steps"] == third["nan_steps"] == 1
    assert second["loss"] != second["loss"] and third["loss"] == third["loss"]  # NaN only in its own log


def test_too_many_nan_steps_in_a_row_end_the_run(command, tmp_path):
    argv = [*command, *flags(output_dir=tmp_path / "out", max_nan_steps=2)]
    assert finish(argv, tmp_path / "log", prepare=with_nan_gradients(1, 3, 4)) == 1
    log = (tmp_path / "log").read_text()
    assert "was NaN or infinite in 2 consecutive steps, up to step 4. These steps did not change the weights" in log


def test_a_fused_nan_step_is_skipped_on_the_device():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    control = RunControl(2)
    for is_nan in (False, True, True, False):
        before = parameter.detach().clone()
        parameter.grad = torch.full((3,), float("nan") if is_nan else 1.0)
        control.skip_unless_finite(parameter.grad.norm(), optimizer, is_scaled=False)
        optimizer.step()
        assert torch.equal(parameter, before) == is_nan
        control.watch(torch.zeros(1))
        assert control.status.read()[1] == control.nan_steps[1] == (control.nan_steps[0] if is_nan else 0)
    assert control.nan_steps.tolist() == [2, 0]
    assert optimizer.state[parameter]["step"] == 2


def test_a_host_copy_keeps_the_original_values():
    values = torch.tensor([1.0, 2.0])
    assert HostCopy(values.clone()).read() == [1.0, 2.0]


def test_early_stopping_resumes_its_count_and_stays_stopped():
    for counted, stops in ((1, False), (2, True)):
        saved = EarlyStopping(2)
        saved.early_stopping_patience_counter = counted
        state = TrainerState(stateful_callbacks=[saved])
        args = type("Arguments", (), {"load_best_model_at_end": True, "metric_for_best_model": "x"})()
        args.eval_strategy = "steps"
        fresh, control = EarlyStopping(2), TrainerControl()
        fresh.on_train_begin(args, state, control)
        assert fresh.early_stopping_patience_counter == counted and control.should_training_stop == stops
