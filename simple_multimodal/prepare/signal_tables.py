"""Read and write tables of multimodalhugs: a file, a segment, prompts and a text in each row."""

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from simple_multimodal.data.fields import read_path, read_seconds
from simple_multimodal.data.files import VIDEO_SUFFIXES
from simple_multimodal.data.tables import read_records, read_table
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.generated_text import one_line
from simple_multimodal.evaluation.protocols import SPLITS
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.prepare.annotations import SOURCES, AnnotationFiles, Rows, some
from simple_multimodal.prepare.clip_files import POSE_SUFFIXES, path_name
from simple_multimodal.prepare.phoenix import repeated_sentences
from simple_multimodal.prepare.settings import SignalSettings

COLUMNS = ("signal", "signal_start", "signal_end", "encoder_prompt", "decoder_prompt", "output")
"""Columns of the tables, in their order."""

PROMPTS = ("encoder_prompt", "decoder_prompt")

LINE_ENDS = {"crlf": "\r\n", "lf": "\n"}
"""Ends of lines: Python's `csv` module writes the first, most other programs the second."""

SHORTEST_SECONDS = 0.1
"""A table whose segments are all shorter is probably in another unit."""

_SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "dev": "validation", "test": "test"}
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLIT_NAMES)})(?![a-z])")


