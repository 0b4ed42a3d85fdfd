"""Read tables: CSV, TSV and JSONL files, as records with line numbers."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simple_multimodal.errors import InputError

FORMATS = {".csv": "comma-separated", ".tsv": "tab-separated", ".jsonl": "one JSON object per line"}

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_QUOTED = {sep: re.compile(rf' *"([^"]*(?:""[^"]*)*)" *({sep}|\Z)') for sep in _SEPARATORS.values()}
_OPEN = re.compile(r' *"[^"]*(?:""[^"]*)*\Z')  # a quoted cell that does not end with the line
_NUMBER = re.compile(r"[+-]?[\d.]+")
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}\Z")


def table_format(path: str | os.PathLike[str]) -> str:
    """Return the format of a file, a key of `FORMATS`: its own suffix, even if it is a link to another file.

    Raises:
        ValueError: If the suffix is not in `FORMATS`.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in FORMATS:
        known = ", ".join(f"{name} ({what})" for name, what in FORMATS.items())
        raise InputError(f"{path}: unknown manifest format {suffix!r}; known are {known}.")
    return suffix.lower()


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the suffix of a table."""
    return Path(path).suffix.lower() in FORMATS


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and content of each record of a table; cells of CSV and TSV are unstripped strings.

    Raises:
        ValueError: See [`read_table`] and [`read_jsonl`].
    """
    if table_format(path) == ".jsonl":
        yield from read_jsonl(path)
        return
    table = read_table(path)
    _, header = next(table, (0, []))
    yield from ((line, dict(zip(header, cells, strict=True))) for line, cells in table)


