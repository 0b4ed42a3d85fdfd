"""The faults of docs/reliability.md with the stock `Trainer` of transformers, and with ours.

    python -m tests.faults.stock [--count 10] [--only NAME ...]     # prints a table; takes some minutes

Both train the same model on the same clips with the same arguments through `train.py`. The stock trainer resumes like
the example scripts of transformers: from `get_last_checkpoint`, or from scratch if there is none; no error is caught.
"Equal": the weights and logged losses equal those of an undisturbed run of the same trainer, bit for bit.
"""

import argparse
import functools
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from simple_multimodal.data import collator, randomness, reading
from simple_multimodal.media.pyav_backend import PyAVBackend
from simple_multimodal.training import arguments, checkpoints, trainer
from simple_multimodal.training.checkpoints import list_checkpoints
from tests.faults import bad_files
from tests.faults.runs import (
    AtStep,
    commands,
    finish_elastic,
    finish_together,
    full_disk,
    outcome,
    send,
    start,
    with_callback,
    with_nan_gradients,
)
from tests.training import tiny_run
from tests.training.tiny_run import flags

STEPS, SAVE_STEPS = 8, 2
LIMIT_SECONDS = 90  # a run that takes longer counts as hanging
JIT_STEPS, JIT_STEP_SECONDS = 14, 0.6  # it waits 3 seconds after SIGTERM
Fault = Callable[[], None]


# ---- The stock trainer ----
class StockTrainer(Trainer):
    """The stock trainer, constructed where `train.py` constructs ours; it finds a checkpoint by itself."""

    def __init__(self, model, args, *, processor, train_dataset, task, collator_settings, **_):
        data_collator = collator.MultimodalCollator(
            processor,
            training=True,
            seed=args.seed,
            targets=task.build_targets(model, processor),
            **collator_settings,
        )
        super().__init__(
            model, args, data_collator=data_collator, train_dataset=train_dataset, processing_class=processor
        )

    def train(self, **_):
        folder = self.args.output_dir
        checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        return super().train(resume_from_checkpoint=checkpoint)


def use_stock() -> None:
    """Make `train.py` in this process use the stock trainer, without our code for resuming and restarting."""
    trainer.MultimodalTrainer = StockTrainer
    checkpoints.find_checkpoint = lambda *args, **kwargs: None
    arguments.leave_store_of_launcher = lambda *args: None


def sample_as_usual() -> None:
    """Choose frames, crops and masks one after the other with torch's generator in the reading process."""
    randomness.sample_generator = lambda *args: np.random.default_rng(torch.randint(2**63 - 1, ()).item())
    reading.default_num_threads = lambda: 1


