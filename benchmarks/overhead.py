"""Cost of reliability in a healthy run: `MultimodalTrainer` and the stock `Trainer`, taking turns in one process.

python benchmarks/overhead.py [--rounds 20] [--folder FOLDER]

Both trainers get the same model, rows in the same order, collator and arguments. The stock one is an unchanged
`transformers.Trainer`: its loader calls the collator directly, without the protection against bad files. So the ratios
include all of ours: reading in a process that may die, counts over processes, checking every gradient, SIGTERM, the
list of bad files.

1. CPU seconds of a step, of all processes together, with 0 and 1 loader processes. Target: a ratio of at most 1.01.
2. Seconds for which training pauses when a checkpoint of over 300 MB is saved. Target: at most 1.3.
3. Samples per CPU second with 1 % of the files cut in half, relative to none. Target: at least 0.98.

Ratios are medians over pairs of consecutive runs (2: ratios of medians), with 95 % bootstrap intervals over pairs.
"""

import argparse
import contextlib
import gc
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil
from transformers import Trainer, TrainerCallback, set_seed
from transformers.utils import logging

from simple_multimodal import assembly
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_median
from simple_multimodal.models.fusion.crossformer import load_fusion_config
from simple_multimodal.models.loading import load_tower_config
from simple_multimodal.prepare.toy.media import write_clip
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.tasks.retrieval.task import PreTraining, RetrievalOptions
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NUM_ROWS, BATCH = 400, 8
BAD_ROWS = (107, 203, 305, 391)
WARM_STEPS, STEPS = 5, 20  # per block: before the clock starts, and while it runs
NUM_SAVES = 2  # per block, with steps between them
MIN_MEGABYTES = 300


# ---- What is trained ----
def write_rows(folder: Path) -> Path:
    """Write identical clips of half a second in 64 x 64 pixels, and a manifest, and return its path."""
    (folder / "video").mkdir(parents=True)
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    write_clip(folder / "clip.mp4", frames, generator.normal(0, 0.1, 8000).astype(np.float32))
    lines = ["id,video,caption"]
    for row in range(NUM_ROWS):
        shutil.copy(folder / "clip.mp4", folder / f"video/{row}.mp4")
        lines.append(f"row{row},{row}.mp4,a short caption of clip number {row}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv"


def make_trainer(trainer_class: type[Trainer], manifest: Path, output: Path, size: str, **settings: Any) -> Trainer:
    """Build a trainer for a pre-training model with all objectives, from the configs of a size, with the same weights
    in every call."""
    args = MultimodalTrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=10,
        train_sampling_strategy="sequential",
        **{"save_strategy": "no", "per_device_train_batch_size": BATCH, **settings},
    )
    set_seed(0)
    names = {"text": "bert_config", "audio": "mae_config", "video": "videomae_config"}
    towers: dict = {m: load_tower_config(f"{CONFIGS / m / name}_{size}.json", m) for m, name in names.items()}
    towers["video"].update({"image_size": 64, "num_frames": 4})
    towers["audio"].update({"image_size": [128, 128]})
    fusion = load_fusion_config(str(CONFIGS / f"crossformer/vit_config_{size}.json"))
    if size == "small":
        for config in (*towers.values(), fusion):
            config.update({"hidden_size": 320, "intermediate_size": 1280})
    dataset = RowDataset.from_manifest(manifest, roots={"video": manifest.parent / "video"})
    processor = assembly.build_processor(towers, captions=dataset.captions)
    config = assembly.build_config(towers, fusion, processor)
    model = MultimodalForPreTraining(config)
    ratios = {"mlm_probability": 0.15, "audio_mask_ratio": 0.7, "video_mask_ratio": 0.7, "vt_match_ratio": 0.5}
    task = PreTraining(RetrievalOptions(**ratios))
    if trainer_class is MultimodalTrainer:
        return trainer_class(model, args, processor=processor, train_dataset=dataset, task=task)
    collator = MultimodalCollator(processor, training=True, targets=task.build_targets(model, processor))
    return trainer_class(model, args, data_collator=collator, train_dataset=dataset, processing_class=processor)


