"""How the processes of a loader take signals, and how they end with the process that they load for, their owner."""

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, cast

from torch.utils.data import DataLoader

PR_SET_PDEATHSIG = 1


def protected(loader: DataLoader) -> DataLoader:
    """
    Make the processes of a loader ignore Ctrl-C, and SIGTERM unless their owner sends it (Linux), and end with it.

    Schedulers send SIGTERM to every process of a job at once, as terminals send SIGINT, but batches are needed until
    the end of the step or evaluation. A process that runs C code without releasing Python's lock only ends afterwards.

    Args:
        loader (`DataLoader`): A loader that has not started its processes; it is changed.

    Returns:
        `DataLoader`: The same loader.
    """
    if loader.num_workers == 0:
        return loader
    loader.worker_init_fn = LoaderInit(loader.worker_init_fn)
    get_iterator = loader._get_iterator  # starts the processes
    start_method = (loader.multiprocessing_context or multiprocessing).get_start_method()

    def get_iterator_without_sigterm() -> Any:
        with blocking_sigterm(start_method):
            return get_iterator()

    loader._get_iterator = get_iterator_without_sigterm  # type: ignore[method-assign]
    return loader


@contextlib.contextmanager
def blocking_sigterm(start_method: str) -> Iterator[None]:
    """
    Block SIGTERM in this thread, and in all threads of processes that it starts inside the context (Linux).

    Libraries start threads when they are imported. One that did not inherit the block would take the signal. A
    forkserver inherits it, too, unless it was already running.

    Args:
        start_method (`str`): How the processes are started: `"fork"`, `"spawn"` or `"forkserver"`.
    """
    if sys.platform != "linux":
        yield
        return
    if start_method != "fork":
        resource_tracker.ensure_running()  # if it were started together with a process, it would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class LoaderInit:
    """
    Prepares a process of a [`protected`] loader.

    Args:
        then (`Callable`, *optional*): Function to call with the worker's number afterwards.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        owner = multiprocessing.parent_process()
        if sys.platform == "linux" and owner is not None:  # the sender of a signal is not known elsewhere
            # The system would only tell when the thread that started this process ends, or, if that was a forkserver,
            # which lives on, not at all. A loader itself checks every 5 seconds, and not with a forkserver.
            threading.Thread(target=_exit_after, args=(owner,), daemon=True).start()
            threading.Thread(target=_exit_when_told, args=(owner.pid,), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def die_with(parent: int) -> None:
    """Have this process killed when the thread of its parent that started it ends for any reason (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had already ended
        os._exit(1)


def _exit_after(owner: BaseProcess) -> None:
    try:
        ending = os.pidfd_open(cast(int, owner.pid))
        if owner.is_alive():  # else this may be another process with the same number
            poll = select.poll()  # unlike `select.select`, takes descriptors above 1023
            poll.register(ending, select.POLLIN)
            poll.poll()
    except ProcessLookupError:
        pass
    except OSError:  # before Linux 5.3; this may be late, if a process that was forked later is still running
        owner.join()
    os._exit(1)


def _exit_when_told(owner: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
        pass
    os._exit(0)
