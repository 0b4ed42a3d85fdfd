"""Whether two runs came out the same: their weights, their optimizer's state and what they logged."""

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
"""How the names of logged values end that are times, and never the same twice."""


def compare_folders(first: str | os.PathLike, second: str | os.PathLike) -> tuple[list[str], int]:
    """
    Compare two checkpoints or model folders bit for bit: weights, and where both have them the optimizer's state and
    logged values.

    Args:
        first, second (`str` or `os.PathLike`): folders.

    Returns:
        `tuple[list[str], int]`: a line for each tensor or number that differs, with where and how far apart it is; and
        how many were compared.

    Raises:
        ValueError: If a folder holds no weights.
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
    """Tensors and numbers of the parts of a folder, by name: `weights`, and what it has of `optimizer` and `logs`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {no_such_folder(folder)}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{str(folder)!r} holds no weights (*.safetensors). Give a checkpoint or a model folder.")
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
    """How two tensors or values differ; `None` if every bit is the same."""
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
        f"{int(differs.sum())} of {len(left)} values differ, most by {float(gaps[place]):.3g} at {where}: "
        f"{float(left[place])!r} and {float(right[place])!r}"
    )


def repeat(
    command: Sequence[str], *, num_runs: int, output_dir: str | os.PathLike
) -> Iterator[tuple[Path, list[str], int]]:
    """
    Train several times with one command, each time in a fresh process, and compare each run with the first.

    Args:
        command (`Sequence[str]`): the words of a train command; `--output_dir` is added to it.
        num_runs (`int`): at least 2.
        output_dir (`str` or `os.PathLike`): folder for `run-1`, `run-2`, ...; a run that is there is gone on with.

    Yields:
        `tuple[Path, list[str], int]`: the folder of a run but the first, and [`compare_folders`] of it and the first.

    Raises:
        ValueError: If there are fewer than two runs, or the command fails.
    """
    if num_runs < 2:
        raise InputError(f"--runs is {num_runs}; give 2 or more, to have something to compare.")
    folders = [Path(output_dir, f"run-{number + 1}") for number in range(num_runs)]
    for folder in folders:
        code = subprocess.run([*command, "--output_dir", str(folder)]).returncode
        if code != 0:
            raise InputError(f"The command for {folder} ended with exit code {code}; its messages stand above.")
        if folder != folders[0]:
            yield (folder, *compare_folders(folders[0], folder))
