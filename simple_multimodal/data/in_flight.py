"""Record of the files that a process is reading, in shared memory, so that they can be named if it dies."""

import contextlib
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

MAX_READINGS = 64
HEAD = struct.Struct("dqH")  # start by the monotonic clock (0: unused slot), row number, length of the path in bytes
SLOT_BYTES = 4096
POLL_SECONDS = 0.5


class Reading(NamedTuple):
    """A file that is being read: start time (by `time.monotonic`), number of its row, path."""

    started: float
    row: int
    path: str


class InFlight:
    """The files that the threads of one process are reading.

    Args:
        file (`int`, *optional*): Descriptor of the memory of another process's record; by default a new one.
    """

    def __init__(self, file: int | None = None):
        self.file = os.memfd_create("in_flight") if file is None else file
        os.ftruncate(self.file, MAX_READINGS * SLOT_BYTES)
        self._memory = mmap.mmap(self.file, MAX_READINGS * SLOT_BYTES)
        self._free = list(range(MAX_READINGS))

    @contextlib.contextmanager
    def reading(self, row: int, path: str) -> Iterator[None]:
        """Record that a file of a row is being read while the context is held."""
        try:
            slot = self._free.pop()  # atomic, as is `append`
        except IndexError:  # more threads than any machine has
            yield
            return
        name = os.fsencode(path)[: SLOT_BYTES - HEAD.size]
        begin = slot * SLOT_BYTES
        self._memory[begin + HEAD.size : begin + HEAD.size + len(name)] = name
        HEAD.pack_into(self._memory, begin, time.monotonic(), row, len(name))
        try:
            yield
        finally:
            HEAD.pack_into(self._memory, begin, 0.0, 0, 0)
            self._free.append(slot)

    def readings(self) -> list[Reading]:
        """Return the files that are being read, the longest-running first."""
        found = []
        for begin in range(0, MAX_READINGS * SLOT_BYTES, SLOT_BYTES):
            started, row, length = HEAD.unpack_from(self._memory, begin)
            if started:
                name = self._memory[begin + HEAD.size : begin + HEAD.size + length]
                found.append(Reading(started, row, os.fsdecode(name)))
        return sorted(found)

    def overdue(self, timeout_seconds: float) -> list[Reading]:
        """Return the files that have been read for longer than the timeout; 0: no limit."""
        limit = time.monotonic() - timeout_seconds
        return [reading for reading in self.readings() if timeout_seconds and reading.started < limit]

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
        os.close(self.file)


def watch(file: int, process: int, timeout_seconds: float) -> None:
    """
    Watch the parent process, and name the file if one crashes it or is not read in time.

    Args:
        file (`int`): Descriptor of the parent's record.
        process (`int`): Process id of the parent.
        timeout_seconds (`float`): Time after which a file ends the parent; 0: no limit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the parent handles them
        signal.signal(number, signal.SIG_IGN)
    in_flight = InFlight(file)
    remedy = "With `dataloader_num_workers` (for inference: `num_workers`) 1 or more, such a file costs one sample."
    while os.getppid() == process and not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        for reading in in_flight.overdue(timeout_seconds)[:1]:
            print(
                f"error: row {reading.row}: {reading.path} was not read within {timeout_seconds:g} seconds "
                f"(`sample_timeout_seconds`): process {process} is ended. {remedy}",
                file=sys.stderr,
            )
            os.kill(process, signal.SIGKILL)
            return
    for reading in in_flight.readings():
        print(
            f"error: process {process} died while it read row {reading.row}: {reading.path}. {remedy}", file=sys.stderr
        )


if __name__ == "__main__":  # as a script, which starts without loading the package
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
