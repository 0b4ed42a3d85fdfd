"""Run Python functions in forked processes, so that a crash, a hang or a bomb ends only that process."""

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple


class Ending(NamedTuple):
    """
    How a supervised call ended.

    Args:
        outcome (`str`): `"reads"`, `"refused"`, `"error"` (an exception that no caller expects), `"crash"` or
            `"hang"`.
        reason (`str`): The message, or the signal.
        seconds (`float`): Elapsed time.
        megabytes (`float`): Peak resident memory in excess of that at the start.
    """

    outcome: str
    reason: str
    seconds: float
    megabytes: float


def resident_megabytes() -> float:
    """Return the current resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def supervise(call: Callable[[], object], *, limit_seconds: float) -> Ending:
    """
    Call a function in a child process.

    Args:
        call (`Callable`): Function whose result is ignored. A `ValueError` (`MediaError` is one), `OSError` or
            `SystemExit` counts as refused.
        limit_seconds (`float`): Time after which the child is killed.
    """
    start = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(call, writing)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], limit_seconds)
    if not ready:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as file:
        answer = file.read() if ready else ""
    _, status = os.waitpid(child, 0)
    seconds = round(time.monotonic() - start, 3)
    if not ready:
        return Ending("hang", f"after {limit_seconds} seconds", seconds, 0.0)
    if not answer:
        return Ending("crash", f"exit status {os.waitstatus_to_exitcode(status)}", seconds, 0.0)
    outcome, reason, megabytes = json.loads(answer)
    return Ending(outcome, reason, seconds, megabytes)


def _child(call: Callable[[], object], writing: int) -> None:
    """Make the call, report its outcome, and exit in any case."""
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    before = resident_megabytes()
    try:
        call()
        outcome, reason = "reads", ""
    except (ValueError, OSError, SystemExit) as error:
        outcome, reason = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        outcome, reason = "error", f"{type(error).__name__}: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = json.dumps([outcome, " ".join(reason.split())[:300], round(max(peak - before, 0.0), 1)])
    os.write(writing, answer.encode())
    os._exit(0)