def read_signal_tables(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """
    Read a row for each line of the tables `*train*.tsv`, `*validation*.tsv` (or `val`, `dev`) and `*test*.tsv`.

    `signal_start` and `signal_end` become seconds; 0 stands for the beginning and for the end. `output` becomes the
    `caption`. multimodalhugs leaves out rows with an empty cell; here a training row without `output` and any row
    without `signal` are left out, which deviations name. Other empty cells are counted, and their rows are kept.

    Args:
        files ([`AnnotationFiles`]): Folder of the tables; its `signals` say how they name files and times.
        protocol (`str`): Not used.
        splits (`Sequence[str]`): Splits to read.

    Raises:
        ValueError: There is no table, or there are several of a split; **or** a table has other columns, is not UTF-8,
            **or** contains an invalid time, or an absolute path that is not below the root.
    """
    tables = _tables(files.folder)
    if not tables:
        raise InputError(f"{files.folder}: no lists of signals. {SOURCES[files.benchmark]}")
    files.by_path = True
    rows = {split: _read_table(files, tables[split], split) for split in SPLITS if split in tables and split in splits}
    files.notes += repeated_sentences(rows)
    return rows


def _tables(folder: Path) -> dict[str, Path]:
    """Return the table of each split that has one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.tsv")):
        names = {_SPLIT_NAMES[name] for name in _SPLIT.findall(path.stem.lower())}
        if len(names) == 1 and path.is_file():
            split = names.pop()
            if split in found:
                raise InputError(
                    f"{folder}: {found[split]} and {path} could both be the {split} table; give the folder of one."
                )
            found[split] = path
    return found


def _read_table(files: AnnotationFiles, path: Path, split: str) -> list[dict[str, Any]]:
    table = read_table(files.use(path))
    _, header = next(table, (0, []))
    if sorted(header) != sorted(COLUMNS):
        raise InputError(
            f"{path}: the columns must be {', '.join(COLUMNS)}, separated by tabs; they are "
            f"{', '.join(header) or 'missing'}."
        )
    rows: list[dict[str, Any]] = []
    without: dict[str, list[str]] = {column: [] for column in COLUMNS}  # lines by empty column
    for number, cells in table:
        entry = dict(zip(header, cells, strict=True))
        empty = [column for column in COLUMNS if not entry[column].strip()]
        for column in empty:
            without[column].append(f"line {number}")
        if "signal" in empty or (split == "train" and "output" in empty):
            continue
        rows.append(_row(f"{path}, line {number}", entry, files.signals))
    _number_ids(rows)
    _check_files(path, rows)
    files.deviations += [
        f"{split}: {len(without[column])} rows have no {column} and are left out: {some(without[column])}"
        for column in ("signal", "output")
        if without[column] and (column == "signal" or split == "train")
    ]
    files.notes += [
        f"{split}: {len(lines)} rows have an empty {column}; multimodalhugs leaves them out, here they are kept: "
        f"{some(lines)}"
        for column, lines in without.items()
        if lines and column != "signal" and (column != "output" or split != "train")
    ]
    files.notes += [*_unit_notes(split, rows, files.signals), *_round_trip_notes(split, path, rows, files.signals)]
    return rows


def _row(where: str, entry: Mapping[str, str], signals: SignalSettings) -> dict[str, Any]:
    file = _relative(where, entry["signal"], signals)
    suffix = PurePosixPath(file).suffix.lower()
    if suffix not in VIDEO_SUFFIXES | POSE_SUFFIXES:
        raise InputError(f"{where}: {file!r} is neither a video nor a .pose or .npy file.")
    clip = path_name(file, VIDEO_SUFFIXES | POSE_SUFFIXES)
    row: dict[str, Any] = {"id": clip, "clip": clip, "file": file}
    start, end = (_count(where, entry, column, signals) for column in ("signal_start", "signal_end"))
    if 0 < end <= start:
        raise InputError(f"{where}: signal_end is {end}, which is not after signal_start, {start}.")
    times = {"start_seconds": start / signals.units_per_second, "end_seconds": end / signals.units_per_second}
    row |= {name: seconds for name, seconds in times.items() if seconds}
    texts = {"caption": entry["output"], **{name: entry[name] for name in PROMPTS}}
    return row | {name: text for name, text in texts.items() if text.strip()}


def _relative(where: str, signal: str, signals: SignalSettings) -> str:
    """Return the path of a file in the folder of the clips."""
    root = signals.signal_root
    file = signal
    if signal.startswith("/"):
        if root is None or not PurePosixPath(posixpath.normpath(signal)).is_relative_to(posixpath.normpath(root)):
            raise InputError(
                f"{where}: the path {signal!r} is absolute and not below {root or 'a root'}. Give the folder that "
                "paths of the table begin with as `signal_root`."
            )
        file = posixpath.relpath(signal, root)
    try:
        read_path(file, "signal")
    except InputError as error:
        if not signal.startswith("/"):
            raise InputError(f"{where}: {error}") from error
    return unicodedata.normalize("NFC", posixpath.normpath(file))


def _count(where: str, entry: Mapping[str, str], column: str, signals: SignalSettings) -> int:
    """Return the number of a time; an empty cell is 0."""
    text = entry[column].strip()
    if not re.fullmatch(r"\d*", text, re.ASCII):
        raise InputError(
            f"{where}: {column} must be a whole number of {signals.signal_start_end_unit}, 0 or more, got {text!r}."
        )
    return int(text or 0)


def _number_ids(rows: list[dict[str, Any]]) -> None:
    """Number the rows of a clip that has several: `a#1`, `a#2`."""
    counts = Counter(row["clip"] for row in rows)
    numbers: Counter[str] = Counter()
    for row in rows:
        if counts[row["clip"]] > 1:
            numbers[row["clip"]] += 1
            row["id"] = f"{row['clip']}#{numbers[row['clip']]}"


def _check_files(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuse two files of a table that differ in their suffixes alone: results would name them alike."""
    file_of: dict[str, str] = {}
    for row in rows:
        other = file_of.setdefault(row["clip"], row["file"])
        if other != row["file"]:
            raise InputError(f"{path}: {other!r} and {row['file']!r} have the same name; rename one of the files.")


def _unit_notes(split: str, rows: list[dict[str, Any]], signals: SignalSettings) -> list[str]:
    """Return a note if all segments are so short that times seem to be in another unit."""
    lengths = [row["end_seconds"] - row.get("start_seconds", 0.0) for row in rows if "end_seconds" in row]
    if not lengths or max(lengths) >= SHORTEST_SECONDS:
        return []
    return [
        f"{split}: the longest segment has {max(lengths):g} seconds; are times in {signals.signal_start_end_unit}? "
        "Set signal_start_end_unit, or multiply times in seconds by 1000"
    ]


def _round_trip_notes(split: str, path: Path, rows: list[dict[str, Any]], signals: SignalSettings) -> list[str]:
    """Return a note if [`write_signal_table`] would not write the same bytes from the rows."""
    content = path.read_bytes()
    line_end = "crlf" if b"\r\n" in content else "lf"
    is_absolute = b"\n/" in content
    cells = [_cells(row, row["file"], signals if is_absolute else _without_root(signals), Counter()) for row in rows]
    if _to_bytes(cells, line_end) == content:
        return []
    return [
        f"{split}: {path.name} is not exactly as multimodalhugs writes such a table (order of columns, quotation "
        "marks, ends of lines, paths, or rows that are left out), so that `export_table` would write other bytes"
    ]


def _without_root(signals: SignalSettings) -> SignalSettings:
    return SignalSettings(signal_start_end_unit=signals.signal_start_end_unit, signal_rate=signals.signal_rate)


def write_signal_table(
    manifest: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    signals: SignalSettings | None = None,
    column: Literal["pose", "video"] | None = None,
    encoder_prompt: str = "",
    decoder_prompt: str = "",
    line_end: Literal["crlf", "lf"] = "crlf",
) -> list[str]:
    """
    Write a manifest as a table of multimodalhugs. A table that `simple-multimodal prepare multimodalhugs` has read is
    written as it was, byte for byte, with the same settings.

    Args:
        manifest (`str` or `os.PathLike`): The manifest, with a column `pose` or `video`.
        output (`str` or `os.PathLike`): The table.
        signals ([`SignalSettings`], *optional*): Folder to put before relative paths, and the unit of times.
        column (`str`, *optional*): Column of the files; by default the one that the manifest has.
        encoder_prompt, decoder_prompt (`str`, *optional*): Prompts of rows that have none of their own.
        line_end (`str`, *optional*, defaults to `"crlf"`): End of lines: `"crlf"` or `"lf"`.

    Returns:
        `list[str]`: Notes about what such a table cannot hold, one line each.

    Raises:
        ValueError: The manifest is not readable, has no such column or both, **or** a row has no file or several
            captions.
    """
    signals = signals or SignalSettings()
    records = list(read_records(Path(manifest)))
    names = [name for name in ("pose", "video") if any(record.get(name) for _, record in records)]
    if column is None and len(names) != 1:
        raise InputError(
            f"{manifest}: has both `pose` and `video`; choose one as `column`."
            if names
            else f"{manifest}: has no files in `pose` or `video`, which a table of multimodalhugs needs."
        )
    name = column or names[0]
    changes: Counter[str] = Counter()
    cells = []
    for number, record in records:
        file = record.get(name)
        row = {**dict(zip(PROMPTS, (encoder_prompt, decoder_prompt), strict=True)), **_filled(record)}
        try:
            if not isinstance(file, str) or not file.strip():
                raise InputError(f"the column {name!r} is empty; a table of multimodalhugs needs a file in each row.")
            cells.append(_cells(row, file.removeprefix("./"), signals, changes))
        except InputError as error:
            raise InputError(f"{manifest}, line {number}: {error}") from error
    with write_atomically(Path(output)) as temporary:
        temporary.write_bytes(_to_bytes(cells, line_end))
    return [f"{count} rows: {change}" for change, count in changes.items() if count]


def _filled(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, "", [])}


