"""Processes that share work, simulated by threads of the test's process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from simple_multimodal.evaluation.scores import Processes


def together(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Return the results of `work` in each of `count` processes."""
    barrier, values = Barrier(count, timeout=60), [None] * count

    def run(index: int) -> Any:
        def gather(value: Any) -> list[Any]:
            values[index] = value
            barrier.wait()
            gathered = list(values)
            barrier.wait()  # no process writes before all have read
            return gathered

        return work(Processes(index, count, gather))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