# ---- Measuring ----
def cpu_seconds() -> float:
    """Return the CPU time of this process, of its descendants, and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The clock of another process, see clock_getcpuclockid(3): /proc only counts hundredths of a second.
    living = [time.clock_gettime(~child.pid << 3 | 2) for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(living) + ended.ru_utime + ended.ru_stime


class Span(TrainerCallback):
    """CPU seconds of all processes from the end of a run's `WARM_STEPS`th step to the end of its last one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_STEPS:
            self.begin = cpu_seconds()
        elif state.global_step == state.max_steps:
            self.seconds = cpu_seconds() - self.begin


def run(trainer: Trainer) -> None:
    gc.collect()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # logs
        trainer.train()


def span(trainer: Trainer) -> float:
    """Return the CPU seconds of the measured steps of a run."""
    callback = Span()
    trainer.add_callback(callback)
    run(trainer)
    trainer.remove_callback(callback)
    return callback.seconds


def alternate(trainers: dict[str, Trainer], measure: Callable[[Trainer], Any], rounds: int) -> dict[str, list]:
    """Measure the trainers in turns, A B B A; the first round does not count."""
    found: dict[str, list] = {name: [] for name in trainers}
    for number in range(rounds + 1):
        for name in list(trainers) if number % 2 == 0 else list(trainers)[::-1]:
            found[name].append(measure(trainers[name]))
    return {name: values[1:] for name, values in found.items()}


