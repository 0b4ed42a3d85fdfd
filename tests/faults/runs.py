"""Training runs in separate processes that can be killed, and their results."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.trainer_callback import TrainerCallback

import train
from simple_multimodal.training import checkpoints, trainer
from simple_multimodal.training.checkpoints import STATE_FILE, sha256
from simple_multimodal.training.comparison import TIMES
from simple_multimodal.training.run_control import EXIT_REQUEUE
from tests.training import tiny_run
from tests.training.tiny_run import flags

FORK = multiprocessing.get_context("fork")  # starts in no time, with everything imported


def commands(folder: Path) -> list[str]:
    """Return the flags of a run on clips in a folder, with random frames, masks, and dropout in every tower."""
    configs = tiny_run.write_configs(folder, dropout=0.1)
    data = flags(per_device_train_batch_size=2, cache_dir=folder / "cache")
    return ["--do_train", *tiny_run.data_flags(folder / "clips"), *tiny_run.config_flags(configs), *data]


def logs(folder: Path) -> list[dict[str, float]]:
    """Return what a run logged, without times."""
    history = json.loads((folder / STATE_FILE).read_text())["log_history"]
    return [{name: value for name, value in log.items() if not name.endswith(TIMES)} for log in history]


def outcome(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """Return a hash of a run's final weights, and what it logged."""
    return sha256(folder / "model.safetensors"), logs(folder)


class AtStep(TrainerCallback):
    """Callback that acts after a step."""

    def __init__(self, step: int, action: Callable[[], None]):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


class InEvaluation(AtStep):
    """Callback that acts after the first batch of the evaluation that follows a step."""

    def on_step_end(self, args, state, control, **kwargs):
        pass

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = -1
            self.action()


def with_callback(callback: TrainerCallback) -> Callable[[], None]:
    """Add a callback to all trainers of this process."""

    def patch() -> None:
        original = trainer.MultimodalTrainer.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(callback)

        trainer.MultimodalTrainer.__init__ = init

    return patch


def with_nan_gradients(*steps: int) -> Callable[[], None]:
    """Make the gradient of some steps NaN."""

    def patch() -> None:
        original = trainer.MultimodalTrainer.compute_loss

        def compute_loss(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            return loss * float("nan") if self.state.global_step + 1 in steps else loss

        trainer.MultimodalTrainer.compute_loss = compute_loss

    return patch


def full_disk(*, at_steps: tuple[int, ...], name: str) -> Callable[[], None]:
    """Make writing a part of the checkpoints of some steps fail halfway."""

    def patch() -> None:
        if name == "seal":
            original = checkpoints._sync
        else:
            original = torch.save

        def failing(*args):
            path = str(args[-1])
            if any(f"checkpoint-{step}/" in path for step in at_steps) and (name == "seal" or name in path):
                Path(path).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return original(*args)

        if name == "seal":
            checkpoints._sync = failing
        else:
            torch.save = failing

    return patch


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(
    argv: Sequence[str],
    log: Path,
    *,
    rank: int = 0,
    num_processes: int = 1,
    port: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> multiprocessing.Process:
    """Start `train.py` in a child process, possibly as one of several; its output goes to a file."""

    def work() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # left from earlier runs in this process
        forkserver._forkserver.__init__()  # type: ignore[misc]  # that of the parent cannot start processes for this one
        if num_processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
            os.environ |= {
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
        logging.basicConfig(stream=sys.stderr, force=True)
        if prepare is not None:
            prepare()
        sys.argv = ["train.py", *argv]
        try:
            train.main()
        except SystemExit as end:
            assert end.code != EXIT_REQUEUE or not dist.is_initialized()  # or its threads may abort the process
            raise

    process = FORK.Process(target=work, daemon=False)
    process.start()
    return process


def finish(argv: Sequence[str], log: Path, **settings) -> int:
    """Run `train.py` in a child; return its exit code, or minus the signal that killed it."""
    process = start(argv, log, **settings)
    process.join()
    return process.exitcode


def finish_together(
    argv: Sequence[str],
    folder: Path,
    *,
    prepare: dict[int, Callable[[], None]],
    num_processes: int = 2,
    seconds: float | None = None,
) -> list[int | None]:
    """Return the exit codes of several processes of one run; their output goes to `rank-*.log` in a folder. Processes
    that are still running after `seconds` are killed, and have the exit code `None`.
    """
    port = free_port()
    processes = [
        start(
            argv,
            folder / f"rank-{rank}.log",
            rank=rank,
            num_processes=num_processes,
            port=port,
            prepare=prepare.get(rank),
        )
        for rank in range(num_processes)
    ]
    ends = time.monotonic() + seconds if seconds else None
    for process in processes:
        process.join(ends and max(ends - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def finish_elastic(argv: Sequence[str], log: Path, prepare: Callable[[], None]) -> int:
    """Return the exit code of a run as under `torchrun --nproc_per_node 2 --max_restarts 1`, with forked processes in
    their own session. `prepare` is called in each process, with `RANK` and `TORCHELASTIC_RESTART_COUNT` set.
    """

    def work() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        prepare()
        sys.argv = ["train.py", *argv]
        train.main()

    def launch() -> None:
        os.setsid()
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
        logging.basicConfig(stream=sys.stderr, force=True)
        settings = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": log.stem}
        config = LaunchConfig(1, 1, 2, max_restarts=1, start_method="fork", monitor_interval=0.1, **settings)
        elastic_launch(config, work)()

    process = FORK.Process(target=launch, daemon=False)
    process.start()
    process.join()
    left = [other for other in psutil.process_iter() if _session_of(other.pid) == process.pid]
    left = psutil.wait_procs(left, timeout=30)[1]  # a killed process takes a moment to disappear
    assert not left, f"processes {left} outlived the run"
    return process.exitcode


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:  # it has just ended
        return None


def send(signum: signal.Signals) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), signum)


def kill_at_event(number: int, folder: Path, delay: float = 0.0) -> None:
    """Kill this process when it opens, renames or removes something in a folder for the `number`-th time, or `delay`
    seconds later.
    """
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(folder) in str(args[0]):
            seen += 1
            if seen == number and delay:
                threading.Timer(delay, send, [signal.SIGKILL]).start()
            elif seen == number:
                send(signal.SIGKILL)

    sys.addaudithook(hook)
