"""Write the folder of a toy world, or complete one that was interrupted."""

import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from simple_multimodal.errors import InputError
from simple_multimodal.output_folder import LOCK_FILE
from simple_multimodal.progress import can_show_bars


def write_world(
    output_dir: Path,
    clips: Mapping[tuple[str, ...], Any],
    *,
    description: Mapping[str, object],
    write_clip: Callable[[Path, Any], None],
    write_manifests: Callable[[], None],
    num_processes: int,
) -> Path:
    """
    Write the clips of a world, then its manifests. A finished folder with the same description is left unchanged,
    missing files are added, and an interrupted run is completed.

    Args:
        output_dir (`Path`): Folder to write; new, empty, or of a world with the same description.
        clips (`Mapping[tuple[str, ...], Any]`): Each clip by the paths of its files, relative to the folder.
        description (`Mapping[str, object]`): What the files depend on, for `toy.json`.
        write_clip (`Callable`): Function of a module that writes the files of a clip below a folder.
        write_manifests (`Callable`): Writes the manifests.
        num_processes (`int`): Number of writing processes.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If the folder holds something else.
    """
    text = json.dumps(description, indent=2) + "\n"
    finished, unfinished = output_dir / "toy.json", output_dir / "toy.unfinished.json"
    is_finished = _check_folder(output_dir, text, finished, unfinished)
    missing = [clip for paths, clip in clips.items() if not all((output_dir / path).is_file() for path in paths)]
    if is_finished and not missing:
        return output_dir

    if not is_finished:
        output_dir.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
    for folder in {(output_dir / path).parent for paths in clips for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*.tmp"):  # from a run that was killed
            left_over.unlink()
    _write_clips(functools.partial(write_clip, output_dir), missing, num_processes)
    if not is_finished:
        write_manifests()
        os.replace(unfinished, finished)
    return output_dir


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a manifest as JSON Lines."""
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def check_at_least(smallest: int, **arguments: int) -> None:
    """Raise an error for the first argument below a number."""
    for name, value in arguments.items():
        if value < smallest:
            raise InputError(f"{name} must be at least {smallest}, got {value}.")


def _write_clips(write: Callable[[Any], None], clips: Sequence[Any], num_processes: int) -> None:
    num_processes = min(num_processes, len(clips))
    with tqdm(total=len(clips), desc="toy clips", unit="clip", disable=not can_show_bars()) as progress:
        if num_processes <= 1:
            for clip in clips:
                write(clip)
                progress.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            for _ in pool.map(write, clips, chunksize=8):
                progress.update()


def _check_folder(output_dir: Path, description: str, finished: Path, unfinished: Path) -> bool:
    """Return whether the folder already holds this world; raise an error if it holds anything else."""
    for marker in (finished, unfinished):
        if marker.is_file():
            if marker.read_text(encoding="utf-8") != description:
                raise InputError(
                    f"{output_dir} holds a toy world made with other arguments or by another version "
                    f"(see {marker.name}). Use the same arguments or another folder, or delete it."
                )
            return marker == finished
    if output_dir.exists() and (not output_dir.is_dir() or any(p.name != LOCK_FILE for p in output_dir.iterdir())):
        raise InputError(f"{output_dir} exists and is not a toy world. Choose a new or empty folder.")
    return False
