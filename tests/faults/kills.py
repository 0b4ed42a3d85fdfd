"""Long fault runs: python -m tests.faults.kills {anywhere,saving,rank} [--count N]. Prints a line for each kill, and
the number of runs with the same result as an uninterrupted one; exit code 1 if any differed.
"""

import argparse
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simple_multimodal.training.checkpoints import list_checkpoints, problem_of
from tests.faults.runs import AtStep, commands, finish, kill_at_event, outcome, send, start, with_callback
from tests.training.tiny_run import flags, write_clips

STEPS = 12
SAVE_STEPS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", choices=("anywhere", "saving", "rank"))
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    write_clips(folder / "clips")
    saving = flags(max_steps=STEPS, save_steps=SAVE_STEPS, logging_steps=3, save_total_limit=2)
    kill = {"anywhere": anywhere, "saving": while_saving, "rank": one_rank}[options.where]
    equal = kill([*commands(folder), *saving], folder, options.count)
    print(f"{options.where}: {equal} of {options.count} ended with the weights and losses of an uninterrupted run")
    if equal == options.count:
        shutil.rmtree(folder)
    else:
        print(f"Logs and runs: {folder}")
    return 0 if equal == options.count else 1


def reference(command: list[str], folder: Path):
    started = time.perf_counter()
    code = finish([*command, *flags(output_dir=folder / "straight")], folder / "log")
    assert code == 0, (folder / "log").read_text()
    return outcome(folder / "straight"), time.perf_counter() - started


def anywhere(command: list[str], folder: Path, count: int) -> int:
    """Send SIGKILL at random moments, with 0, 2 and 4 loader processes."""
    expected, seconds = reference(command, folder)
    equal = 0
    for number in range(count):
        out, workers = folder / f"out-{number}", (0, 2, 4)[number % 3]
        argv = [*command, *flags(output_dir=out, dataloader_num_workers=workers)]
        process = start(argv, folder / f"log-{number}")
        process.join(random.uniform(0, 1.2) * seconds)
        process.kill()
        process.join()
        steps = sorted(list_checkpoints(out)) if out.is_dir() else []
        started = time.perf_counter()
        code = finish(argv, folder / f"log-{number}")
        equal += report(number, code, out, expected, f"{workers} workers, checkpoints {steps}", started)
    return equal


def while_saving(command: list[str], folder: Path, count: int) -> int:
    """Send SIGKILL when the run touches its output folder for the n-th time, or just after, during a write by
    torch.
    """
    expected, _ = reference(command, folder)
    equal = 0
    for number in range(count):
        out = folder / f"out-{number}"
        argv = [*command, *flags(output_dir=out)]
        event, delay = random.randrange(5, 400), random.choice((0.0, 0.0, random.uniform(0, 0.02)))
        prepare = functools.partial(kill_at_event, event, out, delay)
        killed = finish(argv, folder / f"log-{number}", prepare=prepare)
        found = list_checkpoints(out)
        complete = [step for step, path in found.items() if problem_of(path) is None]
        assert len(complete) == len(found), "a folder with the name of a checkpoint is incomplete"
        started = time.perf_counter()
        code = finish(argv, folder / f"log-{number}")
        detail = (
            f"{'killed' if killed == -signal.SIGKILL else f'exit code {killed}'} at touch {event}, {sorted(complete)}"
        )
        equal += report(number, code, out, expected, detail, started)
    return equal


def one_rank(command: list[str], folder: Path, count: int) -> int:
    """Send SIGKILL to one of two processes under torchrun, which restarts both."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += ["--max_restarts", "1", "-m", "tests.faults.kills"]
    command = [*command, *flags(per_device_train_batch_size=1)]

    def run(out: Path, step: int) -> int:
        environment = os.environ | {"KILL_AT_STEP": str(step), "ARGV": "\n".join([*command, *flags(output_dir=out)])}
        with open(folder / f"{out.name}.log", "w") as log:
            return subprocess.run(launch, env=environment, stdout=log, stderr=log).returncode

    straight = folder / "straight"
    assert run(straight, 0) == 0, (folder / "straight.log").read_text()
    expected, equal = outcome(straight), 0
    for number in range(count):
        out, step = folder / f"out-{number}", random.randrange(1, STEPS)
        started = time.perf_counter()
        equal += report(number, run(out, step), out, expected, f"killed after step {step}, restarted", started)
    return equal


def work() -> None:
    """Run as a process of torchrun; in the first attempt, the second process kills itself after a step."""
    from tests.training import tiny_run

    step = int(os.environ["KILL_AT_STEP"])
    if step and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        with_callback(AtStep(step, functools.partial(send, signal.SIGKILL)))()
    tiny_run.run(*os.environ["ARGV"].split("\n"))


def report(number: int, code: int, out: Path, expected, detail: str, started: float) -> int:
    is_equal = code == 0 and outcome(out) == expected
    seconds = time.perf_counter() - started
    print(
        f"{number}: {detail}; then exit code {code} after {seconds:.1f} s, {'equal' if is_equal else 'DIFFERS'}",
        flush=True,
    )
    return int(is_equal)


if __name__ == "__main__":
    sys.exit(work() if "ARGV" in os.environ else main())
