"""Records of a table of samples: the meaning of each column, and checks of its values for every source."""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from simple_multimodal.data.fields import READERS, read_captions, read_name, read_path, read_prose, read_seconds
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import Modality

logger = logging.get_logger(__name__)

COLUMNS = {
    "id": "unique name of the row (default: its number)",
    "video": "video file, relative to --video_root",
    "audio": "audio file, relative to --audio_root (without this column: the video's own audio track)",
    "text": "text file with one caption, relative to --text_root",
    "pose": "pose file (.pose) or features of its frames (.npy), relative to --pose_root",
    "caption": "the caption itself",
    "captions": "several captions of one clip, as a JSON list",
    "start_seconds": "start of the segment",
    "end_seconds": "end of the segment, not included",
    "group": "rows with the same group show the same clip (default: files and segment)",
}
"""Columns that the loader interprets; all further columns are passed on unchanged."""

MODALITY_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "text": ("text", "caption", "captions"),
    "audio": ("audio", "video"),
    "video": ("video",),
    "pose": ("pose",),
}
"""Columns of each modality; a model with the modality needs at least one of them."""

OTHER_NAMES = {
    "video": "clip clip_path file file_name file_path filename filepath path video_file video_path".split(),
    "audio": "audio_file audio_filepath audio_path wav wav_path".split(),
    "caption": "desc description sentence title transcript transcription".split(),
    "captions": "descriptions sentences".split(),
    "pose": "keypoints pose_file pose_path poses skeleton".split(),
    "start_seconds": "begin start start_sec start_time".split(),
    "end_seconds": "end end_sec end_time".split(),
}
"""Names that other data sets have for columns. If rows have one of these instead, a message suggests the column."""

UNLIKE_OTHERS = ("actions", "length_seconds")
"""Columns of tasks whose names are like those of others, but not mistaken for them."""

FILE_COLUMNS = ("video", "audio", "text", "pose")
"""Columns that name files."""

CLIP_FILES = ("video", "audio", "pose")
"""Those of them that show a clip. The first that a row has stands for the clip in results."""

OWN_ENTRIES = ("index", "epoch", "audio_from_video", "is_skipped")
"""Reserved entries of a row, which cannot be names of columns."""

SCHEMA = pa.schema(
    {
        "place": pa.int64(),  # line of a file, or number of a row in memory
        "id": pa.string(),
        **dict.fromkeys(FILE_COLUMNS, pa.string()),
        "audio_from_video": pa.bool_(),
        "captions": pa.list_(pa.string()),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "group": pa.string(),
        "further": pa.string(),  # JSON
    }
)

BATCH_ROWS = 1000
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would create an encoder for each record
MAX_PROBLEMS = 5  # listed in one message
MAX_SHOWN = 80  # characters of a line that are shown
_VALUE = re.compile(r"[/\\]|\.\w{2,4}$|^\d+$")  # paths and numbers, which names of columns do not look like


class Table(NamedTuple):
    """Checked records in Arrow memory or in a memory-mapped file.

    Args:
        data (`datasets.Dataset`): The records, with `SCHEMA`.
        columns (`tuple[str, ...]`): Columns of the source.
        content_hash (`str`): Hash of the source.
        name (`str`): Name of the source, for messages.
        manifest_file (`Path`, *optional*): The source, if it is a file.
    """

    data: datasets.Dataset
    columns: tuple[str, ...]
    content_hash: str
    name: str
    manifest_file: Path | None = None

    @property
    def unit(self) -> Literal["line", "row"]:
        """Unit of `place`."""
        return "row" if self.manifest_file is None else "line"