class SlowSteps(TrainerCallback):
    """Callback that makes steps slower by some seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_step_end(self, *_, **kwargs):
        time.sleep(self.seconds)


class Side:
    """Runs with one of the two trainers."""

    def __init__(self, name: str, folder: Path, use: Fault):
        self.folder = folder / name
        self.folder.mkdir()
        self.use = use
        saving = flags(max_steps=STEPS, save_steps=SAVE_STEPS, logging_steps=3, save_total_limit=2)
        self.command = [*commands(folder), *saving, *flags(sample_timeout_seconds=2)]
        self.numbers = itertools.count()
        self.references: dict[tuple, tuple] = {}

    def new_out(self) -> Path:
        return self.folder / str(next(self.numbers))

    def with_faults(self, *faults: Fault) -> Fault:
        def prepare() -> None:
            for each in (self.use, *faults):
                each()

        return prepare

    def run(self, out: Path, *faults: Fault, **settings) -> int | None:
        """Run; return the exit code, or `None` if it hangs."""
        argv = [*self.command, *flags(output_dir=out, **settings)]
        process = start(argv, out.with_suffix(".log"), prepare=self.with_faults(*faults))
        process.join(LIMIT_SECONDS)
        code = process.exitcode
        if code is None:  # its loader processes may hang too
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
            process.join()
        return code

    def run_two(self, out: Path, fault: Fault | None = None, **settings) -> list[int | None]:
        """Run in two processes, with a fault in the second; return the exit codes."""
        settings = {"per_device_train_batch_size": 1, **settings}
        prepare = {0: self.with_faults(), 1: self.with_faults(fault) if fault else self.with_faults()}
        argv = [*self.command, *flags(output_dir=out, **settings)]
        logs = out.with_suffix(".logs")
        logs.mkdir(exist_ok=True)
        return finish_together(argv, logs, prepare=prepare, seconds=LIMIT_SECONDS)

    def undisturbed(self, *faults: Fault, num_processes: int = 1, **settings):
        """Return the outcome of a run without faults, which is run only once."""
        key = (faults, num_processes, *sorted(settings.items()))
        if key not in self.references:
            out = self.new_out()
            if num_processes == 1:
                codes = [self.run(out, *faults, **settings)]
            else:
                codes = self.run_two(out, **settings)
            assert not any(code != 0 for code in codes), f"an undisturbed run ended with {codes}, see {out}"
            self.references[key] = outcome(out)
        return self.references[key]

    def verdict(self, code: int | None, out: Path, expected) -> str:
        """Return how a restarted run ended."""
        if code is None:
            return "hang"
        if code:
            return "do not start"
        weights, logged = outcome(out)
        if weights != expected[0]:
            return "other weights"
        return "equal" if logged == expected[1] else "equal weights, other losses logged"


def tally(verdicts: Iterable[str]) -> str:
    counts = Counter(verdicts)
    return ", ".join(f"{number} of {counts.total()} {verdict}" for verdict, number in counts.most_common())


def kill(step: int, delay: float = 0.0) -> Fault:
    """Make a fault: SIGKILL after a step."""

    def action() -> None:
        time.sleep(delay)
        send(signal.SIGKILL)

    return with_callback(AtStep(step, action))


# ---- The faults ----
def repeated(side: Side, count: int) -> str:
    expected, found = side.undisturbed(dataloader_num_workers=0), {}
    for workers in (0, 2):
        outs = [side.new_out() for _ in range(max(count // 4, 1))]
        codes = [side.run(out, dataloader_num_workers=workers) for out in outs]
        found[workers] = [side.verdict(code, out, expected) for code, out in zip(codes, outs, strict=True)]
    return f"{tally(found[0])}; with 2 loader processes {tally(found[2])}"


def killed(side: Side, count: int, *faults: Fault) -> str:
    verdicts: dict[int, list[str]] = {0: [], 2: []}
    for number in range(max(count, 2)):
        out, workers = side.new_out(), (0, 2)[number % 2]
        expected = side.undisturbed(*faults, dataloader_num_workers=workers)
        side.run(out, *faults, kill(random.randrange(1, STEPS)), dataloader_num_workers=workers)
        code = side.run(out, *faults, dataloader_num_workers=workers)
        verdicts[workers].append(side.verdict(code, out, expected))
    return f"{tally(verdicts[0])}; with 2 loader processes {tally(verdicts[2])}"


def killed_with_usual_sampling(side: Side, count: int) -> str:
    again = side.new_out()
    code = side.run(again, sample_as_usual, dataloader_num_workers=0)
    assert side.verdict(code, again, side.undisturbed(sample_as_usual, dataloader_num_workers=0)) == "equal"
    return killed(side, count, sample_as_usual)


def killed_while_saving(side: Side, count: int) -> str:
    times = side.folder / "times"

    def timing() -> None:
        original = trainer.MultimodalTrainer._save_checkpoint

        def save(self, *args):
            started = time.perf_counter()
            original(self, *args)
            with open(times, "a") as file:
                print(time.perf_counter() - started, file=file)

        trainer.MultimodalTrainer._save_checkpoint = save

    def killing(step: int, delay: float) -> Fault:
        def patch() -> None:
            original = trainer.MultimodalTrainer._save_checkpoint

            def save(self, *args):
                if self.state.global_step == step:
                    threading.Timer(delay, send, [signal.SIGKILL]).start()
                original(self, *args)

            trainer.MultimodalTrainer._save_checkpoint = save

        return patch

    expected = side.undisturbed(timing, dataloader_num_workers=0)
    seconds = float(np.median([float(line) for line in times.read_text().split()]))
    verdicts = []
    for _ in range(count):
        out, step = side.new_out(), random.randrange(SAVE_STEPS, STEPS, SAVE_STEPS)
        side.run(out, killing(step, random.uniform(0, seconds)))
        verdicts.append(side.verdict(side.run(out), out, expected))
    return tally(verdicts)


def damaged(side: Side, count: int) -> str:
    """Truncate each file of the newest checkpoint to half its size, and flip one bit of it."""
    expected, source = side.undisturbed(dataloader_num_workers=0), side.new_out()
    side.run(source, kill(SAVE_STEPS * 2 + 1, delay=1.0))
    newest = max(list_checkpoints(source).items())[1].name
    verdicts: dict[str, str] = {}
    for name in sorted(path.name for path in (source / newest).iterdir()):
        for damage in ("cut", "flip"):
            out = Path(shutil.copytree(source, side.new_out()))
            content = bytearray((out / newest / name).read_bytes())
            if damage == "flip":
                content[random.randrange(len(content) // 4, len(content))] ^= 1 << random.randrange(8)
            (out / newest / name).write_bytes(content[: len(content) // 2] if damage == "cut" else content)
            verdicts[f"{name} {damage}"] = side.verdict(side.run(out), out, expected)
    for verdict in ("other weights", "do not start"):
        print(f"  {verdict}: {', '.join(name for name in verdicts if verdicts[name] == verdict)}")
    return tally(verdicts.values())


def disk_full(side: Side, count: int) -> str:
    expected, codes, verdicts = side.undisturbed(dataloader_num_workers=0), [], []
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        out = side.new_out()
        codes.append(side.run(out, full_disk(at_steps=(SAVE_STEPS * 2,), name=name)))
        again = side.run(out) if codes[-1] else codes[-1]
        verdicts.append(side.verdict(again, out, expected))
    ends = tally("go on" if code == 0 else "end with an error" for code in codes)
    return f"{ends}; then {tally(verdicts)}"


def terminated(side: Side, count: int, *, step_seconds: float = 0.0, **settings) -> str:
    """Send SIGTERM to one of two processes."""
    expected = side.undisturbed(num_processes=2, **settings)
    ends, verdicts = [], []
    for _ in range(max(count // 4, 1)):
        out, step = side.new_out(), random.randrange(1, 4)
        signalled = with_callback(AtStep(step, functools.partial(send, signal.SIGTERM)))

        def fault(signalled=signalled) -> None:
            signalled()
            with_callback(SlowSteps(step_seconds))()

        codes = side.run_two(out, fault, **settings)
        ends.append("/".join("hangs" if code is None else str(code) for code in codes))
        again = side.run_two(out, **settings)
        code = None if None in again else max(map(abs, again))
        verdicts.append(side.verdict(code, out, expected))
    return f"exit codes {tally(ends)}; then {tally(verdicts)}"


def terminated_with_jit(side: Side, count: int) -> str:
    settings = {"enable_jit_checkpoint": True, "max_steps": JIT_STEPS, "save_steps": 100}
    return terminated(side, count, step_seconds=JIT_STEP_SECONDS, **settings)


def rank_killed(side: Side, count: int) -> str:
    expected, verdicts = side.undisturbed(num_processes=2), []
    for _ in range(max(count // 3, 1)):
        out, fault = side.new_out(), kill(random.randrange(SAVE_STEPS + 1, STEPS))

        def prepare(fault=fault) -> None:
            is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
            side.with_faults(*([fault] if is_first and os.environ["RANK"] == "1" else []))()

        argv = [*side.command, *flags(output_dir=out, per_device_train_batch_size=1, ddp_timeout=60)]
        verdicts.append(side.verdict(finish_elastic(argv, out.with_suffix(".log"), prepare), out, expected))
    return tally(verdicts)


def with_bad_files(side: Side, count: int, *, share: float) -> str:
    data = side.folder / f"rows_{share}"
    bad_files.write_rows(data, 100)
    rows = np.random.default_rng(0).permutation(100)[: round(100 * share)]
    num_bad = len(bad_files.spoil(data, rows))
    settings = {"train_file": data / "train.csv", "video_root": data / "video", "audio_root": data / "video"}
    settings |= {"text_root": data, "max_steps": 25, "per_device_train_batch_size": 4, "save_strategy": "no"}
    return tally(ends_of(side, settings, num_bad, workers=(0, 2)))


def with_decoder_that(side: Side, count: int, *, hangs: bool) -> str:
    """Let one file crash or hang its decoder in a loader process."""

    def fault() -> None:
        original = PyAVBackend.frames

        def frames(self, path, *args, **kwargs):
            if Path(path).stem == "1":
                time.sleep(1000) if hangs else send(signal.SIGSEGV)
            return original(self, path, *args, **kwargs)

        PyAVBackend.frames = frames

    return tally(ends_of(side, {}, 1, fault, workers=(1,)))


def ends_of(side: Side, settings: dict, num_bad: int, *faults: Fault, workers: tuple[int, ...]) -> list[str]:
    """Return how runs with bad files end."""
    ends = []
    for number in workers:
        out = side.new_out()
        code = side.run(out, *faults, dataloader_num_workers=number, **settings)
        path = out / "quarantine.jsonl"
        num_listed = len(path.read_text().splitlines()) if path.exists() else 0
        if code == 0:
            ends.append(f"trained to the end, {num_listed} of {num_bad} files listed")
        else:
            ends.append("hangs" if code is None else "ended with an error")
    return ends


def with_nan_step(side: Side, count: int) -> str:
    out = side.new_out()
    code = side.run(out, with_nan_gradients(3))
    weights = load_file(out / "model.safetensors")
    num_nan = sum(bool(tensor.isnan().any()) for tensor in weights.values())
    return f"exit code {code}, {num_nan} of {len(weights)} weight tensors NaN"


# ---- The table ----
class Row(NamedTuple):
    """
    Args:
        title (`str`): Description of the fault.
        fault (`Callable`): Causes the fault about `count` times; returns how the runs ended.
        ours (`str`, *optional*): Entry for our trainer; by default it is run.
    """

    title: str
    fault: Callable[[Side, int], str]
    ours: str | None = None


ROWS = {
    "again": Row("None: run again without loader processes", repeated),
    "kill": Row("SIGKILL after a random step; frames and masks depend only on the sample", killed),
    "draws": Row(
        "The same; frames and masks chosen with torch's generator, as usual",
        killed_with_usual_sampling,
        "not applicable",
    ),
    "saving": Row("SIGKILL while a checkpoint is written", killed_while_saving),
    "damage": Row("Each file of the newest checkpoint truncated to half; with one bit flipped", damaged),
    "disk": Row("A full disk while writing `optimizer.pt`, `scheduler.pt`, `rng_state.pth`", disk_full),
    "sigterm": Row("SIGTERM to one of two processes", terminated),
    "jit": Row("The same with `--enable_jit_checkpoint`", terminated_with_jit, "not needed"),
    "rank": Row("SIGKILL of one of two processes under torchrun's agent, `--max_restarts 1`", rank_killed),
    "bad1": Row("1 % of the files bad", functools.partial(with_bad_files, share=0.01)),
    "bad10": Row("10 % of the files bad", functools.partial(with_bad_files, share=0.1)),
    "crash": Row(
        "A file that crashes its decoder, in a loader process", functools.partial(with_decoder_that, hangs=False)
    ),
    "hang": Row(
        "A file that hangs its decoder, in a loader process", functools.partial(with_decoder_that, hangs=True)
    ),
    "nan": Row("A step whose gradient is NaN", with_nan_step),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stock-"))
    os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = str(folder / "index")
    tiny_run.write_clips(folder / "clips")
    stock, ours = Side("stock", folder, use_stock), Side("ours", folder, lambda: None)
    print("| fault | stock `Trainer` | `MultimodalTrainer` |\n|---|---|---|", flush=True)
    for name in options.only:
        row, found = ROWS[name], {}
        for side in (stock,) if row.ours else (stock, ours):
            random.seed(options.seed)
            found[side] = row.fault(side, options.count)
        print(f"| {row.title} | {found[stock]} | {row.ours or found[ours]} |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
