"""From the keys of rows to batches, whatever some of the files do: what takes the place of a bad sample, and a process
that may die over one.
"""

import contextlib
import ctypes
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
from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.data.rows import Row, RowDataset, without_files
from simple_multimodal.processing.batch_memory import CAN_SHARE, SharedBatch, forget_blocks

OnBadSamplePolicy = Literal["replace", "skip", "fail"]

MAX_REPLACEMENTS = 32  # rows that are tried in place of one before its place stays empty
POLL_SECONDS = 0.1  # between two looks at a process that reads
KILL_POLLS = 20
MAX_UNEXPLAINED_DEATHS = 3
PR_SET_PDEATHSIG = 1

Key = tuple[int, int]


def _renew_thread_pool() -> None:
    """Have torch replace its thread pool in a forked child, before the child has a second thread.

    The pool of the parent is useless there, and torch (2.11, `caffe2::pthreadpool`) replaces it when a thread first
    asks for it, without a lock: where several threads ask at once, some find none ("Invalid thread pool!"). To a
    thread that reads a file this is an error like any other, which would make a sound file a bad sample.
    """
    torch.set_num_threads(torch.get_num_threads())


if sys.platform != "win32":  # Windows cannot fork
    os.register_at_fork(after_in_child=_renew_thread_pool)


class RowKeys(torch.utils.data.Dataset[Key]):
    """Keys `(epoch, index)` of a data set's rows in place of the rows, for a [`BatchReader`] to look them up.

    Args:
        dataset ([`RowDataset`]): whose rows they are.
    """

    def __init__(self, dataset: RowDataset):
        self.dataset = dataset

    @property
    def epoch(self) -> int:
        """That of the data set."""
        return self.dataset.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the data set."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Key) -> Key:
        return key if isinstance(key, tuple) else (0, key)