def _cells(row: Mapping[str, Any], file: str, signals: SignalSettings, changes: Counter[str]) -> list[str]:
    """Return the cells of a row, and count what a table cannot hold."""
    texts = row.get("captions") or [row.get("caption") or ""]
    if not isinstance(texts, list) or len(texts) > 1:
        raise InputError("has several captions, but a row of a table of multimodalhugs has one text.")
    path = file if signals.signal_root is None or file.startswith("/") else posixpath.join(signals.signal_root, file)
    times = []
    for name in ("start_seconds", "end_seconds"):
        exact = (read_seconds(row.get(name), name) or 0.0) * signals.units_per_second
        times.append(round(exact))
        changes[f"times are rounded to {signals.signal_start_end_unit}"] += abs(exact - times[-1]) > 1e-6
    prose = [*(str(row.get(name) or "") for name in PROMPTS), str(texts[0])]
    lines = [text if not re.search(r"[\r\n\t]", text) else one_line(text) for text in prose]
    changes["line breaks and tabs become spaces"] += lines != prose
    changes["an empty cell, for which multimodalhugs leaves the row out"] += not all(text.strip() for text in lines)
    return [path, *map(str, times), *lines]


def _to_bytes(cells: Iterable[Sequence[str]], line_end: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator=LINE_ENDS[line_end])
    writer.writerows([COLUMNS, *cells])
    return text.getvalue().encode()
