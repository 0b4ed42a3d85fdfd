"""Read the fields of a manifest: one function per kind of value, whatever the column and the file format."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, cast

from simple_multimodal.errors import InputError

# "http:", "concat:", "subfile,,start,0,end,9,,:": FFmpeg and URL schemes, with FFmpeg's options after commas. They
# have no spaces; titles have spaces after commas and colons.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(:(?!\s)|,,|,[^/\s]*:)|subfile,(?!\s)", re.IGNORECASE)

_SUSPECT = re.compile(r"[:,\\\0]|\.\.")  # every path that is refused by its form contains one of these

_CAPTIONS = (
    " If the cells are captions instead of files, rename the column to `caption` (`train.py --dataset_name`: add "
    "`--rename_columns text=caption`)."
)


def read_prose(value: Any, column: str) -> str | None:
    """Read a caption or a question: a string, stripped; `None` if there is none.

    Raises:
        ValueError: If the value is not a string.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"`{column}` must be a string, got {_shown(value)}.")
    return (value or "").strip() or None


def read_name(value: Any, column: str) -> str | None:
    """
    Read a name, such as an id, a group or an answer, as the text that a table cell would have: 3 is `"3"`, true is
    `"true"`, and strings are stripped. Return `None` if there is none.

    Raises:
        ValueError: If the value is a list, an object, or a number that is not finite.
    """
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"`{column}` must be a string, a number, true or false, got {_shown(value)}.")
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).strip() or None


def read_captions(value: Any, column: str) -> list[str] | None:
    """Read several captions of one clip: a list of strings that are not blank, or a cell with that list as JSON;
    `None` if there is none.

    Raises:
        ValueError: If the value is something else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass  # refused below, with the original text
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list) or not all(isinstance(caption, str) and caption.strip() for caption in value):
        raise InputError(
            f'`{column}` must be a JSON list of non-empty strings, such as ["a cat", "a cat purrs"], got '
            f"{_shown(value)}. One caption goes into the column `caption`."
        )
    return [caption.strip() for caption in value]


def read_seconds(value: Any, column: str) -> float | None:
    """Read a time in seconds, 0 or more, from a number or a string; `None` if there is none.

    Raises:
        ValueError: If the value is something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    seconds = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            pass  # refused below
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"`{column}` must be a time in seconds, 0 or more, got {_shown(value)}.")
    return seconds


def read_path(value: Any, column: str) -> str | None:
    """
    Read the path of a file, with the spaces around it, which may be part of its name; `None` if there is none. A path
    that could lead out of its root is refused by its form; no file is touched. An absolute path that is not below its
    root is refused later.

    Raises:
        ValueError: If the value is not a string, looks like a URL or an FFmpeg protocol, has a drive, leaves its
            folder by `..`, or contains a NUL character.
    """
    path = read_prose(value, column)
    if path is None or not _SUSPECT.search(path):
        return value if path else None
    problem = None
    if _PROTOCOL.match(path):
        problem = "looks like a URL or an FFmpeg protocol; a file of that name is written './…'"
    elif PureWindowsPath(path).anchor and not path.startswith("/"):
        problem = "is absolute, on a drive or a server"
    elif climbs(PurePosixPath(path).parts) or climbs(PureWindowsPath(path).parts):
        problem = "leaves its folder by '..'"
    elif "\0" in path:
        problem = "contains a NUL character"
    if problem:
        raise InputError(
            f"the path {_shown(path)} in column {column!r} {problem}. Give a file's path "
            f"relative to the root of the column (`{column}_root`).{captions_remedy(column)}"
        )
    return value


def captions_remedy(column: str) -> str:
    """Return the end of a message about the path of a file that is wrong or missing: what to do about captions in the
    column `text`; nothing for other columns."""
    return _CAPTIONS if column == "text" else ""


def spellings(path: str) -> list[str]:
    """Return a path and other spellings of it: with composed or decomposed accents, which look alike (keyboards
    compose, the file systems of macOS decompose), and without the spaces around it."""
    forms = [
        form
        for spelling in (path, path.strip())
        for form in (spelling, unicodedata.normalize("NFC", spelling), unicodedata.normalize("NFD", spelling))
    ]
    return list(dict.fromkeys(forms))


def climbs(parts: Sequence[str]) -> bool:
    """Return whether a relative path leads above its starting folder."""
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def read_question(value: Any, column: str) -> str:
    """Read a question, which is required; otherwise like [`read_prose`]."""
    question = read_prose(value, column)
    if question is None:
        raise InputError(f"`{column}` must be a text, but is empty.")
    return question


def read_names(value: Any, column: str) -> list[str] | None:
    """
    Read a list of names, or a cell with that list as JSON, without repeats; each name like [`read_name`]. An empty
    list stays one; `None` if there is no value.

    Raises:
        ValueError: If the value is not a list, or one of the names is blank or not a name.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass  # refused below, with the original text
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise InputError(f'`{column}` must be a JSON list, such as ["run", "jump"] or [], got {_shown(value)}.')
    names = [read_name(name, column) for name in value]
    if None in names:
        raise InputError(f"`{column}` contains a blank name: {_shown(value)}.")
    return list(dict.fromkeys(cast(list[str], names)))


READERS: dict[str, Callable[[Any, str], Any]] = {
    "question": read_question,
    "prose": read_prose,
    "name": read_name,
    "names": read_names,
}
"""Functions that read task columns, by kind."""
