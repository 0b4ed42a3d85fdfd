"""What to say of a file or a folder that is not there: whether the hub was asked for it, and the nearest names."""

import difflib
import os
import re
from enum import Enum
from pathlib import Path

NUM_NAMES = 3
"""That are suggested at most."""


class Named(Enum):
    """What a flag or an argument names. It is looked for before anything is imported that takes seconds."""

    PATH = "a file or a folder"
    MANIFEST = "a file, in --data_root if it is there"
    MODEL = "a file, a folder, or a name on the hub"

    def check(self, name: str | os.PathLike[str], flag: str = "") -> None:
        """
        Check that what is named exists, or that it may be a name on the hub.

        Args:
            name (`str` or `os.PathLike`): Path or name.
            flag (`str`, *optional*): The flag that names it, for the message.

        Raises:
            ValueError: If it does not exist; the message has the nearest names.
        """
        if not Path(name).exists() and not (self is Named.MODEL and _may_be_on_hub(os.fspath(name))):
            raise ValueError(f"{flag} {os.fspath(name)}: {no_such_folder(name)}".lstrip())


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
    if not _may_be_on_hub(name):
        return no_such_folder(name)
    return f"{no_such_folder(name)} As a name on the hub: {reason}"


def no_such_folder(name_or_path: str | os.PathLike[str]) -> str:
    """That there is no such folder (or file, if the name has a suffix), and which have a similar name."""
    path = Path(name_or_path)
    found = [os.fspath(near) if path.is_absolute() else os.path.relpath(near) for near in _nearest(path.absolute())]
    nearest = f" Did you mean {' or '.join(map(repr, found[:NUM_NAMES]))}?" if found else ""
    return f"no such {'file' if _is_file_name(path) else 'folder'}.{nearest}"


def _may_be_on_hub(name: str) -> bool:
    is_hub_name = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    return is_hub_name and not ("/" in name and Path(name).parent.is_dir())


def _is_file_name(path: Path) -> bool:
    """Whether a name ends like that of a file, and not like `outputs/version-1.5`."""
    return path.suffix[1:2].isalpha()  # `.mp4` as well as `.csv`


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