class RecordParser(NamedTuple):
    """Parser that reads and checks records.

    Args:
        name (`str`): Name of their source, for messages.
        columns (`tuple[str, ...]`): Columns that records may have.
        text_column (`str`, *optional*): Column whose value is the text of a row, instead of captions.
        typed_columns (`Mapping[str, str]`): Further columns with their kind, a key of `READERS`.
        unit (`str`): Unit of the places of records.
        is_cells (`bool`): Whether values are text cells.
    """

    name: str
    columns: tuple[str, ...]
    text_column: str | None
    typed_columns: Mapping[str, str]
    unit: Literal["line", "row"] = "row"
    is_cells: bool = False

    def check_columns(self, modalities: Sequence[Modality] | None) -> None:
        """
        Check the columns, and warn of those that look like another name of a column.

        Args:
            modalities (`Sequence[str]`, *optional*): Modalities that need a column. `None`: one that is not text.

        Raises:
            ValueError: If there seems to be no header, a modality has no column, a column occurs twice, or its name is
                reserved.
        """
        known = {*read_columns(), *self.typed_columns, self.text_column}
        if self.is_cells and not known & set(self.columns) and any(map(_VALUE.search, self.columns)):
            line = ", ".join(self.columns)[:MAX_SHOWN]
            raise InputError(
                f"{self.name}: the first line seems to be a row instead of a header: {line}. "
                "Put a line with the names of the columns above it, such as video and caption."
            )
        if len(set(self.columns)) != len(self.columns):
            raise InputError(f"{self.name}: a column occurs twice in the header: {', '.join(self.columns)}.")
        if reserved := [name for name in self.columns if name in OWN_ENTRIES]:
            raise InputError(f"{self.name}: reserved column names: {', '.join(reserved)}; rename these columns.")
        hint = "".join(f" Did you mean {column!r} instead of {name!r}?" for name, column in self._similar().items())
        needed = {modality: MODALITY_COLUMNS[modality] for modality in modalities or ()}
        if self.text_column is not None and "text" in needed:
            needed["text"] = (self.text_column,)
        if modalities is None:
            media = (columns for modality, columns in MODALITY_COLUMNS.items() if modality != "text")
            needed["media"] = tuple(dict.fromkeys(chain(*media)))
        missing = {name: accepted for name, accepted in needed.items() if not set(accepted) & set(self.columns)}
        if missing:
            lacks = "; ".join(
                f"no column for {name}: {'one of ' * (len(accepted) > 1)}{', '.join(accepted)} is needed"
                for name, accepted in missing.items()
            )
            optional = f", or leave {' and '.join(missing)} out of `modalities`" if modalities else ""
            raise InputError(
                f"{self.name}: {lacks}. The columns are {', '.join(self.columns)}.{hint} {self._renaming}{optional}."
            )
        if hint:
            logger.warning(f"{self.name}: further columns are passed on, but not read.{hint}")

    def _similar(self) -> dict[str, str]:
        """Return the unknown columns that look like another name of a column, each with that column."""
        captions = {*MODALITY_COLUMNS["text"], self.text_column}
        similar = {}
        for name in (name for name in self.columns if name not in read_columns() and name not in UNLIKE_OTHERS):
            plain = re.sub(r"[\s-]+", "_", name.lower())
            for column, others in OTHER_NAMES.items():
                same = captions if column in captions else {column}
                if plain in others and not same & set(self.columns):
                    similar[name] = column
            if match := difflib.get_close_matches(plain, COLUMNS, 1, 0.8):
                similar.setdefault(name, match[0])
        return similar

    @property
    def _renaming(self) -> str:
        """Advice on how to rename columns."""
        if self.unit == "line":
            return f"Rename the columns in the {'first line' if self.is_cells else 'objects'} of the file"
        return "Rename the columns (`dataset.rename_columns`; with `dataset_name`, use `rename_columns` OLD=NEW)"

    def parse(self, records: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[pa.RecordBatch]:
        """Parse records with their places into batches.

        Raises:
            ValueError: After the last batch, if records are wrong or an id is repeated; names the first ones.
        """
        problems: list[tuple[int, str]] = []
        batch: list[dict[str, Any]] = []
        ids: list[pa.Array] = []
        places: list[pa.Array] = []

        def finished() -> pa.RecordBatch:
            parsed = pa.RecordBatch.from_pylist(batch, SCHEMA)
            ids.append(parsed.column("id"))
            places.append(parsed.column("place"))
            batch.clear()
            return parsed

        for index, (place, record) in enumerate(records):
            try:
                batch.append({"place": place, **self.parse_record(record, index)})
            except ValueError as error:
                problems.append((place, str(error)))
            if len(batch) == BATCH_ROWS:
                yield finished()
        if batch:
            yield finished()
        problems += self._repeated(pa.chunked_array(ids, pa.string()), pa.chunked_array(places, pa.int64()))
        if problems:
            raise InputError(report(self.name, self.unit, sorted(problems)))

    def _repeated(self, ids: pa.ChunkedArray, places: pa.ChunkedArray) -> list[tuple[int, str]]:
        """Return the places of repeated ids."""
        if pc.count_distinct(ids).as_py() == len(ids):  # avoids a Python object for each of a million ids
            return []
        seen: dict[str, int] = {}
        problems = []
        for name, place in zip(ids.to_pylist(), places.to_pylist(), strict=True):
            if name in seen:
                problems.append((place, f"the id {name!r} occurred before, in {self.unit} {seen[name]}."))
            else:
                seen[name] = place
        return problems

    def parse_record(self, record: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Parse a record into the form of the table, without its place.

        Raises:
            ValueError: If a value is wrong.
        """
        parsed: dict[str, Any] = {name: read_path(record.get(name), name) for name in FILE_COLUMNS}
        caption = read_prose(record.get("caption"), "caption")
        captions = read_captions(record.get("captions"), "captions")
        if sum(value is not None for value in (parsed["text"], caption, captions)) > 1:
            raise InputError("a row may have one of `text`, `caption` and `captions`, not several.")
        parsed["captions"] = captions or ([] if caption is None else [caption])
        if not (parsed["captions"] or any(parsed[name] for name in FILE_COLUMNS) or further_values(record)):
            raise InputError("the row is empty: it has none of `video`, `audio`, `pose` and text.")
        parsed["audio_from_video"] = "audio" not in self.columns and parsed["video"] is not None

        start, end = (read_seconds(record.get(name), name) for name in ("start_seconds", "end_seconds"))
        if end is not None and end <= (start or 0.0):
            raise InputError(f"`end_seconds` is {end}, which is not after the start, {start or 0.0}.")
        parsed["start_seconds"], parsed["end_seconds"] = start, end

        parsed["id"] = read_name(record.get("id"), "id") or str(index)
        parsed["group"] = read_name(record.get("group"), "group") or _default_group(parsed)
        further = {name: record.get(name) for name in self.columns if name not in COLUMNS}
        if self.is_cells:
            further = {name: str(value).strip() for name, value in further.items()}
        further |= {name: READERS[kind](record.get(name), name) for name, kind in self.typed_columns.items()}
        if self.text_column is not None:
            further[self.text_column] = READERS["question"](record.get(self.text_column), self.text_column)
            parsed["text"], parsed["captions"] = None, [further[self.text_column]]
        try:
            parsed["further"] = _to_json(further)
        except TypeError:
            name = next(name for name, value in further.items() if not _is_json(value))
            raise InputError(
                f"`{name}` contains a {type(further[name]).__name__}; give numbers, strings, lists or dictionaries."
            ) from None
        return parsed


def read_columns() -> list[str]:
    """Return all columns that are read, including those of further modalities; others are passed on to tasks."""
    return list(dict.fromkeys([*COLUMNS, *chain(*MODALITY_COLUMNS.values())]))


def as_records(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """
    Return rows as a list of dictionaries.

    Raises:
        ValueError: If they are something else; the message names the method for it.
    """
    if isinstance(rows, (str, os.PathLike)):
        raise InputError(
            f"`rows` is the path {os.fspath(rows)!r}. Open a manifest with smm.Dataset.from_manifest(path), and media "
            "files or a folder of them with smm.Dataset.from_files(path)."
        )
    records = list(rows)
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(
                f"Row {number} is of type {type(record).__name__}; give a dictionary for each row. Open media files, "
                "a datasets.Dataset or a pandas table with smm.Dataset.from_files, from_dataset or from_dataframe."
            )
    return records


def further_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row in the columns of modalities that are not built in, by column."""
    columns = [name for columns in MODALITY_COLUMNS.values() for name in columns if name not in COLUMNS]
    return {name: row[name] for name in columns if row.get(name) not in (None, "")}


def report(name: str, unit: str, problems: Sequence[tuple[int, str]]) -> str:
    """Return one message about wrong records, with their places."""
    told = " ".join(f"{name}, {unit} {place}: {problem}" for place, problem in problems[:1])
    if len(problems) > 1:
        told = f"{name}: {len(problems)} rows are wrong. " + " ".join(
            f"{unit.capitalize()} {place}: {problem}" for place, problem in problems[:MAX_PROBLEMS]
        )
    if left := problems[MAX_PROBLEMS:]:
        places = ", ".join(str(place) for place, _ in left[:20])
        told += f" And {len(left)} more, in the {unit}s {places}{', …' * (len(left) > 20)}."
    return told


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _default_group(parsed: Mapping[str, Any]) -> str:
    """Return what identifies a clip: its files and segment; a row without media is its own group."""
    clip = {name: parsed[name] for name in (*CLIP_FILES, "start_seconds", "end_seconds")}
    if all(clip[name] is None for name in CLIP_FILES):
        return f"id={parsed['id']}"
    return " ".join(f"{name}={str(value).strip()}" for name, value in clip.items() if value is not None)
