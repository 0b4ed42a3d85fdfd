"""Cost of the rows alone, by their number: opening, order, resume, checkpoint, memory.

python benchmarks/rows_at_scale.py [--rows 10000 100000 1000000]

The rows are those of a JSONL manifest with an id, a path, a caption, times and a label each, without their media
files. Each number of rows is measured in a separate process.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import psutil
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import BatchSampler

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.tasks.training_clips import TrainingClips

BATCH_SIZE = 32


def write_manifest(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = {
                "id": f"clip{number:09d}",
                "video": f"folder{number % 1000:03d}/clip{number:09d}.mp4",
                "caption": f"a short caption of the clip number {number}",
                "start_seconds": 0.5,
                "end_seconds": 9.5,
                "label": number % 7,
            }
            file.write(json.dumps(row) + "\n")


def measure(num_rows: int) -> dict[str, float]:
    """Return the CPU seconds of each step, and the megabytes by which the process has grown."""
    found: dict[str, float] = {}
    process = psutil.Process()

    def step(name: str, call: Callable[[], Any]) -> Any:
        result, found[f"{name}_seconds"], _ = common.measured(call)
        return result

    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "train.jsonl")
        write_manifest(manifest, num_rows)
        step("first_opening", lambda: RowDataset.from_manifest(manifest, cache_dir=folder))
        before = process.memory_full_info().uss
        dataset = step("opening", lambda: RowDataset.from_manifest(manifest, cache_dir=folder))
        found["opened_megabytes"] = (process.memory_full_info().uss - before) / 1e6
        batches = BatchSampler(EpochSampler(dataset, seed=0), BATCH_SIZE, drop_last=False)
        step("order", lambda: next(iter(batches)))
        last = len(batches) - 1
        step("resume_at_the_last_batch", lambda: list(SkipBatchSampler(batches, skip_batches=last)))
        for name in ("first_checkpoint", "checkpoint"):  # the part that depends on the rows
            step(name, lambda: TrainingClips().with_rows(dataset).write(folder))
        rows = range(0, num_rows, max(num_rows // 1000, 1))
        step("thousand_rows", lambda: [dataset.row(number, files="named") for number in rows])
        step("all_rows", lambda: sum(1 for _ in dataset.rows(files="none")))
        step("column", lambda: dataset.column("label"))
        found["megabytes"] = (process.memory_full_info().uss - before) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    results = {}
    for num_rows in options.rows:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[str(num_rows)] = pool.apply(measure, (num_rows,))
        print(
            f"{num_rows} rows: " + ", ".join(f"{name} {value:.3g}" for name, value in results[str(num_rows)].items())
        )
    common.save("rows_at_scale", {"rows": results})


if __name__ == "__main__":
    main()