class BatchReader:
    """Looks rows up and collates them; a row that cannot be read costs its place in the batch at most.

    What takes its place is a function of (seed, epoch, row) and of which files are bad: the first that can be read of
    the rows drawn from `sample_generator(seed, epoch, id, "replacement")`.

    Args:
        dataset ([`RowDataset`], *optional*):
            Whose rows are looked up; without one, batches are given as rows.
        collator ([`MultimodalCollator`]):
            Makes batches of them.
        on_bad_sample (`str`, *optional*, defaults to `"fail"`):
            `"replace"`: read another row of the data set in its place. `"skip"`: leave its place empty: a row that
            has no modality and is marked as `is_skipped`. `"fail"`: raise.
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
        self.known: dict[int, tuple[str, str]] = {}  # rows that are not to be read, with file and reason

    def __call__(self, keys: Sequence[Key | Row]) -> dict[str, Any]:
        """Read a batch.

        Args:
            keys (`Sequence[tuple[int, int]]` or `Sequence[Row]`): epoch and index of each row; or the rows, no two of
                one index.

        Returns:
            `dict[str, Any]`: the collator's batch; with `bad_samples`, a list of [`BadSample`], if there are any, and
            with `captions` if asked for.

        Raises:
            BadSampleError: If a row cannot be read and the policy is `"fail"`.
        """
        bad_samples: list[BadSample] = []
        spares: dict[int, Iterator[Row | BadSampleError]] = {}

        def spare(number: int, error: BadSampleError) -> Row:
            """A row that could be looked up, for the place of one that could not be, or not read."""
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

    def _look_up(self, key: Key | Row) -> Row | BadSampleError:
        """A row, if its files are there."""
        index = key[1] if isinstance(key, tuple) else key["index"]
        if index in self.known:
            return BadSampleError.of(self._bare(key), *self.known[index])
        if not isinstance(key, tuple):
            return key
        record = self.collator.in_flight
        try:
            with contextlib.nullcontext() if record is None else record.reading(index, f"row {index} (looked up)"):
                return with_retries(lambda: self._rows[key])
        except (ValueError, OSError) as error:
            return BadSampleError.of(self._bare(key), file_of(error), str(error))

    def _bare(self, key: Key | Row) -> Row:
        """What is known of a row that cannot be read."""
        return self._rows.row(key[1], key[0], files="none") if isinstance(key, tuple) else without_files(key)

    @property
    def _rows(self) -> RowDataset:
        assert self.dataset is not None, "rows are looked up, and there is no data set"
        return self.dataset

    def _spares(self, key: Key | Row) -> Iterator[Row | BadSampleError]:
        """What may take the place of a row: others, and at last the row as if it had nothing."""
        bare = self._bare(key)
        if self.on_bad_sample == "replace":
            generator = sample_generator(self.collator.seed, bare["epoch"], bare["id"], "replacement")
            for _ in range(MAX_REPLACEMENTS):
                yield self._look_up((bare["epoch"], int(generator.integers(len(self._rows)))))
        nothing = dict.fromkeys(self.collator.columns)  # also of what is not in a file
        yield cast(Row, {**bare, **nothing, "captions": [], "is_skipped": True})


class _Death(Exception):
    """The process that reads is no more; `readings` is what it was reading."""

    def __init__(self, reason: str, readings: Sequence[Reading] = ()):
        super().__init__(reason)
        self.readings = readings


class SupervisedReader:
    """Reads batches so that a file which crashes its decoder, hangs it or makes it eat memory costs one sample.

    In a worker of a `DataLoader` (on Linux) batches are read by a child process, a fork of the worker, which hands
    them over in shared memory. If it dies, is not done with a file in time or grows too large, a new child reads the
    batch again, one file after the other, so that it is known which file is at fault; that is bad from then on. The
    batch is the one that would come out if the file had been known to be bad before. Without workers, and where frames
    are decoded on a GPU (whose tensors a child's parent cannot hand on), batches are read in this process, and a
    watcher beside it names the file that ended it.

    Args:
        read ([`BatchReader`]):
            Reads a batch.
        timeout_seconds (`float`, *optional*, defaults to 0.0):
            For one file; 0: no limit.
        memory_gigabytes (`float`, *optional*, defaults to 0.0):
            By which the child may grow; 0: no limit.
    """

    def __init__(self, read: BatchReader, *, timeout_seconds: float = 0.0, memory_gigabytes: float = 0.0):
        self.read = read
        self.timeout_seconds = timeout_seconds
        self.memory_gigabytes = memory_gigabytes
        self._forget_child()

    def __reduce__(self) -> tuple[Any, ...]:  # for a worker that is spawned: without a child
        make = functools.partial(
            SupervisedReader, timeout_seconds=self.timeout_seconds, memory_gigabytes=self.memory_gigabytes
        )
        return make, (self.read,)

    def __call__(self, keys: Sequence[Key | Row]) -> dict[str, Any]:
        """Read a batch, see [`BatchReader`].

        Raises:
            BadSampleError: If a row cannot be read and the policy is `"fail"`.
            RuntimeError: If the child dies again and again while it reads no file.
        """
        is_on_gpu = self.read.collator.decode_device != "cpu"
        if torch.utils.data.get_worker_info() is None or not CAN_SHARE or is_on_gpu:
            if CAN_SHARE:
                self.read.collator.in_flight = _watched(os.getpid(), self.timeout_seconds)
            return self.read(keys)
        is_retry = False
        num_unexplained = 0
        while True:
            try:
                return self._ask(keys, is_parallel=self.read.collator.parallel and not is_retry)
            except _Death as death:
                self._end_child()
                if is_retry:  # of which it read one only
                    for reading in death.readings:
                        self.read.known[reading.row] = reading.path, f"{reading.path!r}: {death}"
                if not death.readings:
                    num_unexplained += 1
                    if num_unexplained == MAX_UNEXPLAINED_DEATHS:
                        raise RuntimeError(
                            f"The process that reads samples ended {num_unexplained} times without reading a file: "
                            f"{death}."
                        ) from death
                is_retry = True

    def _ask(self, keys: Sequence[Key | Row], is_parallel: bool) -> dict[str, Any]:
        """Have the child read a batch."""
        if self._child == 0:
            self._start_child()
        try:
            self._connection.send((keys, is_parallel))
            while not self._connection.poll(POLL_SECONDS):
                self._check_child()
            is_batch, result = self._connection.recv()
        except (EOFError, OSError) as error:  # of the pipe, or of memory that went with the child
            raise _Death(self._cause_of_death(), self._in_flight.readings()) from error
        if not is_batch:
            raise result
        return result

    def _check_child(self) -> None:
        """Raise if the child takes too long or too much."""
        overdue = self._in_flight.overdue(self.timeout_seconds)
        if overdue:
            raise _Death(f"not read within {self.timeout_seconds:g} seconds (--sample_timeout_seconds)", overdue)
        grown = _private_gigabytes(self._child) - self._gigabytes_before
        if self.memory_gigabytes and grown > self.memory_gigabytes:
            limit = f"more than {self.memory_gigabytes:g} GB (--loader_memory_gigabytes)"
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
        """How the child ended, or is ended here if only what it sent is lost."""
        os.kill(self._child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        self._child = -1
        return (
            f"its decoder crashed ({signal.Signals(-status).name})" if status < 0 else f"its decoder exited ({status})"
        )

    def _end_child(self) -> None:
        if self._child > 0:
            os.kill(self._child, signal.SIGKILL)
            for _ in range(KILL_POLLS):  # not for ever: where a file system hangs, it cannot even die
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


_watchers: list[subprocess.Popen] = []  # their standard input stays open for as long as this process lives


@functools.cache
def _watched(process: int, timeout_seconds: float) -> InFlight:
    """The record of this process, with a watcher that names a file that ends the process."""
    record = InFlight()
    command = [sys.executable, "-I", in_flight.__file__, str(record.file), str(process), str(timeout_seconds)]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[record.file]))
    return record


def _serve(read: BatchReader, connection: Connection, worker: int) -> None:
    """What the child does: read batches until the worker goes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the worker decides what to do
        signal.signal(number, signal.SIG_IGN)
    die_with(worker)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this process is the one that can be spared
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
        except Exception:  # of this program: the process that asked reports it, with where it happened
            connection.send((False, RuntimeError(f"Reading a batch failed:\n{traceback.format_exc()}")))
        else:
            connection.send((True, SharedBatch(batch)))
            del batch  # its memory is the receiver's


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that comes about (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which ended before
        os._exit(1)


def _private_gigabytes(process: int) -> float:
    """Memory of a process that is not shared with others through files."""
    try:
        with open(f"/proc/{process}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:  # it ended just now, which the pipe tells
        return 0.0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e9
