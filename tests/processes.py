"""Functions in fresh processes that start quickly.

Every process of a test would import torch and transformers, which takes longer than most of what it then does. Here
one process per pytest process imports them, never uses them, and is forked for each start.
"""

import gc
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from simple_multimodal.cli import main
from tests.faults.runs import free_port

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.faults.runs", "simple_multimodal.tasks.retrieval.retriever"])


LIMIT_SECONDS = 300.0


class Ended(NamedTuple):
    """How the processes of a launch ended: an exit code that is not 0, if there is one, and what all of them wrote."""

    returncode: int
    stdout: str
    stderr: str


def launch(num_processes: int, work: Callable[..., Any], *args: Any) -> Ended:
    """
    Call `work(*args)` in each of several processes, with the variables that torchrun sets for `env://`. If one fails,
    the others are killed, as by torchrun.

    The processes have the environment of this one, except that the libraries have read theirs when the first process
    was launched.
    """
    common = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    ends = time.monotonic() + LIMIT_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(num_processes):
                environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = os.path.join(folder, str(rank))
                processes.append(FORKSERVER.Process(target=_run, args=(environment, output, work, args)))
                processes[-1].start()
            while running := [process for process in processes if process.exitcode is None]:
                if any(process.exitcode for process in processes):
                    break
                if not wait([process.sentinel for process in running], timeout=max(ends - time.monotonic(), 0)):
                    raise TimeoutError(f"{len(running)} of {num_processes} processes still run. {_written(folder)}")
            codes = [process.exitcode for process in processes if process.exitcode]
        finally:
            for process in processes:
                process.kill()
                process.join()
        return Ended(codes[0] if codes else 0, *_written(folder))


def _written(folder: str) -> tuple[str, str]:
    out, err = ("".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{n}"))) for n in ("out", "err"))
    return out, err


def run_script(script: Path, argv: list[str], folder: Path | None = None) -> None:
    """Run a script as `python script argv...` does, in a folder."""
    if folder is not None:
        os.chdir(folder)
    sys.argv = [str(script), *argv]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def run_command(argv: list[str]) -> None:
    """Run `simple-multimodal argv...`."""
    sys.exit(main(argv))


def _run(environment: dict[str, str], output: str, work: Callable[..., Any], args: tuple) -> None:
    multiprocessing.set_start_method(None, force=True)  # the default, not the method by which this process was started
    gc.freeze()  # runs collect garbage, and need not look through all that the server has imported
    os.environ.clear()  # that of the server is as it was when it started
    os.environ |= environment
    for number, name in ((1, "out"), (2, "err")):
        with open(f"{output}.{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    work(*args)
