"""How loader processes take signals, and how they end with the process that they load for."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


class LoaderInit:
    """
    Makes a loader process ignore Ctrl-C, and SIGTERM unless its owner (the process that started it) sends it, and ends
    it with its owner.

    Schedulers send SIGTERM to every process of a job at once, as terminals send SIGINT, but batches are needed until
    the end of the step or evaluation.

    Args:
        then (`Callable`, *optional*): Function to call with the worker's number afterwards.
    """

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        owner = multiprocessing.parent_process()
        if sys.platform == "linux" and owner is not None:  # the sender of a signal is not known elsewhere
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in the threads that follow
            if os.getppid() == owner.pid:
                die_with(owner.pid)  # a loader only checks after 5 seconds or more
            else:  # a child of a forkserver, which outlives the owner; a loader would not notice its end at all
                threading.Thread(target=_exit_after, args=(owner,), daemon=True).start()
            threading.Thread(target=_exit_when_told, args=(owner.pid,), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends for any reason (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had already ended
        os._exit(1)


def _exit_after(owner: multiprocessing.process.BaseProcess) -> None:
    owner.join()
    os._exit(1)


def _exit_when_told(owner: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
        pass
    os._exit(0)
