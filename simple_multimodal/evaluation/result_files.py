"""Files of results that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from simple_multimodal.output_folder import write_atomically


def write_whole(path: str | os.PathLike[str], pieces: Iterable[str]) -> None:
    """
    Write a text file whole or not at all, see [`write_atomically`].

    Args:
        path (`str` or `os.PathLike`): File to write, UTF-8; it is replaced.
        pieces (`Iterable[str]`): Its text. If making it fails, what was there before stays.
    """
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping]) -> None:
    """
    Write rows as one JSON list with a row per line, without holding more than one of them.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        rows (`Iterable[Mapping]`): Rows that JSON can hold, e.g. [`retrieval_rows`] or [`question_answering_rows`].

    Raises:
        ValueError: If a row holds a number that is not finite.
    """

    def pieces() -> Iterable[str]:
        encode = json.JSONEncoder(allow_nan=False).encode  # made once: there may be millions of rows
        separator = "[\n"
        for row in rows:
            yield separator + encode(row)
            separator = ",\n"
        yield "\n]\n" if separator == ",\n" else "[]\n"

    write_whole(path, pieces())
