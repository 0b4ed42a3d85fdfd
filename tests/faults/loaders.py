"""Loader processes for `test_endings.py`, in a module that a process can import quickly."""

import multiprocessing
import os
import threading
from pathlib import Path

from simple_multimodal.data.loader_processes import LoaderInit


def load(folder: Path) -> None:
    """Work as a loader process, which writes its process id to a file, until the end of this process."""
    LoaderInit(lambda worker: (folder / str(worker)).touch())(7)
    (folder / "incomplete").write_text(str(os.getpid()))
    (folder / "incomplete").rename(folder / "pid")
    threading.Event().wait()


def own(start_method: str, folder: Path) -> None:
    """Work as the owner of a loader process."""
    multiprocessing.get_context(start_method).Process(target=load, args=(folder,)).start()
    threading.Event().wait()
