"""Read untrusted clips in processes that are not the server's."""

import contextlib
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.loader_processes import blocking_sigterm
from simple_multimodal.data.rows import Row
from simple_multimodal.errors import InputError
from simple_multimodal.processing.batch_memory import CAN_SHARE
from simple_multimodal.serving.reading import ClipError, ReaderLostError, ReadingLimits, read_clips, row_of
from simple_multimodal.serving.waiting import Job, WaitingJobs

logger = logging.getLogger(__name__)

# Processes are not forks of the server, which has threads, and are replaced without loading torch again.
START_METHOD: Literal["forkserver"] = "forkserver"
START_SECONDS = 120.0  # on a loaded machine, with cold files
GRACE_SECONDS = 10.0  # in which a reading process must have enforced its own limits
IDLE_SECONDS = 1.0  # between two checks that an idle process is alive
POLL_SECONDS = 0.1
MAX_STARTS = 3  # of a process, before the first one is ready
SMALLEST_GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"  # a white pixel
NO_START = "the processes that read clips do not start; the server's log says why"

Batch = dict[str, Any]

_starting = threading.Lock()


class ClipReaders:
    """
    Processes that read untrusted clips. Each has a child that opens and decodes the files; see [`SupervisedReader`].

    A clip that crashes its decoder, takes too long or takes too much memory costs the child, which is replaced within
    milliseconds. If the reading process itself is killed, the clip in its hands gets a [`ReaderLostError`], and
    another process takes its place. No other clip is affected. Nothing is written: indices of files stay in memory,
    and batches are passed on in anonymous memory.

    Args:
        collator ([`MultimodalCollator`]): Collator of the model's pipeline.
        num_processes (`int`, *optional*, defaults to 2): Number of processes.
        limits ([`ReadingLimits`], *optional*): Limits for a clip; by default its defaults.
        max_waiting (`int`, *optional*, defaults to 256): Number of clips that may wait; further ones are refused.

    Attributes:
        waiting ([`WaitingJobs`]): The queue, with its counters.
        num_read (`int`): Number of clips that were read.
        num_unreadable (`int`): Number of clips that could not be read.
        num_lost (`int`): Number of clips whose process was lost.

    Example:

    ```python
    >>> readers = ClipReaders(pipeline.collator, num_processes=2)
    >>> batch = await result_of(readers.submit("upload/5f2c"))  # in a coroutine
    >>> batch["pixel_values_videos"].shape
    torch.Size([1, 16, 3, 224, 224])
    >>> readers.close()
    ```
    """

    def __init__(
        self,
        collator: MultimodalCollator,
        *,
        num_processes: int = 2,
        limits: ReadingLimits | None = None,
        max_waiting: int = 256,
    ):
        if min(num_processes, max_waiting) < 1:
            raise InputError(
                f"`num_processes` and `max_waiting` must be 1 or more, got {num_processes} and {max_waiting}."
            )
        if not CAN_SHARE:
            raise InputError("Untrusted clips can only be read on Linux, in processes that may crash.")
        if collator.decode_device != "cpu":
            raise InputError(
                f"Untrusted clips are decoded in processes that may crash, not on a GPU: leave out "
                f"`decode_device={collator.decode_device!r}`."
            )
        self.waiting: WaitingJobs[Row, Batch] = WaitingJobs(max_waiting=max_waiting)
        self.num_read = 0
        self.num_unreadable = 0
        self.num_lost = 0
        self._processes = [_ReadingProcess(collator, limits or ReadingLimits()) for _ in range(num_processes)]
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(process,), name="clip reader", daemon=True)
            for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_restarts(self) -> int:
        """Number of processes that were started in the place of others."""
        return sum(max(process.num_starts - 1, 0) for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """Process ids of the reading processes; their children are not listed."""
        return [process.pid for process in self._processes if process.pid is not None]

    def submit(
        self,
        file: str | os.PathLike[str],
        *,
        audio: str | os.PathLike[str] | None = None,
        deadline: float = math.inf,
    ) -> Job[Row, Batch]:
        """
        Read a clip in the next idle process.

        Args:
            file (`str`): Media file of the clip, with or without video. Its owner removes it once the job is done, not
                when the client has gone.
            audio (`str`, *optional*): File with the clip's audio; by default the audio of `file` is used.
            deadline (`float`, *optional*): Time by `time.monotonic` after which reading is not begun any more; by
                default there is none.

        Returns:
            [`Job`]: Future of the collator's batch of one row, without text: texts of a batch are tokenized together.
            Cancelling it removes the clip from the queue; one that is being read is read to its end. It raises
            [`ClipError`] if the clip cannot be read, [`ReaderLostError`], [`DeadlineError`] or [`ClosedError`];
            [`RuntimeError`] is an error of this program.

        Raises:
            QueueFullError: If too many clips are waiting.
            ClosedError: If the readers are closed.
        """
        return self.waiting.put(row_of(file, audio), deadline=deadline)

    def wait_until_ready(self) -> None:
        """
        Wait until all processes can read.

        Raises:
            ReaderLostError: If a process does not start.
        """
        ends = time.monotonic() + START_SECONDS
        for process in self._processes:
            while not process.is_ready.wait(POLL_SECONDS):
                if process.num_starts > MAX_STARTS or time.monotonic() > ends:
                    raise ReaderLostError(NO_START)

    def check(self) -> None:
        """
        Wait until all processes can read, and have one of them read a clip.

        Raises:
            ValueError: If a process does not start, **or** fails.
        """
        try:
            self.wait_until_ready()
            with tempfile.NamedTemporaryFile(suffix=".gif") as file, contextlib.suppress(ClipError):
                file.write(SMALLEST_GIF)  # which lacks the audio that some models need
                file.flush()
                self.submit(file.name).result()
        except RuntimeError as error:
            raise InputError(f"Clips cannot be read: {error}") from error

    def close(self, *, drain: bool = True) -> None:
        """
        Refuse new clips, wait until the accepted ones are read, and end the processes.

        Args:
            drain (`bool`, *optional*, defaults to `True`): Whether to read the clips that are waiting; otherwise they
                get a [`ClosedError`]. Clips that are being read are read to their end in both cases.
        """
        self.waiting.close(drain=drain)
        for thread in self._threads:
            thread.join()

    def _work(self, process: "_ReadingProcess") -> None:
        """Have one process read clips; runs in a thread of its own."""
        process.check()
        while (jobs := self.waiting.take(timeout_seconds=IDLE_SECONDS)) is not None:
            if jobs:
                self._answer(jobs[0], process)
            else:
                process.check()
            del jobs  # with the result, while others are waited for
        process.end(patience_seconds=GRACE_SECONDS)

    def _answer(self, job: Job[Row, Batch], process: "_ReadingProcess") -> None:
        try:
            result = process.read(job.item)
        except Exception as error:  # none is expected, but the thread must go on
            result = RuntimeError(f"reading the clip failed: {type(error).__name__}")
        with self._counting:
            self.num_read += not isinstance(result, Exception)
            self.num_lost += isinstance(result, ReaderLostError)
            self.num_unreadable += isinstance(result, InputError)
        if isinstance(result, Exception):
            job.finish(error=result)
        else:
            job.finish(result)


class _ReadingProcess:
    """
    A process that runs [`read_clips`], and is replaced if it ends. All methods are called by one thread.

    Args:
        collator ([`MultimodalCollator`]): Collator of the rows.
        limits ([`ReadingLimits`]): Limits for a clip.
    """

    def __init__(self, collator: MultimodalCollator, limits: ReadingLimits):
        self.collator = collator
        self.limits = limits
        self.num_starts = 0
        self.pid: int | None = None
        self.is_ready = threading.Event()
        self._process: BaseProcess | None = None

    def check(self) -> None:
        """Start the process, or replace it if it has ended, and note when it is ready."""
        try:
            if self._process is None or not self._process.is_alive():
                self.end()
                self._start()
            elif not self.is_ready.is_set() and self._connection.poll():
                self._receive(0.0)
        except (EOFError, OSError) as error:  # tried again when a clip comes, and after some time
            logger.warning("A process that reads clips does not start: %s", error)

    def read(self, row: Row) -> Batch | Exception:
        """Return the batch of a clip, or why there is none."""
        for _ in range(2):
            try:
                if self._process is None:
                    self._start()
                if not self.is_ready.is_set():
                    self._receive(START_SECONDS)
                self._connection.send(row)
                self._receive(GRACE_SECONDS)  # it has the clip
                break
            except (EOFError, OSError):  # it ended before it had the clip
                self.end()
        else:
            return ReaderLostError(NO_START)
        try:
            return self._receive(self.limits.read_seconds + GRACE_SECONDS)
        except (EOFError, OSError):  # OSError: it has taken the memory of the batch with it
            self.end()
            return ReaderLostError("the process that read the clip was ended")

    def end(self, *, patience_seconds: float = 0.0) -> None:
        """End the process, by force if it does not end in time."""
        self.is_ready.clear()
        if self._process is not None:
            self._connection.close()  # tells it to end
            self._process.join(patience_seconds)
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = self.pid = None

    def _start(self) -> None:
        context = multiprocessing.get_context(START_METHOD)
        context.set_forkserver_preload([read_clips.__module__])
        self._connection, connection = context.Pipe()
        process = context.Process(
            target=read_clips, args=(connection, self.collator, self.limits), name="clip reader", daemon=True
        )
        self.num_starts += 1
        with connection, _starting, blocking_sigterm(START_METHOD), finding_same_modules():
            process.start()
        self._process = process
        self.pid = process.pid

    def _receive(self, timeout_seconds: float) -> Any:
        """Return the next message. The first one says that the process is ready."""
        if not self._connection.poll(timeout_seconds):
            raise TimeoutError
        message = self._connection.recv()
        self.is_ready.set()
        return message


@contextlib.contextmanager
def finding_same_modules() -> Iterator[None]:
    """Return a context in which a Python that is started finds modules where this one does. The server of processes
    would look into the working directory first, whose code is not to be run.
    """
    changed = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
