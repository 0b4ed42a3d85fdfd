"""Finished parts of a long job in files, from which the job goes on when it was interrupted."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from simple_multimodal.data.store import ClipStore, Tensors, Unreadable

SECONDS_BETWEEN_FILES = 30.0
"""A process that is killed loses about so much work at most."""


def process_state() -> PartialState:
    """The processes of a launcher that share the work; on CPUs, too, where accelerate has to be told."""
    return PartialState(cpu=not torch.accelerator.is_available())


class PartRow(NamedTuple):
    """A row of a part of a job."""

    part: int
    row: int


class Partial:
    """
    The parts of one stage of a job, numbered from 0, in a [`ClipStore`] without an index: whatever is whole counts.
    All processes make it together; part `n` belongs to process `n % num_processes`, of however many there are now.

    Args:
        folder (`Path`, *optional*): where stages are kept, each in a folder of its own; `None`: nowhere.
        stage (`str`): its name.
        key (`str`): names all that the parts depend on. Those of another key, and damaged ones, are removed.

    Attributes:
        finished (`dict[int, list[Tensors | Unreadable]]`): this process's parts that an earlier run has left: what
            was made of each of their rows.
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
        # One process of a node removes what is of no use before the others look, and nobody writes before all have.
        for is_first in (True, False):
            if state.is_local_main_process == is_first:
                self._store = ClipStore.resume(folder / stage, PartRow, {"key": key}, replaces=True)
            state.wait_for_everyone()
        assert self._store is not None
        self._number, self._step = self._store.next_number + state.process_index, state.num_processes
        for place in self._store:
            if place.part % state.num_processes == state.process_index:
                content = self._store.unreadable.get(place) or {
                    name: tensor.clone()  # no view, which would be sent to other processes with its whole file
                    for name, tensor in self._store.read(place).items()
                }
                self.finished.setdefault(place.part, []).append(content)

    def add(self, number: int, rows: Sequence[Tensors | Unreadable]) -> None:
        """Keep a part; it reaches its shard within `SECONDS_BETWEEN_FILES`, or with the next part after that."""
        if self._store is None:
            return
        self._pending |= {PartRow(number, row): content for row, content in enumerate(rows)}
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_FILES:
            self.flush()

    def flush(self) -> None:
        """Write what is not in a shard yet."""
        if self._store is not None and self._pending:
            self._store.append(self._number, self._pending)
            self._number += self._step
            self._pending = {}
        self._written_at = time.monotonic()
