"""What flags and arguments name: checks that it exists, and what is said if it does not or cannot be read."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path

from simple_multimodal.errors import InputError

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
        if not Path(name).exists() and (self is not Named.MODEL or _is_path(os.fspath(name))):
            raise InputError(f"{flag} {os.fspath(name)}: {no_such_folder(name)}".lstrip())


@contextmanager
def reading(name_or_path: str | os.PathLike[str], problem: str) -> Iterator[None]:
    """
    A context in which a model or a part of one is read.

    A name that can only be a path is not looked for on the hub, which would take its time to find nothing.

    Args:
        name_or_path (`str` or `os.PathLike`): a folder, a file, or a name on the hub.
        problem (`str`): what to say before the reason if it cannot be read.

    Raises:
        ValueError: If it does not exist or cannot be read; one line, with the nearest names that exist.
    """
    name = os.fspath(name_or_path)
    if _is_path(name) and not Path(name).exists():
        raise InputError(f"{problem} {no_such_folder(name)}")
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        if not Path(name).exists():
            reason = f"{no_such_folder(name)} As a name on the hub: {reason}"
        raise InputError(f"{problem} {reason}") from error


def reading_model(name_or_path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """[`reading`], of a saved model."""
    return reading(name_or_path, f"{os.fspath(name_or_path)} is not a saved model:")


def _is_path(name: str) -> bool:
    """Whether a name cannot be one on the hub, which is one or two words, or begins with a folder that exists."""
    first, *rest = name.split("/")
    return not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or (bool(rest) and Path(first).is_dir())


def no_such_folder(name_or_path: str | os.PathLike[str]) -> str:
    """That there is no such folder (or file, if the name has a suffix), and which have a similar name."""
    path = Path(os.path.expanduser(name_or_path))
    found = [os.fspath(near) if path.is_absolute() else os.path.relpath(near) for near in _nearest(path.absolute())]
    nearest = f" Did you mean {' or '.join(map(repr, found[:NUM_NAMES]))}?" if found else ""
    return f"no such {'file' if _is_file_name(path) else 'folder'}.{nearest}"


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
