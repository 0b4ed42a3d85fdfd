"""Which files a process is reading, in memory that another process sees, so that they have a name if it dies."""

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
HEAD = struct.Struct("dqH")  # begin by the monotonic clock (0: nothing is read), row number, bytes of the path
SLOT_BYTES = 4096
POLL_SECONDS = 0.5


class Reading(NamedTuple):
    """A file that is being read: since when (by `time.monotonic`), the number of its row, its path."""

    started: float
    row: int
    path: str


class InFlight:
    """The files that the threads of one process are reading.

    Args:
        file (`int`, *optional*): descriptor of the memory of another process's record; a new one without.
    """

    def __init__(self, file: int | None = None):
        self.file = os.memfd_create("in_flight") if file is None else file
        os.ftruncate(self.file, MAX_READINGS * SLOT_BYTES)
        self._memory = mmap.mmap(self.file, MAX_READINGS * SLOT_BYTES)
        self._free = list(range(MAX_READINGS))

    @contextlib.contextmanager
    def reading(self, row: int, path: str) -> Iterator[None]:
        """To be held while a file of a row is read."""
        try:
            slot = self._free.pop()  # atomic, as is `append`
        except IndexError:  # more threads than anyone has
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
        """What is being read, the longest first."""
        found = []
        for begin in range(0, MAX_READINGS * SLOT_BYTES, SLOT_BYTES):
            started, row, length = HEAD.unpack_from(self._memory, begin)
            if started:
                name = self._memory[begin + HEAD.size : begin + HEAD.size + length]
                found.append(Reading(started, row, os.fsdecode(name)))
        return sorted(found)

    def overdue(self, timeout_seconds: float) -> list[Reading]:
        """What is being read for longer than that; 0 is no limit."""
        limit = time.monotonic() - timeout_seconds
        return [reading for reading in self.readings() if timeout_seconds and reading.started < limit]

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self.file)


def watch(file: int, process: int, timeout_seconds: float) -> None:
    """
    Names the file that ended the parent process, if one did: that it died over, or was not done with in time.

    Args:
        file (`int`): descriptor of the parent's record.
        process (`int`): the parent.
        timeout_seconds (`float`): when to end it because of a file; 0: never.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the parent decides what to do
        signal.signal(number, signal.SIG_IGN)
    in_flight = InFlight(file)
    remedy = "With --dataloader_num_workers (for inference: --num_workers) 1 or more such a file costs one sample."
    while os.getppid() == process and not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        for reading in in_flight.overdue(timeout_seconds)[:1]:
            print(
                f"error: row {reading.row}: {reading.path} was not read within {timeout_seconds:g} seconds "
                f"(--sample_timeout_seconds): process {process} is ended. {remedy}",
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
