"""Turn keys of rows into batches even if files are bad: replace bad samples, and read in a process that may crash."""

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal, cast

import torch

from simple_multimodal.data import in_flight
from simple_multimodal.data.bad_samples import BadSample, BadSampleError, file_of, with_retries
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.in_flight import InFlight, Reading
from simple_multimodal.data.loader_processes import die_with
from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.data.rows import Row, RowDataset, without_files
from simple_multimodal.processing.batch_memory import CAN_SHARE, SharedBatch, forget_blocks

OnBadSamplePolicy = Literal["replace", "skip", "fail"]

MAX_REPLACEMENTS = 32  # rows tried in place of a bad one before its place stays empty
POLL_SECONDS = 0.1  # between two checks of the reading process
KILL_POLLS = 20
MAX_UNEXPLAINED_DEATHS = 3

Key = tuple[int, int]


def _renew_thread_pool() -> None:
    """Make torch replace its thread pool in a forked child, before the child has a second thread.

    The parent's pool does not work there, and torch (2.11, `caffe2::pthreadpool`) replaces it without a lock when a
    thread first asks for it: if several threads ask at once, some find none ("Invalid thread pool!"). A thread that
    reads a file would report this as an error of the file, and an intact file would count as a bad sample.
    """
    torch.set_num_threads(torch.get_num_threads())


if sys.platform != "win32":  # Windows cannot fork
    os.register_at_fork(after_in_child=_renew_thread_pool)


class RowKeys(torch.utils.data.Dataset[Key]):
    """Keys `(epoch, index)` of the rows of a dataset, which a [`BatchReader`] looks up.

    Args:
        dataset ([`RowDataset`]): Dataset with the rows.
    """

    def __init__(self, dataset: RowDataset):
        self.dataset = dataset

    @property
    def epoch(self) -> int:
        """Epoch of the dataset."""
        return self.dataset.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the dataset."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Key) -> Key:
        return key if isinstance(key, tuple) else (0, key)


class BatchReader:
    """Look up rows and collate them; a row that cannot be read does not affect the rest of its batch.

    The replacement of a bad row depends only on (seed, epoch, row) and on which files are bad: rows are chosen at
    random with `sample_generator(seed, epoch, id, "replacement")` until one can be read.

    Args:
        dataset ([`RowDataset`], *optional*):
            Dataset in which rows are looked up; without one, batches are given as rows.
        collator ([`MultimodalCollator`]):
            Collator of the rows.
        on_bad_sample (`str`, *optional*, defaults to `"fail"`):
            `"replace"`: read another row of the dataset in its place. `"skip"`: leave its place empty, with a row
            that has no modality and is marked as `is_skipped`. `"fail"`: raise.
    """

    def __init__(
        self,
        dataset: RowDataset | None,
        collator: MultimodalCollator,
        *,
        on_bad_sample: OnBadSamplePolicy = "fail",
    ):
        self.dataset = dataset
        self.collator = collator
        self.on_bad_sample = on_bad_sample
        self.known: dict[int, tuple[str, str]] = {}  # rows not to read, with file and reason

    def __call__(self, keys: Sequence[Key | Row]) -> dict[str, Any]:
        """Read a batch.

        Args:
            keys (`Sequence[tuple[int, int]]` or `Sequence[Row]`): Epoch and index of each row, or the rows
                themselves, each with its own index.

        Returns:
            `dict[str, Any]`: The collator's batch; with `bad_samples`, a list of [`BadSample`], if there are any, and
            with `captions` if requested.

        Raises:
            BadSampleError: If a row cannot be read and the policy is `"fail"`.
        """
        bad_samples: list[BadSample] = []
        spares: dict[int, Iterator[Row | BadSampleError]] = {}

        def spare(number: int, error: BadSampleError) -> Row:
            """Return a row that could be looked up, to replace one that could not be looked up or read."""
            found: Row | BadSampleError = error
            while isinstance(found, BadSampleError):
                if self.on_bad_sample == "fail":
                    raise found
                bad_samples.append(found.sample)
                if number not in spares:
                    spares[number] = self._spares(keys[number])
                found = next(spares[number])
            rows[number] = found
            return found

        looked_up = [self._look_up(key) for key in keys]
        rows: dict[int, Row] = {}
        for number, found in enumerate(looked_up):
            rows[number] = spare(number, found) if isinstance(found, BadSampleError) else found
        batch: dict[str, Any] = self.collator(list(rows.values()), spare)
        if bad_samples:
            batch["bad_samples"] = bad_samples
        return batch

    def row(self, key: Key | Row) -> Row:
        """Return the row of a key, whose files exist; a row that is given is returned unchanged."""
        return self._rows[key] if isinstance(key, tuple) else key

    def _look_up(self, key: Key | Row) -> Row | BadSampleError:
        """Return a row, or an error if its files do not exist."""
        index = key[1] if isinstance(key, tuple) else key["index"]
        if index in self.known:
            return BadSampleError.of(self._bare(key), *self.known[index])
        record = self.collator.in_flight
        try:
            with contextlib.nullcontext() if record is None else record.reading(index, f"row {index} (looked up)"):
                return with_retries(lambda: self.row(key))
        except (ValueError, OSError) as error:
            return BadSampleError.of(self._bare(key), file_of(error), str(error))

    def _bare(self, key: Key | Row) -> Row:
        """Return what is known about a row that cannot be read."""
        return self._rows.row(key[1], key[0], files="none") if isinstance(key, tuple) else without_files(key)

    @property
    def _rows(self) -> RowDataset:
        assert self.dataset is not None, "looking up rows requires a dataset"
        return self.dataset

    def _spares(self, key: Key | Row) -> Iterator[Row | BadSampleError]:
        """Yield replacements of a row: other rows, and finally the row itself without any modality."""
        bare = self._bare(key)
        if self.on_bad_sample == "replace":
            generator = sample_generator(self.collator.seed, bare["epoch"], bare["id"], "replacement")
            for _ in range(MAX_REPLACEMENTS):
                yield self._look_up((bare["epoch"], int(generator.integers(len(self._rows)))))
        nothing = dict.fromkeys(self.collator.columns)  # including those without files
        yield cast(Row, {**bare, **nothing, "captions": [], "is_skipped": True})


