"""Read one modality of a batch's rows, side by side in threads, and keep what went wrong with each row."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from simple_multimodal.cores import available_cores
from simple_multimodal.data.bad_samples import BadSampleError, with_retries
from simple_multimodal.data.in_flight import InFlight
from simple_multimodal.data.readers import Reader
from simple_multimodal.data.rows import Row

MAX_THREADS = 8

Result = TypeVar("Result")


class ThreadPool:
    """
    Threads of the current process.

    They are started when they are first needed, and once more in each process that a pool is forked or pickled into:
    threads survive neither.

    Args:
        num_threads (`int`, *optional*): Number of threads; [`default_num_threads`] by default.
    """

    def __init__(self, num_threads: int | None = None):
        self.num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return ThreadPool, (self.num_threads,)

    def submit(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Start `work` in a thread; call what is returned to wait for its result."""
        return self._threads().submit(work).result

    def _threads(self) -> ThreadPoolExecutor:
        if self._executor is None or self._process != os.getpid():
            threads = self.num_threads or default_num_threads()
            self._executor = ThreadPoolExecutor(threads, thread_name_prefix="collator")
            self._process = os.getpid()
        return self._executor


def default_num_threads() -> int:
    """Return this process's share of the available cores: divided among the processes of a launcher and their workers,
    and at most `MAX_THREADS`.
    """
    worker = torch.utils.data.get_worker_info()
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (1 if worker is None else worker.num_workers)
    return min(max(available_cores() // sharers, 1), MAX_THREADS)


class ModalityReading:
    """
    One modality of a batch, from the start of reading to the entries of the batch.

    Reading starts at once in threads of `pool`, as the reader's `schedule` says; without a pool, and for a reader that
    is scheduled `"here"`, it happens in [`wait`]. A row that cannot be read does not stop the others: its
    [`error`] says what is wrong.

    Args:
        reader ([`Reader`]): Reader of the modality.
        rows (`Sequence[Row]`): Rows of the batch.
        pool ([`ThreadPool`], *optional*): Threads to read in.
        in_flight ([`InFlight`], *optional*): Record of the files that are being read.
        dropped (`bool`, *optional*, defaults to `False`): Treat every row as lacking the modality.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Sequence[Row],
        *,
        pool: ThreadPool | None = None,
        in_flight: InFlight | None = None,
        dropped: bool = False,
    ):
        self.reader = reader
        self.in_flight = in_flight
        self.dropped = dropped
        self.memory = reader.new_batch(len(rows))
        self.parts: list[Any] = [None] * len(rows)
        self._pending = self._start(rows, pool)

    def _start(self, rows: Sequence[Row], pool: ThreadPool | None) -> list[Callable[[], Any]]:
        """Start reading. Return functions that wait for it, or do it if it was not started."""
        tasks: list[Callable[[], None]] = [partial(self.read, number, row) for number, row in enumerate(rows)]
        if pool is None or self.reader.schedule == "here":
            return tasks
        if self.reader.schedule == "one by one":
            return [pool.submit(lambda: [task() for task in tasks])]
        largest_first = sorted(range(len(rows)), key=lambda number: -self._size(rows[number]))
        return [pool.submit(tasks[number]) for number in largest_first]

    def wait(self) -> None:
        """Wait until all rows are read."""
        while self._pending:  # in a cycle with this object, they would keep the batch until garbage is collected
            self._pending.pop(0)()

    def read(self, number: int, row: Row) -> None:
        """Read a row into its place in the batch; also one that replaces an earlier row there."""
        out = {name: tensor[number] for name, tensor in self.memory.items()}
        if self._has(row):
            self.parts[number] = self._attempt(lambda row: self.reader.read(row, out), row)
        else:
            self.parts[number] = None
            for tensor in out.values():
                tensor.zero_()

    def error(self, number: int) -> BadSampleError | None:
        """Return why a row could not be read, if it could not."""
        part = self.parts[number]
        return part if isinstance(part, BadSampleError) else None

    def collate(self) -> Mapping[str, torch.Tensor]:
        """Return the entries of the batch; a row that could not be read counts as lacking the modality."""
        return self.reader.collate(
            [None if isinstance(part, BadSampleError) else part for part in self.parts], self.memory
        )

    def _has(self, row: Row) -> bool:
        return not self.dropped and self.reader.has(row)

    def _size(self, row: Row) -> int:
        size = self._attempt(self.reader.size, row) if self._has(row) else 0
        return size if isinstance(size, int) else 0

    def _attempt(self, read: Callable[[Row], Result], row: Row) -> Result | BadSampleError:
        """Call `read` with a row, and return its result or, with the names of the row and of its file, its error."""
        value = row.get(self.reader.column)
        file = value if isinstance(value, str) else None
        noted: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.in_flight is not None and file is not None:
            noted = self.in_flight.reading(row["index"], file)
        try:
            with noted:
                return with_retries(partial(read, row), file)
        except (ValueError, OSError, MemoryError) as error:  # MediaError is a ValueError
            bad = BadSampleError.of(row, file, str(error) or type(error).__name__)
            bad.__cause__ = error
            return bad
