"""Shared code of the benchmarks: one thread, interleaved timing in CPU seconds, versions, and results as JSON."""

import json
import os

# Before any library that starts threads is imported.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

torch.set_num_threads(1)
if importlib.util.find_spec("av") is not None:  # some benchmarks do not read files
    import av

    av.logging.set_level(av.logging.PANIC)

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "av",
    "torch",
    "torchcodec",
    "torchvision",
    "decord",
    "opencv-python-headless",
    "pose-format",
    "transformers",
)


_reasons: set[str] = set()


def measured(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, CPU seconds and wall seconds of a call. If it raises, as other readers do for some files, the
    result is `None`, and the reason is printed once."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = call()
    except Exception as error:
        result = None
        reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
        if reason not in _reasons:
            _reasons.add(reason)
            print(reason, file=sys.stderr)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def interleaved(
    items: Iterable[Any], readers: dict[str, Callable[[Any], Any]], repeats: int
) -> dict[str, dict[Any, list[float]]]:
    """Measure CPU seconds of each reader for each item, the readers taking turns on every item, in changing order.

    A call that fails counts as NaN.
    """
    items = list(items)
    seconds: dict[str, dict[Any, list[float]]] = {name: {item: [] for item in items} for name in readers}
    for repeat in range(repeats):
        order = list(readers) if repeat % 2 == 0 else list(readers)[::-1]
        for item in items:
            for name in order:
                result, cpu, _ = measured(lambda name=name, item=item: readers[name](item))
                seconds[name][item].append(cpu if result is not None else float("nan"))
    return seconds


def total(seconds: dict[Any, list[float]], items: Iterable[Any]) -> float:
    """Return the sum over items of the median over repeats."""
    return sum(statistics.median(seconds[item]) for item in items)


def operation_counter() -> FlopCounterMode:
    """Return a context that counts floating-point operations of matrix products, convolutions and attention, where a
    multiplication and an addition are two; its `get_total_flops()` is their number."""
    aten = torch.ops.aten
    attention_on_cpu = {  # torch leaves it out
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=attention_on_cpu)


def machine() -> dict[str, Any]:
    """Return the hardware and the versions that the numbers were measured with."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}


def save(name: str, results: dict[str, Any]) -> None:
    """Write `results/NAME.json`, and print its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1, default=lambda value: value.item()) + "\n")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
