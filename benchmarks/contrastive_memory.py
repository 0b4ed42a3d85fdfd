"""Peak memory of a training step against the batch size, with and without `--contrastive_chunk_size`.

python benchmarks/contrastive_memory.py [--batches 16 32 64 128 256 512 1024] [--chunk_size 16] [--limit_gigabytes 8]

The toy model, on a CPU. Every point is a separate process, whose peak of resident memory (`ru_maxrss`) is read after
one forward and backward pass; the memory that it held before (libraries, model and inputs) is subtracted and reported
separately. Without chunks, batches that would need more than the limit, judged by the previous one, are skipped.

- `contrast`: the four contrastive objectives.
- `all`: also masked objectives and matching.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import common
import psutil
import stand_ins
import torch

from simple_multimodal.models.configuration import OBJECTIVES
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining

NUM_WORDS = 16
MEGABYTE = 2**20


def build_model(objectives: str) -> MultimodalForPreTraining:
    off = [name for name in OBJECTIVES if objectives == "contrast" and not name.startswith("contrastive")]
    return MultimodalForPreTraining(stand_ins.model_config("toy", **{f"{name}_loss_weight": 0.0 for name in off}))


def measure(num_rows: int, chunk_size: int | None, objectives: str) -> dict[str, float]:
    """Measure one step in this process."""
    torch.manual_seed(0)
    model = build_model(objectives).train()
    batch = stand_ins.make_batch(model.config, num_rows, num_words=NUM_WORDS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as after the first step of a run
    before, start = psutil.Process().memory_info().rss / MEGABYTE, time.process_time()
    model(**batch, chunk_size=chunk_size).loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    return {
        "step_megabytes": peak - before,
        "before_megabytes": before,
        "input_megabytes": sum(value.nbytes for value in batch.values()) / MEGABYTE,
        "cpu_seconds": time.process_time() - start,
    }


def plot(results: dict[str, dict[str, dict[int, dict[str, float]]]]) -> None:
    """Plot the memory of a step and of its inputs against the batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 4.2), sharey=True, squeeze=False)
    for axis, (objectives, ways) in zip(axes[0], results.items(), strict=True):
        for way, points in ways.items():
            axis.plot(list(points), [point["step_megabytes"] for point in points.values()], marker="o", label=way)
        longest = max(ways.values(), key=len)
        inputs = [point["input_megabytes"] for point in longest.values()]
        axis.plot(list(longest), inputs, color="grey", linestyle=":", label="inputs alone")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(list(longest), [str(batch) for batch in longest])
        axis.set_xlabel("batch size")
        axis.set_title({"contrast": "contrastive objectives", "all": "all objectives"}[objectives])
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("peak memory of a step (MB)")
    figure.tight_layout()
    figure.savefig(common.RESULTS / "contrastive_memory.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--chunk_size", type=int, default=16)
    parser.add_argument("--limit_gigabytes", type=float, default=8)
    parser.add_argument("--objectives", nargs="+", default=["contrast", "all"], choices=["contrast", "all"])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # measure one point, in this process
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.batches[0], options.chunk_size or None, options.objectives[0])))
        return
    results: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for objectives in options.objectives:
        results[objectives] = {}
        for name, chunk_size in ((f"chunks of {options.chunk_size}", options.chunk_size), ("at once", 0)):
            points: dict[int, dict[str, float]] = {}
            for num_rows in options.batches:
                per_row = max((p["step_megabytes"] / rows for rows, p in list(points.items())[-1:]), default=0.0)
                if not chunk_size and per_row * num_rows > options.limit_gigabytes * 1024:
                    print(f"{objectives}, {name}, batch {num_rows}: skipped, it would need more than the limit")
                    continue
                command = [sys.executable, __file__, "--measure", f"--batches={num_rows}"]
                command += [f"--chunk_size={chunk_size}", f"--objectives={objectives}"]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                points[num_rows] = json.loads(output.splitlines()[-1])
                shown = ", ".join(f"{key} {value:.1f}" for key, value in points[num_rows].items())
                print(f"{objectives}, {name}, batch {num_rows}: {shown}", flush=True)
            results[objectives][name] = points
    common.save("contrastive_memory", results)
    plot(results)


if __name__ == "__main__":
    main()
