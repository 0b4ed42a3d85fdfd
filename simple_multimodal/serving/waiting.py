"""A bounded queue of requests, which drops those that nobody waits for any more."""

import asyncio
import math
import threading
import time
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(RuntimeError):
    """A request was refused because too many are waiting. It may be sent again later."""


class DeadlineError(RuntimeError):
    """A request was dropped because its deadline passed while it was waiting."""


class ClosedError(RuntimeError):
    """A request was refused, or dropped while it was waiting, because the queue is closed."""


class Job(Future, Generic[Item, Result]):
    """
    A request and the future of its result. A job that is cancelled while it is waiting leaves the queue at once.

    Args:
        queue ([`WaitingJobs`]): The queue that the job waits in.
        item (`Any`): The request.
        key (`Hashable`): Jobs are batched only with those of an equal key.
        num_bytes (`int`): Memory that the item holds.
        deadline (`float`): Time by `time.monotonic` after which nobody waits for the result.
    """

    def __init__(self, queue: "WaitingJobs", item: Item, key: Hashable, num_bytes: int, deadline: float):
        super().__init__()
        self.item = item
        self.key = key
        self.num_bytes = num_bytes
        self.deadline = deadline
        self._queue = queue

    def cancel(self) -> bool:
        """Cancel the job, unless it is running or finished; return whether it is cancelled."""
        is_cancelled = super().cancel()
        if is_cancelled:
            self._queue.forget(self)
        return is_cancelled

    def finish(self, result: Result | None = None, error: BaseException | None = None) -> None:
        """Set the result or the error of a running job, and release its item."""
        del self.item  # the future may be held for longer than the tensors of the request are needed
        if error is None:
            self.set_result(result)
        else:
            self.set_exception(error)


async def result_of(job: Job[Any, Result]) -> Result:
    """
    Return the result of a job to a coroutine; if the coroutine is cancelled, so is the job, unless it is running.

    `asyncio.wrap_future` does the same, but leaves a reference cycle that holds the result until the garbage collector
    finds it: for a clip, megabytes of memory.

    Raises:
        DeadlineError: If the deadline of the job passed while it was waiting.
        ClosedError: If the queue was closed while the job was waiting.
        Exception: What the function that processed the job raised.
    """
    loop = asyncio.get_running_loop()
    is_done = asyncio.Event()
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(is_done.set))
    try:
        await is_done.wait()
    except asyncio.CancelledError:
        job.cancel()
        raise
    return job.result()


class WaitingJobs(Generic[Item, Result]):
    """
    A bounded queue of jobs, for any number of threads.

    Args:
        max_waiting (`int`): Number of jobs that may wait.
        max_waiting_bytes (`int`, *optional*): Memory that the items of waiting jobs may hold together; by default
            there is no limit.

    Attributes:
        num_waiting (`int`): Number of jobs that are waiting.
        waiting_bytes (`int`): Memory that their items hold.
        num_accepted (`int`): Number of jobs that were accepted so far.
        num_refused (`int`): Number of jobs that were refused because the queue was full.
        num_cancelled (`int`): Number of jobs that were cancelled while they were waiting.
        num_expired (`int`): Number of jobs whose deadline passed while they were waiting.
    """

    def __init__(self, *, max_waiting: int, max_waiting_bytes: float = math.inf):
        self.max_waiting = max_waiting
        self.max_waiting_bytes = max_waiting_bytes
        self.waiting_bytes = 0
        self.num_accepted = 0
        self.num_refused = 0
        self.num_cancelled = 0
        self.num_expired = 0
        self.is_closed = False
        self._jobs: dict[Job[Item, Result], None] = {}  # in the order of arrival
        self._changed = threading.Condition()

    @property
    def num_waiting(self) -> int:
        return len(self._jobs)

    def put(
        self, item: Item, *, key: Hashable = None, num_bytes: int = 0, deadline: float = math.inf
    ) -> Job[Item, Result]:
        """
        Add a job; the arguments are those of [`Job`].

        Raises:
            QueueFullError: If there are too many jobs, or their items hold too much memory.
            ClosedError: If the queue is closed.
        """
        job: Job[Item, Result] = Job(self, item, key, num_bytes, deadline)
        with self._changed:
            if self.is_closed:
                raise ClosedError("no more requests are accepted")
            if len(self._jobs) >= self.max_waiting or self.waiting_bytes + num_bytes > self.max_waiting_bytes:
                self.num_refused += 1
                raise QueueFullError(
                    f"{len(self._jobs)} requests of {self.waiting_bytes} bytes are waiting; try again later"
                )
            self.num_accepted += 1
            self.waiting_bytes += num_bytes
            self._jobs[job] = None
            self._changed.notify()
        return job

    def take(self, max_jobs: int = 1, *, timeout_seconds: float | None = None) -> list[Job[Item, Result]] | None:
        """
        Wait for jobs and remove them from the queue: the one that has waited longest, and those that have the same
        key, in the order of arrival. Jobs whose deadline has passed get a [`DeadlineError`].

        Args:
            max_jobs (`int`, *optional*, defaults to 1): Maximum number of jobs.
            timeout_seconds (`float`, *optional*): Time after which to return an empty list; by default never.

        Returns:
            `list[Job]`: Jobs that are running from now on, which the caller must [`~Job.finish`]; `None` if the queue
            is closed and empty.
        """
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._jobs or self.is_closed, timeout_seconds):
                    return []
                if not self._jobs:
                    return None
                now = time.monotonic()
                expired = [job for job in self._jobs if job.deadline <= now]
                for job in expired:
                    self._remove(job)
                alike = [job for job in self._jobs if job.key == next(iter(self._jobs)).key]
                taken = alike[:max_jobs]
                for job in taken:
                    self._remove(job)
            expired = [job for job in expired if self._starts(job)]
            with self._changed:
                self.num_expired += len(expired)
            for job in expired:
                job.finish(error=DeadlineError("the request was not processed within its time limit"))
            started = [job for job in taken if self._starts(job)]
            if started:
                return started

    def forget(self, job: Job[Item, Result]) -> None:
        """Remove a job that was cancelled, if it is still waiting."""
        with self._changed:
            if job in self._jobs:
                self._remove(job)
                self.num_cancelled += 1

    def close(self, *, drain: bool = True) -> None:
        """
        Accept no more jobs.

        Args:
            drain (`bool`, *optional*, defaults to `True`): Keep the jobs that are waiting, so that they are processed.
                Otherwise they get a [`ClosedError`].
        """
        with self._changed:
            self.is_closed = True
            dropped = [] if drain else list(self._jobs)
            for job in dropped:
                self._remove(job)
            self._changed.notify_all()
        for job in dropped:
            if self._starts(job):
                job.finish(error=ClosedError("the request was not processed before the end of the server"))

    def _remove(self, job: Job[Item, Result]) -> None:
        del self._jobs[job]
        self.waiting_bytes -= job.num_bytes

    def _starts(self, job: Job[Item, Result]) -> bool:
        """Mark a job that was removed from the queue as running, unless it was cancelled at that moment."""
        is_wanted = job.set_running_or_notify_cancel()
        if not is_wanted:
            with self._changed:
                self.num_cancelled += 1
        return is_wanted
