"""Run a model on batches of requests that arrive one by one."""

import math
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

from simple_multimodal.errors import InputError
from simple_multimodal.serving.waiting import ClosedError, Item, Job, Result, WaitingJobs


class Batcher(Generic[Item, Result]):
    """
    Runs a model in one thread on what is waiting: the requests that came in while a batch ran are the next batch. No
    request waits for others to arrive, so one that comes alone runs alone.

    If a batch raises an error, its requests are run one by one, and only those that fail again get their error. This
    includes running out of memory. `SystemExit` and other exceptions that are not an `Exception` end the batcher: the
    requests that are running or waiting get a [`ClosedError`], and new ones are refused.

    Args:
        run (`Callable`): Function of a list of items that returns a list of their results, in the same order. It is
            only called in the batcher's thread.
        max_batch_size (`int`, *optional*, defaults to 16): Maximum number of items to run at once.
        max_waiting (`int`, *optional*, defaults to 256): Number of items that may wait; further ones are refused.
        max_waiting_bytes (`int`, *optional*, defaults to 1 GiB): Memory that waiting items may hold together, as given
            to [`submit`]. Those that are running come on top: at most `max_batch_size` items.

    Attributes:
        waiting ([`WaitingJobs`]): The queue, with its counters.
        batch_sizes (`Counter[int]`): How often the model was run on each number of items.
        num_failed_batches (`int`): Number of batches of several items that raised an error.
        num_errors (`int`): Number of items that got an error of the model.

    Example:

    ```python
    >>> batcher = Batcher(lambda texts: [len(text) for text in texts])
    >>> batcher.submit("a dog").result()
    5
    >>> await result_of(batcher.submit("two cats", deadline=time.monotonic() + 10.0))  # in a coroutine
    8
    >>> batcher.close()
    ```
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch_size: int = 16,
        max_waiting: int = 256,
        max_waiting_bytes: float = 2**30,
    ):
        if min(max_batch_size, max_waiting) < 1:
            raise InputError(
                f"`max_batch_size` and `max_waiting` must be 1 or more, got {max_batch_size} and {max_waiting}."
            )
        self.run = run
        self.max_batch_size = max_batch_size
        self.waiting: WaitingJobs[Item, Result] = WaitingJobs(
            max_waiting=max_waiting, max_waiting_bytes=max_waiting_bytes
        )
        self.batch_sizes: Counter[int] = Counter()
        self.num_failed_batches = 0
        self.num_errors = 0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether requests are accepted."""
        return not self.waiting.is_closed

    def submit(
        self, item: Item, *, key: Hashable = None, num_bytes: int = 0, deadline: float = math.inf
    ) -> Job[Item, Result]:
        """
        Add an item to the next batch of its kind.

        Args:
            item (`Any`): What `run` takes.
            key (`Hashable`, *optional*): Items are only batched with those of an equal key.
            num_bytes (`int`, *optional*, defaults to 0): Memory that the item holds.
            deadline (`float`, *optional*): Time by `time.monotonic` after which the item is not run any more; by
                default there is none.

        Returns:
            [`Job`]: Future of the result, a `concurrent.futures.Future`; see [`result_of`] for coroutines. Cancelling
            it removes the item from the queue. It raises the error of `run`, [`DeadlineError`] or [`ClosedError`].

        Raises:
            QueueFullError: If too many items are waiting, or they hold too much memory.
            ClosedError: If the batcher is closed.
        """
        return self.waiting.put(item, key=key, num_bytes=num_bytes, deadline=deadline)

    def close(self, *, drain: bool = True) -> None:
        """
        Refuse new items, and wait until the accepted ones are answered.

        Args:
            drain (`bool`, *optional*, defaults to `True`): Whether to run the items that are waiting; otherwise they
                get a [`ClosedError`]. The batch that is running is finished in both cases.
        """
        self.waiting.close(drain=drain)
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self.waiting.take(self.max_batch_size)) is not None:
            self._answer(jobs)
            del jobs  # with their results, while others are waited for

    def _answer(self, jobs: Sequence[Job[Item, Result]]) -> None:
        """Run jobs together, or if that fails one by one."""
        try:
            if not self._attempt(jobs):
                for job in jobs:
                    self._attempt([job])
        except BaseException:
            self.waiting.close(drain=False)
            for job in jobs:
                if not job.done():
                    job.finish(error=ClosedError("the model ended while it processed the request"))
            raise

    def _attempt(self, jobs: Sequence[Job[Item, Result]]) -> bool:
        """Run jobs as one batch and answer them; return whether they were answered."""
        self.batch_sizes[len(jobs)] += 1
        try:
            results = self.run([job.item for job in jobs])
            if len(results) != len(jobs):
                raise RuntimeError(f"the model returned {len(results)} results for {len(jobs)} items")
        except Exception as error:
            if len(jobs) > 1:
                # The error must be gone before the next attempt: its traceback holds the memory that ran out.
                self.num_failed_batches += 1
                return False
            self.num_errors += 1
            traceback.clear_frames(error.__traceback__)  # whose variables hold the tensors of the batch
            jobs[0].finish(error=error)
            return True
        for job, result in zip(jobs, results, strict=True):
            job.finish(result)
        return True