def ratio(first: list[float], second: list[float], *, of_medians: bool = False) -> dict[str, Any]:
    """Return the first values divided by the second, with a bootstrap interval over the pairs."""
    a, b = np.array(first), np.array(second)

    def of_resamples(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if of_medians:
            return resampled_median(a, counts) / resampled_median(b, counts)
        return resampled_median(a / b, counts)

    numbers = np.arange(len(a))
    value = float(of_resamples(numbers, np.ones((1, len(a)), dtype=np.int64))[0])
    return {"ratio": value, "interval": bootstrap_interval(numbers, of_resamples, num_resamples=10_000)}


def say(title: str, measured: dict[str, Any], detail: str) -> None:
    low, high = measured["interval"]
    print(f"{title}: {measured['ratio']:.4f} (95 %: {low:.4f} to {high:.4f}); {detail}", flush=True)


# ---- The three questions ----
def step_cost(manifest: Path, folder: Path, num_workers: int, rounds: int) -> dict[str, Any]:
    settings = {"max_steps": WARM_STEPS + STEPS, "dataloader_num_workers": num_workers}
    trainers = {
        "ours": make_trainer(MultimodalTrainer, manifest, folder / "ours", "tiny", **settings),
        "stock": make_trainer(Trainer, manifest, folder / "stock", "tiny", **settings),
    }
    seconds = alternate(trainers, span, rounds)
    measured = ratio(seconds["ours"], seconds["stock"])
    ms = {name: 1000 * statistics.median(values) / STEPS for name, values in seconds.items()}
    detail = f"{ms['ours']:.2f} and {ms['stock']:.2f} ms"
    say(f"1. CPU time of a step, {num_workers} loader processes, ours / stock", measured, detail)
    return {**measured, "ms_per_step": ms, "seconds": seconds}


def timed(call: Callable, spans: list[tuple[float, float]]) -> Callable:
    """Wrap a function so that its start and end times are recorded."""

    def wrapped(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spans.append((begin, time.perf_counter()))

    return wrapped


def save_cost(manifest: Path, folder: Path, num_saves: int) -> dict[str, Any]:
    steps = 4  # from one save to the next
    settings = {"max_steps": NUM_SAVES * steps, "save_strategy": "steps", "save_steps": steps, "save_total_limit": 1}
    settings |= {"per_device_train_batch_size": 2, "dataloader_num_workers": 0}
    trainers = {
        "ours": make_trainer(MultimodalTrainer, manifest, folder / "ours", "small", **settings),
        "stock": make_trainer(Trainer, manifest, folder / "stock", "small", **settings),
    }
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", "stock", "waits", "seals")}
    for name, trainer in trainers.items():
        trainer._save_checkpoint = timed(trainer._save_checkpoint, spans[name])
    ours = trainers["ours"]
    ours._finish_checkpoint = timed(ours._finish_checkpoint, spans["waits"])  # type: ignore[attr-defined]
    ours._seal = timed(ours._seal, spans["seals"])  # type: ignore[attr-defined]
    megabytes = []

    def block(trainer: Trainer) -> None:
        run(trainer)
        [checkpoint] = Path(trainer.args.output_dir).glob("checkpoint-*")
        megabytes.append(sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6)
        assert megabytes[-1] > MIN_MEGABYTES, megabytes
        shutil.rmtree(trainer.args.output_dir)
        os.sync()  # so that unwritten data of one trainer does not slow down the other

    rounds = -(-num_saves // NUM_SAVES)
    alternate(trainers, block, rounds)
    blocked = {name: [end - begin for begin, end in spans[name]][NUM_SAVES:] for name in trainers}
    waits = [end - begin for begin, end in spans["waits"]]
    waits = [wait for number, wait in enumerate(waits) if number % (NUM_SAVES + 1) < NUM_SAVES]  # not at the end
    named = [sealed[1] - saved[0] for saved, sealed in zip(spans["ours"], spans["seals"], strict=True)]
    measured = ratio(blocked["ours"], blocked["stock"], of_medians=True)
    medians = {name: statistics.median(values) for name, values in blocked.items()}
    detail = (
        f"{medians['ours']:.2f} and {medians['stock']:.2f} s for {statistics.median(megabytes):.0f} MB; ours is "
        f"renamed after {statistics.median(named[NUM_SAVES:]):.2f} s, of which it blocks the next save for at most "
        f"{max(waits[NUM_SAVES:]):.2f} s"
    )
    say("2. Training pauses for a checkpoint, ours / stock", measured, detail)
    return {
        **measured,
        "megabytes": statistics.median(megabytes),
        "blocked_seconds": blocked,
        "of_which_waiting_for_the_last_one": waits[NUM_SAVES:],
        "named_after_seconds": named[NUM_SAVES:],
    }


def bad_file_cost(manifest: Path, folder: Path, rounds: int) -> dict[str, Any]:
    shutil.copytree(manifest.parent, folder / "data")
    for row in BAD_ROWS:
        path = folder / f"data/video/{row}.mp4"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    settings = {"num_train_epochs": 1, "dataloader_num_workers": 1}
    manifests = {"without": manifest, "with": folder / "data" / manifest.name}
    trainers = {
        name: make_trainer(MultimodalTrainer, path, folder / name, "tiny", **settings)
        for name, path in manifests.items()
    }
    seconds = alternate(trainers, span, rounds)
    assert len((folder / "with/quarantine.jsonl").read_text().splitlines()) == len(BAD_ROWS)
    assert not (folder / "without/quarantine.jsonl").exists()
    measured = ratio(seconds["without"], seconds["with"])
    num_samples = NUM_ROWS - WARM_STEPS * BATCH
    rates = {name: num_samples / statistics.median(values) for name, values in seconds.items()}
    detail = f"{rates['with']:.1f} and {rates['without']:.1f}"
    say("3. Samples per CPU second, 1 % bad files / none", measured, detail)
    return {**measured, "samples_per_cpu_second": rates, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of runs in 1; 2 and 3 take half as many")
    parser.add_argument("--folder", type=Path, help="folder for clips and checkpoints; default: the system's")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    half = max(options.rounds // 2, 2)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = str(folder / "index")
        manifest = write_rows(folder / "data")
        results: dict[str, Any] = {"rounds": options.rounds, "step": {}}
        for num_workers in (0, 1):
            output = folder / f"step {num_workers}"
            results["step"][f"{num_workers} workers"] = step_cost(manifest, output, num_workers, options.rounds)
        results["save"] = save_cost(manifest, folder / "save", num_saves=half)
        results["bad files"] = bad_file_cost(manifest, folder / "bad", half)
    common.save("overhead", results)


if __name__ == "__main__":
    main()