def read_table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """
    Yield the line number and cells of each record of a CSV or TSV file, the header first; blank lines are skipped.

    A quoted cell may contain separators, and quotation marks that are written twice. In CSV it may span several lines,
    and a cell that begins with a quotation mark must be quoted as a whole. In TSV a record is one line, and other
    quotation marks are text: tables of natural language have cells that begin or end with one.

    Args:
        path (`Path`): The file, in UTF-8, with or without a byte order mark.

    Yields:
        `tuple[int, list[str]]`: The record's first line and its cells, unstripped except for the header's.

    Raises:
        ValueError: If a line is not UTF-8 **or** does not have as many cells as the header, **or** if a quoted cell is
            not followed by a separator, is never closed, or contains lines that look like records, **or** if the
            columns have another separator.
            The message names file and line.
    """
    separator = _SEPARATORS[table_format(path)]
    width = 0
    for number, line in (lines := decoded_lines(path)):
        if '"' not in line:
            cells = line.split(separator)
        elif separator == "\t":
            cells = _split_tsv(line, width)
        else:
            cells = _split_csv(path, number, line, width, lines)
        if len(cells) < 2 and not "".join(cells).strip():
            continue
        if not width:
            width, cells = len(cells), [cell.strip() for cell in cells]
            if width == 1 and (other := next((mark for mark in ";\t|," if mark in cells[0]), None)):
                raise InputError(
                    f"{path}, line {number}: the separator seems to be {other!r}; use a comma in .csv and a tab in "
                    ".tsv files."
                )
        if len(cells) != width:
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells, but the header has {width}. A cell that contains the "
                "separator must be quoted as a whole, and only CSV has cells with line breaks."
            )
        yield number, cells


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and object of each line of a JSONL file; blank lines are skipped.

    Raises:
        ValueError: If a line is not UTF-8 or not a JSON object. The message names file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = json.loads(text) if text else None
                if "\\u" in text:  # lone surrogates, which only escapes can produce, are not text
                    json.dumps(record, ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, line[error.start]) from error
            except (ValueError, RecursionError) as error:  # including UnicodeEncodeError and JSONDecodeError
                raise InputError(f"{path}, line {number}: is not a JSON object: {error}.") from error
            if not text:
                continue
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: must be a JSON object, got {text[:40]!r}.")
            yield number, record


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """
    Yield the numbered lines of a text file without line ends.

    Raises:
        ValueError: If a line is not UTF-8. The message names file and line.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.isascii():
                try:
                    line.encode()
                except UnicodeEncodeError as error:  # a byte that is not text, escaped by the decoder
                    raise _not_utf8(path, number, ord(line[error.start]) - 0xDC00) from None
            yield number, line.removesuffix("\n")


def _not_utf8(path: Path, number: int, byte: int) -> InputError:
    encoding = "UTF-16" if number == 1 and byte in b"\xfe\xff" else "WINDOWS-1252"
    return InputError(
        f"{path}, line {number}: is not UTF-8 text: it contains the byte 0x{byte:02x}. Save the file as UTF-8, for "
        f"example with `iconv -f {encoding} -t UTF-8` (replace {encoding} if it has another encoding)."
    )


def _split_cells(text: str, separator: str) -> tuple[list[str], str | None]:
    """Return the cells of a record up to its end, or up to a cell that begins with a quotation mark but is not quoted
    as a whole; in that case also return the rest of the text."""
    cells: list[str] = []
    place = 0
    while True:
        if quoted := _QUOTED[separator].match(text, place):
            cells.append(quoted[1].replace('""', '"'))
            place, is_last = quoted.end(), not quoted[2]
        else:
            cell, found, _ = text[place:].partition(separator)
            if cell.lstrip(" ").startswith('"'):
                return cells, text[place:]
            cells.append(cell)
            place, is_last = place + len(cell) + 1, not found
        if is_last:
            return cells, None


def _split_tsv(line: str, width: int) -> list[str]:
    """Return the cells of a line; cells that are not quoted as a whole are literal."""
    cells, rest = _split_cells(line, "\t")
    while rest is not None:
        cell, found, after = rest.partition("\t")
        following, rest = _split_cells(after, "\t") if found else ([], None)
        cells += [cell, *following]
    literal = line.split("\t")
    return literal if len(literal) == width != len(cells) else cells


def _split_csv(path: Path, number: int, line: str, width: int, lines: Iterator[tuple[int, str]]) -> list[str]:
    """Return the cells of the record that begins with a line; consume the `lines` over which quoted cells continue."""
    text = line
    while True:
        cells, rest = _split_cells(text, ",")
        if rest is None:
            break
        if _OPEN.match(rest) is None:
            raise InputError(
                f"{path}, line {number}: a quoted cell must be followed by a separator, got {rest.strip()[:40]!r}. "
                "Quote a cell that begins with a quotation mark as a whole, and write the marks inside it twice."
            )
        parts = [text]
        for other, following in lines:
            if width == 1 or (width and cells and _looks_like_record(following, cells, width)):
                raise _swallowed(path, number, other)
            parts.append(following)
            if following.count('"') % 2:
                break
        else:
            raise InputError(
                f"{path}, line {number}: a quotation mark begins a cell, but none ends it. Write it twice and quote "
                "the cell as a whole, or remove it."
            )
        text = "\n".join(parts)
    if "\n" in cells[0] and len(cells) == width:  # the first cell can only be checked against what follows it
        for above, before in enumerate(text.split("\n")[:-1], start=1):
            end = before.rsplit(",", width - 1)
            if len(end) == width and _are_alike(end[1:], cells[1:]):
                raise _swallowed(path, number, number + above)
    return cells


def _looks_like_record(line: str, cells: Sequence[str], width: int) -> bool:
    """Return whether a line within a quoted cell looks like a record: it begins like the record with that cell."""
    if not any(cell.strip() for cell in cells):
        return line.count(",") == width - 1
    begin = line.split(",", len(cells))[:-1]
    return len(begin) == len(cells) and _are_alike(begin, cells)


def _are_alike(cells: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether cells of two records may belong to the same columns; pairs with an empty cell are ignored."""
    pairs = [
        (_kind(a.strip()), _kind(b.strip())) for a, b in zip(cells, others, strict=True) if a.strip() and b.strip()
    ]
    return bool(pairs) and all(own == other for own, other in pairs)


def _kind(cell: str) -> str:
    """Return the rough kind of a cell: a file suffix, a number, a name with digits, a word, or a text."""
    if suffix := _SUFFIX.search(cell):
        return suffix[0].lower()
    if _NUMBER.fullmatch(cell):
        return "number"
    if len(cell.split()) > 1:
        return "text"
    return "name" if any(character.isdigit() for character in cell) else "word"


def _swallowed(path: Path, number: int, other: int) -> InputError:
    return InputError(
        f"{path}, line {number}: a quotation mark begins a cell that would span other records, such as line {other}. "
        "If the mark is text, write it twice and quote the cell as a whole; or use TSV or JSONL."
    )