class _Death(Exception):
    """The reading process died; `readings` lists the files that it was reading."""

    def __init__(self, reason: str, readings: Sequence[Reading] = ()):
        super().__init__(reason)
        self.readings = readings


class SupervisedReader:
    """Reader of batches for which a file that crashes or hangs its decoder, or exhausts memory, costs one sample.

    In a worker of a `DataLoader` (on Linux), batches are read by a child process, a fork of the worker, which passes
    them on in shared memory. If it dies, takes too long over a file or grows too large, a new child reads the batch
    again, one file at a time, to find the file at fault, which counts as bad from then on. The batch is the same as
    if the file had been known to be bad before. If the collator is not `parallel`, files are read one at a time in
    the first place, and nothing is read again. Without workers, and if frames are decoded on a GPU (whose tensors
    the parent cannot pass on), batches are read in this process, and a watcher process names the file that ended it.

    Args:
        read ([`BatchReader`]):
            Reader of one batch.
        timeout_seconds (`float`, *optional*, defaults to 0.0):
            Time limit for one file; 0: no limit.
        memory_gigabytes (`float`, *optional*, defaults to 0.0):
            Limit for the growth of the child; 0: no limit.
        in_child (`bool`, *optional*):
            Whether to read in a child process; by default in workers of a `DataLoader`. The child is a fork, so this
            process should have no other threads that do more than wait.
    """

    def __init__(
        self,
        read: BatchReader,
        *,
        timeout_seconds: float = 0.0,
        memory_gigabytes: float = 0.0,
        in_child: bool | None = None,
    ):
        self.read = read
        self.timeout_seconds = timeout_seconds
        self.memory_gigabytes = memory_gigabytes
        self.in_child = in_child
        self._forget_child()

    def __reduce__(self) -> tuple[Any, ...]:  # for a spawned worker: without a child
        make = functools.partial(
            SupervisedReader,
            timeout_seconds=self.timeout_seconds,
            memory_gigabytes=self.memory_gigabytes,
            in_child=self.in_child,
        )
        return make, (self.read,)

    def __call__(self, keys: Sequence[Key | Row]) -> dict[str, Any]:
        """Read a batch, see [`BatchReader`].

        Raises:
            BadSampleError: If a row cannot be read and the policy is `"fail"`.
            RuntimeError: If the child repeatedly dies while it is not reading a file.
        """
        is_on_gpu = self.read.collator.decode_device != "cpu"
        in_child = torch.utils.data.get_worker_info() is not None if self.in_child is None else self.in_child
        if not in_child or not CAN_SHARE or is_on_gpu:
            if CAN_SHARE:
                self.read.collator.in_flight = _watched(os.getpid(), self.timeout_seconds)
            return self.read(keys)
        is_parallel = self.read.collator.parallel
        num_unexplained = 0
        while True:
            try:
                return self._ask(keys, is_parallel)
            except _Death as death:
                self._end_child()
                if not is_parallel:  # files were read one at a time
                    for reading in death.readings:
                        self.read.known[reading.row] = reading.path, f"{reading.path!r}: {death}"
                if not death.readings:
                    num_unexplained += 1
                    if num_unexplained == MAX_UNEXPLAINED_DEATHS:
                        raise RuntimeError(
                            f"The process that reads samples ended {num_unexplained} times without reading a file: "
                            f"{death}."
                        ) from death
                is_parallel = False

    def _ask(self, keys: Sequence[Key | Row], is_parallel: bool) -> dict[str, Any]:
        """Have the child read a batch."""
        if self._child == 0:
            self._start_child()
        try:
            self._connection.send((keys, is_parallel))
            while not self._connection.poll(POLL_SECONDS):
                self._check_child()
            is_batch, result = self._connection.recv()
        except (EOFError, OSError) as error:  # from the pipe, or from memory that the child took with it
            raise _Death(self._cause_of_death(), self._in_flight.readings()) from error
        if not is_batch:
            raise result
        return result

    def _check_child(self) -> None:
        """Raise an error if the child takes too long or uses too much memory."""
        overdue = self._in_flight.overdue(self.timeout_seconds)
        if overdue:
            raise _Death(f"not read within {self.timeout_seconds:g} seconds (`sample_timeout_seconds`)", overdue)
        grown = _private_gigabytes(self._child) - self._gigabytes_before
        if self.memory_gigabytes and grown > self.memory_gigabytes:
            limit = f"more than {self.memory_gigabytes:g} GB (`loader_memory_gigabytes`)"
            raise _Death(f"reading it took {limit}", self._in_flight.readings())

    def _start_child(self) -> None:
        worker = os.getpid()
        self._in_flight = InFlight()
        self.read.collator.in_flight = self._in_flight
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a fork of the main process has the handler of a `DataLoader`
        self._connection, connection = multiprocessing.Pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                self._connection.close()
                _serve(self.read, connection, worker)
            finally:
                os._exit(1)
        connection.close()
        self._gigabytes_before = _private_gigabytes(self._child)

    def _cause_of_death(self) -> str:
        """Return how the child ended; if only its message was lost, end the child."""
        os.kill(self._child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        self._child = -1
        return (
            f"its decoder crashed ({signal.Signals(-status).name})" if status < 0 else f"its decoder exited ({status})"
        )

    def _end_child(self) -> None:
        if self._child > 0:
            os.kill(self._child, signal.SIGKILL)
            for _ in range(KILL_POLLS):  # with a limit: if a file system hangs, the child cannot even die
                if os.waitpid(self._child, os.WNOHANG)[0]:
                    break
                time.sleep(POLL_SECONDS)
        self._connection.close()
        self._in_flight.close()
        self._forget_child()

    def _forget_child(self) -> None:
        self._child = 0
        self._connection, self._in_flight = cast(Connection, None), cast(InFlight, None)
        self.read.collator.in_flight = None


_watchers: list[subprocess.Popen] = []  # their standard input stays open as long as this process lives


@functools.cache
def _watched(process: int, timeout_seconds: float) -> InFlight:
    """Return the record of this process; start a watcher that names the file if one ends the process."""
    record = InFlight()
    command = [sys.executable, "-I", in_flight.__file__, str(record.file), str(process), str(timeout_seconds)]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[record.file]))
    return record


def _serve(read: BatchReader, connection: Connection, worker: int) -> None:
    """Read batches in the child until the worker ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the worker handles them
        signal.signal(number, signal.SIG_IGN)
    die_with(worker)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this process is the most expendable
    forget_blocks()
    while True:
        try:
            keys, read.collator.parallel = connection.recv()
        except EOFError:
            return
        try:
            batch = read(keys)
        except (ValueError, OSError) as error:
            connection.send((False, error))
        except Exception:  # a bug: the parent reports it with its traceback
            connection.send((False, RuntimeError(f"Reading a batch failed:\n{traceback.format_exc()}")))
        else:
            connection.send((True, SharedBatch(batch)))
            del batch  # its memory belongs to the receiver


def _private_gigabytes(process: int) -> float:
    """Return the memory of a process that is not shared with others through files, in gigabytes."""
    try:
        with open(f"/proc/{process}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:  # it has just ended; the pipe reports that
        return 0.0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e9
