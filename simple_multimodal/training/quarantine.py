"""The files that a run could not read: counted over all processes, logged, listed, and too many of them the end."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from accelerate.utils import gather_object
from transformers.utils import logging

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.errors import InputError

logger = logging.get_logger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"
MIN_SAMPLES = 100  # the share of bad samples is taken of at least as many


class Quarantine:
    """
    The list `quarantine.jsonl` of a run: one line for each file that could not be read, when it was met first.

    Args:
        folder (`str` or `os.PathLike`): folder of the run; what a list there holds already is not written again.
        starts_over (`bool`): remove such a list.
        writes (`bool`): whether this process is the one that logs and writes.
        max_bad_fraction (`float`): share of bad samples at which training stops.
    """

    def __init__(self, folder: str | os.PathLike, *, starts_over: bool, writes: bool, max_bad_fraction: float):
        self.path = Path(folder, QUARANTINE_FILE)
        self.writes = writes
        self.max_bad_fraction = max_bad_fraction
        self.num_samples = 0
        self.num_bad = 0
        self._new: list[tuple[int, BadSample]] = []
        self._num_new = 0
        self._listed: set[str] = set()
        if writes and starts_over:
            self.path.unlink(missing_ok=True)
        elif writes and self.path.exists():
            # A process that died may have left half a line, and what it wrote after its last checkpoint comes again.
            text = self.path.read_text(encoding="utf-8")
            self._listed = {_name(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")}
            if not text.endswith("\n"):
                self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    def add(self, bad_samples: Iterable[BadSample], num_samples: int, step: int) -> None:
        """Note what this process tried to read for an optimizer step: how many samples, the bad ones among them."""
        self._new += [(step, sample) for sample in bad_samples]
        self._num_new += num_samples

    def settle(self, split: str = "training") -> list[BadSample]:
        """
        Bring what all processes noted together, and write it; to be called by all of them.

        Args:
            split (`str`, *optional*, defaults to `"training"`): what the samples belong to.

        Returns:
            `list[BadSample]`: The bad ones of all processes since the last call, in the order of steps and rows.

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
            self.num_samples += num_samples
            if found and self.num_bad > self.max_bad_fraction * max(self.num_samples, MIN_SAMPLES):
                raise InputError(
                    f"{self.num_bad} of {self.num_samples} training samples could not be read, more than "
                    f"--max_bad_fraction {self.max_bad_fraction:g} of them; the last one: {found[-1][1].reason}. "
                    f"{self.path} lists the files."
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


def _name(line: dict) -> str:
    """What a line is about: its file, or the row where no file is named."""
    return line["file"] or f"{line['split']} row {line['id']}"
