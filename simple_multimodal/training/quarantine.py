"""Files that a run could not read, which are counted over all processes, logged and listed. Too many end the run."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers.utils import logging

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.errors import InputError

logger = logging.get_logger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"
MIN_SAMPLES = 100  # the fraction of bad samples is computed from at least this number


class Quarantine:
    """
    The list `quarantine.jsonl` of a run, with one line for each file that could not be read.

    Args:
        folder (`str` or `os.PathLike`): Folder of the run; files in an existing list are not written again.
        num_rows (`int`): Number of training rows.
        starts_over (`bool`): Whether to remove an existing list.
        writes (`bool`): Whether this process logs and writes.
        max_bad_fraction (`float`): Fraction of bad samples above which training stops.
    """

    def __init__(
        self, folder: str | os.PathLike, *, num_rows: int, starts_over: bool, writes: bool, max_bad_fraction: float
    ):
        self.path = Path(folder, QUARANTINE_FILE)
        self.num_rows = num_rows
        self.writes = writes
        self.max_bad_fraction = max_bad_fraction
        self.num_samples = 0
        self.num_bad = 0
        self._bad_rows: set[int] = set()  # a row is read, and counted in `num_bad`, again in each epoch
        self._new: list[tuple[int, BadSample]] = []
        self._num_new = 0
        self._listed: set[str] = set()
        if writes and starts_over:
            self.path.unlink(missing_ok=True)
        elif writes and self.path.exists():
            # A killed process may have left half a line, and lines after the last checkpoint will be written again.
            text = self.path.read_text(encoding="utf-8")
            self._listed = {_name(line) for line in listed_samples(folder)}
            if not text.endswith("\n"):
                self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    def add(self, bad_samples: Iterable[BadSample], num_samples: int, step: int) -> None:
        """Record the number of samples that this process tried to read for an optimizer step, and the bad ones."""
        self._new += [(step, sample) for sample in bad_samples]
        self._num_new += num_samples

    def settle(self, split: str = "training") -> list[BadSample]:
        """
        Gather the records of all processes and write them. All processes must call this.

        Args:
            split (`str`, *optional*, defaults to `"training"`): Split that the samples belong to.

        Returns:
            `list[BadSample]`: Bad samples of all processes since the last call, in the order of steps and rows.

        Raises:
            ValueError: If more than `max_bad_fraction` of the training samples are bad.
        """
        found = sorted(gather_object(self._new), key=lambda noted: (noted[0], noted[1][:2]))
        num_samples = sum(gather_object([self._num_new]))
        self._new, self._num_new = [], 0
        for step, sample in found if self.writes else ():
            self._write(sample, step, split)
        if split == "training":
            self.num_bad += len(found)
            self._bad_rows |= {sample.row for _, sample in found}
            self.num_samples += num_samples
            if found and self.num_bad > self.max_bad_fraction * max(self.num_samples, MIN_SAMPLES):
                raise InputError(
                    f"{len(self._bad_rows)} of {self.num_rows} training rows could not be read so far: "
                    f"{self.num_bad} of {self.num_samples} attempts failed, more than "
                    f"`max_bad_fraction={self.max_bad_fraction:g}` of them; the last one: "
                    f"{found[-1][1].reason.rstrip('.')}. {self.path} lists the files."
                )
        return [sample for _, sample in found]

    def _write(self, sample: BadSample, step: int, split: str) -> None:
        line: dict[str, str | int | None] = {"id": sample.id, "file": sample.file, "reason": sample.reason}
        line |= {"split": split, "epoch": sample.epoch, "step": step}
        if _name(line) in self._listed:
            return
        self._listed.add(_name(line))
        logger.warning(f"Bad sample: row {sample.row} (id {sample.id!r}) of the {split} rows: {sample.reason}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def listed_samples(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the complete lines of the list in a run's folder, one for each file; none if there is no list."""
    path = Path(folder, QUARANTINE_FILE)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _name(line: dict) -> str:
    """Return what a line is about: its file, or its row if it names no file."""
    return line["file"] or f"{line['split']} row {line['id']}"
