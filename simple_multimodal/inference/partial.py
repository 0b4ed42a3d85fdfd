"""Finished parts of a long job, kept in files from which an interrupted job resumes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from simple_multimodal.data.store import ClipStore, Tensors, Unreadable

SECONDS_BETWEEN_FILES = 30.0
"""Largest amount of work, in seconds, that is lost if a process is killed."""


def process_state() -> PartialState:
    """Return the state of the processes that share the work; on CPUs accelerate has to be told to use them."""
    return PartialState(cpu=not torch.accelerator.is_available())


class PartRow(NamedTuple):
    """Key of a row in a part of a job."""

    part: int
    row: int


class Partial:
    """
    The parts of one stage of a job, numbered from 0, in a [`ClipStore`] without an index: every complete shard counts.
    All processes must construct it together; part `n` belongs to process `n % num_processes`, with the current number
    of processes.

    Args:
        folder (`Path`, *optional*): Folder with one subfolder per stage; with `None` nothing is kept.
        stage (`str`): Name of the stage.
        key (`str`): Hash of everything that the parts depend on. Parts with another key, and damaged ones, are
            removed.

    Attributes:
        finished (`dict[int, list[Tensors | Unreadable]]`): Contents of each row of this process's parts that an
            earlier run has finished.
    """

    def __init__(self, folder: Path | None, stage: str, key: str):
        self.stage = stage
        self.finished: dict[int, list[Tensors | Unreadable]] = {}
        self._store: ClipStore[PartRow] | None = None
        self._pending: dict[PartRow, Tensors | Unreadable] = {}
        self._written_at = time.monotonic()
        if folder is None:
            return
        state = process_state()
        # One process per node removes unusable parts before the others read, and no process writes before all have.
        for is_first in (True, False):
            if state.is_local_main_process == is_first:
                self._store = ClipStore.resume(folder / stage, PartRow, {"key": key}, replaces=True)
            state.wait_for_everyone()
        assert self._store is not None
        self._number, self._step = self._store.next_number + state.process_index, state.num_processes
        for place in self._store:
            if place.part % state.num_processes == state.process_index:
                content = self._store.unreadable.get(place) or {
                    name: tensor.clone()  # not a view, which would be sent to other processes with its whole file
                    for name, tensor in self._store.read(place).items()
                }
                self.finished.setdefault(place.part, []).append(content)

    def add(self, number: int, rows: Sequence[Tensors | Unreadable]) -> None:
        """Keep a part; it is written after at most `SECONDS_BETWEEN_FILES`, or with the next part after that."""
        if self._store is None:
            return
        self._pending |= {PartRow(number, row): content for row, content in enumerate(rows)}
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_FILES:
            self.flush()

    def flush(self) -> None:
        """Write the parts that are not in a shard yet."""
        if self._store is not None and self._pending:
            self._store.append(self._number, self._pending)
            self._number += self._step
            self._pending = {}
        self._written_at = time.monotonic()
