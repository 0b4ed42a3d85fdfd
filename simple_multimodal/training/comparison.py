"""Compare the results of two runs: weights, optimizer state and logs."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from simple_multimodal.errors import InputError
from simple_multimodal.missing import no_such_folder
from simple_multimodal.training.checkpoints import STATE_FILE

TIMES = ("_runtime", "_per_second", "data_wait_share")
"""Endings of the names of logged times, which always differ."""


def compare_folders(first: str | os.PathLike, second: str | os.PathLike) -> tuple[list[str], int]:
    """
    Compare two checkpoints or model folders bit for bit: weights, and optimizer state and logged values if both have
    them.

    Args:
        first, second (`str` or `os.PathLike`): Folders to compare.

    Returns:
        `tuple[list[str], int]`: A line for each tensor or number that differs, with where and by how much; and the
        number of compared ones.

    Raises:
        ValueError: If a folder has no weights.
    """
    sides = [_values(Path(folder)) for folder in (first, second)]
    in_both = [part for part in sides[0] if part in sides[1]]
    left, right = ({name: value for part in in_both for name, value in side[part].items()} for side in sides)
    lines = []
    for name in dict.fromkeys([*left, *right]):
        if name not in left or name not in right:
            lines.append(f"{name}: only in {first if name in left else second}")
        elif (difference := _difference(left[name], right[name])) is not None:
            lines.append(f"{name}: {difference}")
    return lines, len(left.keys() | right.keys())


def _values(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors and numbers of a folder by name, for each part: `weights` and, if it has them, `optimizer`
    and `logs`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: {no_such_folder(folder)}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{str(folder)!r} has no weights (*.safetensors). Give a checkpoint or a model folder.")
    parts: dict[str, dict[str, Any]] = {"weights": {}}
    for file in files:
        parts["weights"] |= load_file(file)
    if (folder / "optimizer.pt").is_file():
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        parts["optimizer"] = dict(_leaves("optimizer", state))
    if (folder / STATE_FILE).is_file():
        parts["logs"] = {}
        for entry in json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["log_history"]:
            step = entry.pop("step")
            logged = {name: value for name, value in entry.items() if not name.endswith(TIMES)}
            parts["logs"] |= _leaves(f"step {step}", logged)
    return parts


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(f"{name}.{key}", item)
    else:
        yield name, value


def _difference(first: Any, second: Any) -> str | None:
    """Describe how two tensors or values differ; return `None` if they are equal in every bit."""
    if isinstance(first, bool | int | float) and isinstance(second, bool | int | float):
        first, second = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return None if first == second else f"{first!r} and {second!r}"
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return f"{first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"
    left, right = first.reshape(-1), second.reshape(-1)
    if torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
        return None
    left, right = left.double(), right.double()
    differs = ~((left == right) | (left.isnan() & right.isnan()))
    gaps = torch.where(differs, (left - right).abs(), 0.0)
    place = int(gaps.nan_to_num(torch.inf).argmax())
    where = [int(i) for i in torch.unravel_index(torch.tensor(place), first.shape)] if first.ndim else []
    return (
        f"{int(differs.sum())} of {len(left)} values differ, by at most {float(gaps[place]):.3g} at {where}: "
        f"{float(left[place])!r} and {float(right[place])!r}"
    )


def repeat(
    command: Sequence[str], *, num_runs: int, output_dir: str | os.PathLike
) -> Iterator[tuple[Path, list[str], int]]:
    """
    Train several times with the same command, each time in a new process, and compare each run with the first.

    Args:
        command (`Sequence[str]`): Words of a training command; `--output_dir` is added to it.
        num_runs (`int`): Number of runs, at least 2.
        output_dir (`str` or `os.PathLike`): Folder for `run-1`, `run-2`, ...; existing runs are resumed.

    Yields:
        `tuple[Path, list[str], int]`: Folder of each run but the first, and the result of [`compare_folders`] for it
        and the first.

    Raises:
        ValueError: If there are fewer than two runs, or the command fails.
    """
    if num_runs < 2:
        raise InputError(f"--runs is {num_runs}; give 2 or more.")
    folders = [Path(output_dir, f"run-{number + 1}") for number in range(num_runs)]
    for folder in folders:
        code = subprocess.run([*command, "--output_dir", str(folder)]).returncode
        if code != 0:
            raise InputError(f"The command for {folder} failed with exit code {code}; see its messages above.")
        if folder != folders[0]:
            yield (folder, *compare_folders(folders[0], folder))
