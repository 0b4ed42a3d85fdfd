"""What to say of a model's folder that is not there: whether the hub was asked for it, and the nearest names."""

import difflib
import os
import re
from pathlib import Path


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
    existing = path.absolute()
    while not existing.is_dir():
        existing = existing.parent
    wrong, *rest = path.absolute().relative_to(existing).parts or ("",)
    there = [p.name for p in existing.iterdir() if not p.name.startswith(".") and (path.suffix or p.is_dir())]
    found = [existing / near for near in difflib.get_close_matches(wrong, there, n=3, cutoff=0.6)]
    found = [deeper if (deeper := near.joinpath(*rest)).exists() else near for near in found]
    shown = [os.fspath(near) if path.is_absolute() else os.path.relpath(near) for near in found]
    nearest = f" Did you mean {' or '.join(map(repr, shown))}?" if shown else ""
    return f"no such {'file' if path.suffix else 'folder'}.{nearest}"
