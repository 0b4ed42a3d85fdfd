"""The memory estimate in the summary of a run, against the memory that a process really takes over three steps.

python benchmarks/training_memory.py [--sizes toy small]

Models of `stand_ins.py` with all objectives, one thread, AdamW; every case is a separate process. `allocated` is the
peak memory of tensors during the third step, as `torch.cuda.max_memory_allocated` reports for a device; `resident` is
the peak memory of the process, minus what it held before the model was built.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
from typing import Any

import common
import psutil
import stand_ins
import torch
from torch.profiler import ProfilerActivity, profile

from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.training.summary import SavedActivations, summarize

WORDS = 32
CASES = {
    "toy": [
        ("all weights", 64, "fp32"),
        ("all weights", 64, "bf16"),
        ("all weights, checkpoints", 64, "fp32"),
        ("LoRA, checkpoints", 64, "fp32"),
        ("frozen towers", 64, "fp32"),
    ],
    "small": [
        ("all weights", 1, "fp32"),
        ("all weights, checkpoints", 2, "fp32"),
        ("LoRA with fusion, checkpoints", 2, "bf16"),
        ("frozen towers", 2, "bf16"),
    ],
}
"""Setting, rows of a batch and precision of the cases, by size."""


def measure(size: str, setting: str, num_rows: int, precision: str) -> dict[str, float]:
    """Return the megabytes that the summary estimates, and those by which this process grows."""
    import peft  # noqa: F401  # not counted as memory of the model

    torch.manual_seed(0)
    config = stand_ins.model_config(size)
    batch = stand_ins.make_batch(config, num_rows, num_words=WORDS)
    before = psutil.Process().memory_info().rss
    model = MultimodalForPreTraining(config).train()
    stand_ins.apply_setting(model, setting)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    found = summarize(model, optimizer)["memory_bytes"]

    def step() -> int:
        """Do a training step, and return the bytes that its forward pass keeps."""
        activations = SavedActivations(model)
        with activations, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return activations.num_bytes

    found["activations"] = step()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    kept = found["weights"] + found["optimizer_state"]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    found = {name: value / 1e6 for name, value in found.items()}
    counted = sum(found.values())
    measured = {"allocated": (kept + most_allocated(profiled)) / 1e6, "resident": (peak - before) / 1e6}
    return {**found, "counted": counted, **measured, **{f"{n}_over_counted": v / counted for n, v in measured.items()}}


def most_allocated(profiled: profile) -> int:
    """Return the peak bytes of tensors during a profile, beyond those before it."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # measure one case, in this process
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*json.loads(options.measure))))
        return
    results: dict[str, Any] = {}
    for size in options.sizes:
        for setting, num_rows, precision in CASES[size]:
            command = [sys.executable, __file__, "--measure", json.dumps([size, setting, num_rows, precision])]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            name = f"{size}, {setting}, {num_rows} rows, {precision}"
            results[name] = json.loads(output.splitlines()[-1])
            print(name, {key: round(value, 2) for key, value in results[name].items()}, flush=True)
    common.save("training_memory", results)


if __name__ == "__main__":
    main()
