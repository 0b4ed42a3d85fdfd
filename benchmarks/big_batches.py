"""Benefit of large contrastive batches at the same cost: batch 32 against 512 in chunks of 32, for the same minutes.

python benchmarks/big_batches.py TOY_WORLD [--minutes 8] [--seeds 0 1 2] [--learning_rates 2e-3] [--small 32]
    [--large 512] [--work FOLDER]

`simple-multimodal toy TOY_WORLD` makes the world. A step takes about the same memory with both batches. A step of each
is timed first; then each trains, with `train.py --config configs/runs/toy.yaml`, for as many steps as the minutes
allow, so that the schedule ends when the time does. Retrieval is over the held-out clips. The best learning rate
depends on the batch size: with several, each batch uses the one that is best with the first seed. Finished runs stay
in the work folder; the same command continues.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

REPOSITORY = Path(__file__).resolve().parents[1]
METRICS = ("text_to_video_R@1", "text_to_video_R@5", "text_to_video_mean_rank", "audio_pair_accuracy")
TIMED_STEPS = 3


def train(folder: Path, world: Path, *tokens: str, **values: object) -> dict[str, float]:
    """Return the metrics of a run of `train.py`, from its files if it is finished."""
    results = folder / "metrics_of_run.json"
    if not results.exists():
        flags = [token for name, value in values.items() for token in (f"--{name}", str(value))]
        command = [
            sys.executable,
            "train.py",
            "--config",
            "configs/runs/toy.yaml",
            "--data_root",
            str(world.resolve()),
        ]
        command += ["--output_dir", str(folder.resolve()), "--save_strategy", "no", "--overwrite_output_dir", "True"]
        # Training may use all cores, unlike the code that `common` times.
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        subprocess.run([*command, *tokens, *flags], cwd=REPOSITORY, env=environment, check=True)
        metrics = json.loads((folder / "all_results.json").read_text())
        results.write_text(json.dumps({name.removeprefix("eval_"): value for name, value in metrics.items()}))
    return json.loads(results.read_text())


def seconds_per_step(work: Path, world: Path, arm: str, sizes: dict[str, int]) -> float:
    """Return the seconds of a step alone, without the work that a run does once."""
    runtimes = []
    for steps in (1, 1 + TIMED_STEPS):
        folder = work / f"{arm}, {steps} steps".replace(" ", "_")
        found = train(folder, world, "--do_train", max_steps=steps, logging_strategy="no", **sizes)
        runtimes.append(found["train_runtime"])
    return (runtimes[1] - runtimes[0]) / TIMED_STEPS


def train_arm(options: argparse.Namespace, arm: str, steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Train with every learning rate and the first seed, then with the best rate and the other seeds."""
    first, *others = options.seeds

    def run(rate: str, seed: int) -> dict[str, float]:
        folder = options.work / f"{arm}, {steps} steps at {rate}, seed {seed}".replace(" ", "_")
        found = train(folder, options.world, max_steps=steps, seed=seed, learning_rate=rate, logging_steps=1, **sizes)
        found = {name: found[name] for name in (*METRICS, "train_runtime")}
        print(f"  rate {rate}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
        return found

    tried = {rate: run(rate, first) for rate in options.learning_rates}
    best = min(tried, key=lambda rate: tried[rate]["text_to_video_mean_rank"])
    runs = {first: tried[best], **{seed: run(best, seed) for seed in others}}
    return {"tried": tried, "learning_rate": best, "seeds": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rates", nargs="+", default=["2e-3"])
    parser.add_argument("--small", type=int, default=32, help="small batch size, and chunk size of the large one")
    parser.add_argument("--large", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path("outputs/big_batches"))
    options = parser.parse_args()
    small, large = options.small, options.large
    arms = {
        f"batch {small}": {"per_device_train_batch_size": small},
        f"batch {large} in chunks": {"per_device_train_batch_size": large, "contrastive_chunk_size": small},
    }
    seconds_of = {arm: seconds_per_step(options.work, options.world, arm, sizes) for arm, sizes in arms.items()}
    results: dict[str, dict] = {}
    for arm, sizes in arms.items():
        steps = max(1, round(options.minutes * 60 / seconds_of[arm]))
        print(f"{arm}: {seconds_of[arm]:.2f} s per step, {steps} steps in {options.minutes:g} minutes", flush=True)
        results[arm] = {"seconds_per_step": seconds_of[arm], "steps": steps, **train_arm(options, arm, steps, sizes)}
    common.save("big_batches", {"minutes": options.minutes, "runs": results})


if __name__ == "__main__":
    main()
