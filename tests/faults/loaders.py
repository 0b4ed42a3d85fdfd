"""Loader processes for `test_endings.py`, in a module that a process can import quickly."""

import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path

from simple_multimodal.data.loader_processes import LoaderInit, blocking_sigterm


def load(folder: Path) -> None:
    """Work as a loader process, which writes its process id to a file, until the end of this process."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # as libraries do when they are imported
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    null = os.open(os.devnull, os.O_RDONLY)
    for _ in range(1024):  # a loader process shares memory with its owner through files
        os.dup(null)
    LoaderInit(lambda worker: (folder / str(worker)).touch())(7)
    (folder / "incomplete").write_text(str(os.getpid()))
    (folder / "incomplete").rename(folder / "pid")
    threading.Event().wait()


def own(start_method: str, folder: Path) -> None:
    """Work as the owner of a loader process, which a thread starts that then ends. When the file `end` exists, tell
    the loader process to end, and write its exit code.
    """
    process = multiprocessing.get_context(start_method).Process(target=load, args=(folder,))

    def start() -> None:
        with blocking_sigterm(start_method):
            process.start()
        _wait_for(folder / "pid")

    starting = threading.Thread(target=start)
    starting.start()
    starting.join()
    _wait_for(folder / "end")
    process.terminate()
    process.join()
    (folder / "code").write_text(str(process.exitcode))


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)
