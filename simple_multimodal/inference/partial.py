"""Finished parts of a long job in files, from which the job goes on when it was interrupted."""

import time
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simple_multimodal.output_folder import give_umask, write_atomically

SECONDS_BETWEEN_FILES = 30.0
"""A process that is killed loses about so much work at most."""


def process_state() -> PartialState:
    """The processes of a launcher that share the work; on CPUs, too, where accelerate has to be told."""
    return PartialState(cpu=not torch.accelerator.is_available())


def save_whole(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata)
        give_umask(temporary)


class Partial:
    """
    The parts of one stage of a job, numbered from 0. All processes make it together; part `n` belongs to process
    `n % num_processes`, of however many there are this time.

    Args:
        folder (`Path`, *optional*): where parts are kept; `None`: nowhere.
        stage (`str`): its name, which files begin with.
        key (`str`): names all that the parts depend on. Files of another key, and damaged ones, are removed.

    Attributes:
        finished (`dict[int, dict[str, torch.Tensor]]`): this process's parts that an earlier run has left.
    """

    def __init__(self, folder: Path | None, stage: str, key: str):
        self.folder = folder
        self.stage = stage
        self.key = key
        self.finished: dict[int, dict[str, torch.Tensor]] = {}
        self._pending: dict[str, torch.Tensor] = {}
        self._written_at = time.monotonic()
        if folder is None:
            return
        state = process_state()
        if state.is_local_main_process:
            for path in (*folder.glob(f"{stage}-*"), *folder.glob(f".{stage}-*.tmp")):
                if path.suffix != ".safetensors" or _key_of(path) != key:
                    path.unlink(missing_ok=True)
        state.wait_for_everyone()
        for path in folder.glob(f"{stage}-*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    number, _, entry = name.partition("/")
                    if int(number) % state.num_processes == state.process_index:
                        self.finished.setdefault(int(number), {})[entry] = file.get_tensor(name)

    def add(self, number: int, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a part; it reaches its file within `SECONDS_BETWEEN_FILES`, or with the next part after that."""
        if self.folder is None:
            return
        self._pending |= {f"{number}/{name}": tensor.contiguous() for name, tensor in tensors.items()}
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_FILES:
            self.flush()

    def flush(self) -> None:
        """Write what is not in a file yet."""
        if self.folder is not None and self._pending:
            first = next(iter(self._pending)).partition("/")[0]
            save_whole(self.folder / f"{self.stage}-{first}.safetensors", self._pending, {"key": self.key})
            self._pending = {}
        self._written_at = time.monotonic()


def _key_of(path: Path) -> str | None:
    """Key of a file; `None` if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("key")
    except (SafetensorError, OSError):
        return None
