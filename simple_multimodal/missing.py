"""What to say of a model's folder that is not there: whether the hub was asked for it, and the nearest names."""

import difflib
import os
import re
from pathlib import Path

NUM_NAMES = 3
"""That are suggested at most."""


def explain(name_or_path: str | os.PathLike[str], error: BaseException) -> str:
    """
    Why a model or a part of one could not be read, in one line.

    Args:
        name_or_path (`str` or `os.PathLike`): a folder, a file, or a name on the hub.
        error (`BaseException`): what reading it raised.

    Returns:
        `str`: what was raised, if there is a file or a folder of this name; else that there is none, with the nearest
            names, and what was raised only if the name may have been meant for the hub: one or two words, of which the
            first is no folder here.
    """
    name, reason = os.fspath(name_or_path), " ".join(str(error).split())
    if Path(name).exists():
        return reason
    may_be_on_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) and not ("/" in name and Path(name).parent.is_dir())
    if not may_be_on_hub:
        return no_such_folder(name)
    return f"{no_such_folder(name)} As a name on the hub: {reason}"


def no_such_folder(name_or_path: str | os.PathLike[str]) -> str:
    """That there is no such folder (or file, if the name has a suffix), and which have a similar name."""
    path = Path(name_or_path)
    found = [os.fspath(near) if path.is_absolute() else os.path.relpath(near) for near in _nearest(path.absolute())]
    nearest = f" Did you mean {' or '.join(map(repr, found[:NUM_NAMES]))}?" if found else ""
    return f"no such {'file' if _is_file_name(path) else 'folder'}.{nearest}"


def _is_file_name(path: Path) -> bool:
    """Whether a name ends like that of a file, and not like `outputs/version-1.5`."""
    return path.suffix[1:].isalpha()


def _nearest(path: Path) -> list[Path]:
    """What exists under the names that are nearest to those of a path, as deep as there is any."""
    if path.exists():
        return [path]
    existing = next(folder for folder in path.parents if folder.is_dir())
    wrong, *rest = path.relative_to(existing).parts
    there = [p.name for p in existing.iterdir() if not p.name.startswith(".") and (_is_file_name(path) or p.is_dir())]
    found = []
    for near in difflib.get_close_matches(wrong, there, n=NUM_NAMES, cutoff=0.6):
        found += _nearest(existing.joinpath(near, *rest)) or [existing / near]
    return found
