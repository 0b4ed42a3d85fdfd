"""Manifests: tables of samples (paths, captions, times) read lazily through `datasets`."""

import csv
import difflib
import errno
import hashlib
import itertools
import json
import math
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypedDict, cast

import datasets
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from simple_multimodal.media.errors import MediaError
from simple_multimodal.modalities import MODALITIES, Modality

logger = logging.get_logger(__name__)

COLUMNS = {
    "id": "unique name of the row (default: its number)",
    "video": "video file, relative to --video_root",
    "audio": "sound file, relative to --audio_root (no such column: the video's own sound track)",
    "text": "text file with one caption, relative to --text_root",
    "caption": "the caption itself",
    "captions": "several captions of one clip, as a JSON list",
    "start_seconds": "start of the segment",
    "end_seconds": "end of the segment, not included",
    "group": "rows with the same group show the same clip (default: files and segment)",
}
"""Columns with a meaning to the loader; every further column is handed on untouched."""

FORMATS = {".csv": "comma-separated", ".tsv": "tab-separated", ".jsonl": "one JSON object per line"}

MODALITY_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "text": ("text", "caption", "captions"),
    "audio": ("audio", "video"),
    "video": ("video",),
}
"""Columns of which one must be there for a model that takes the modality."""

# "http:", "concat:", "subfile,,start,0,end,9,,:": FFmpeg and URL schemes, with FFmpeg's options after commas.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(:|,,|,[^/]*:)|subfile,", re.IGNORECASE)

MAX_CAPTION_BYTES = 2**20  # of a text file

_TABLE_VERSION = 1  # part of the cache key: raise it when the stored rows change
_TABLE_FEATURES = {
    "line": "int64",
    "id": "string",
    "video": "string",
    "audio": "string",
    "text": "string",
    "captions": ["string"],
    "start_seconds": "float64",
    "end_seconds": "float64",
    "group": "string",
    "further": "string",
}


class Row(TypedDict):
    """One sample. Further columns of the manifest are there too, under their own names."""

    id: str
    index: int  # row number, from 0
    epoch: int  # for which the sample is loaded
    video: str | None  # absolute path
    audio: str | None  # absolute path; the video's where the manifest has no `audio` column
    audio_is_sound_track: bool
    text: str | None  # absolute path of a text file
    captions: list[str]  # as the manifest gives them; empty where they are in a file
    start_seconds: float | None
    end_seconds: float | None
    group: str


class MultimodalDataset:
    """The rows of one manifest. Media are not touched: a row holds paths, and the collator reads them.

    The table itself lies in `datasets`' cache, memory-mapped, under a key that holds the manifest's content hash.

    Args:
        manifest_file (`str` or `Path`):
            `.csv`, `.tsv` or `.jsonl` with the columns in `COLUMNS`, in any order, UTF-8.
        video_root (`str` or `Path`, *optional*):
            Folder of the `video` column; the manifest's own folder by default.
        audio_root (`str` or `Path`, *optional*):
            Folder of the `audio` column, likewise.
        text_root (`str` or `Path`, *optional*):
            Folder of the `text` column, likewise.
        cache_dir (`str` or `Path`, *optional*):
            Where `datasets` keeps the table; its own default otherwise.
        max_samples (`int`, *optional*):
            Keep the first rows only. Applied before any file of a row is touched.
        modalities (`Sequence[str]`, *optional*, defaults to all three):
            What the model takes: each must have a column.

    Raises:
        ValueError: If the manifest is missing, of another format, without rows **or** without a column for one of
            `modalities`, **or** if a row has another number of cells, an id that occurred before, both `text` and a
            caption, neither media nor text, a wrong type or time, **or** a path that is absolute, leaves its root or
            looks like a URL or an FFmpeg protocol. The message names file and line.

    Example:

    ```python
    >>> dataset = MultimodalDataset("train.csv", video_root="datasets/video")
    >>> dataset[0]
    {'id': '0', 'index': 0, 'epoch': 0, 'video': '/…/datasets/video/cat.mp4', 'audio': '/…/datasets/video/cat.mp4',
     'audio_is_sound_track': True, 'text': None, 'captions': ['a cat purrs'], 'start_seconds': None,
     'end_seconds': None, 'group': 'video=cat.mp4'}
    ```
    """

    needed_columns = MODALITY_COLUMNS

    def __init__(
        self,
        manifest_file: str | Path,
        *,
        video_root: str | Path | None = None,
        audio_root: str | Path | None = None,
        text_root: str | Path | None = None,
        cache_dir: str | Path | None = None,
        max_samples: int | None = None,
        modalities: Sequence[Modality] = MODALITIES,
    ):
        self.manifest_file = Path(manifest_file)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"`max_samples` must be 1 or more, got {max_samples}.")
        content_hash, columns = _scan(self.manifest_file)
        _check_columns(self.manifest_file, columns, {m: self.needed_columns[m] for m in modalities})
        self.columns = columns
        own_folder = self.manifest_file.parent
        roots = {"video": video_root, "audio": audio_root, "text": text_root}
        self._roots = {name: Path(own_folder if root is None else root).resolve() for name, root in roots.items()}
        self._table = _load_table(self.manifest_file, content_hash, columns, cache_dir)
        self._length = min(len(self._table), max_samples or len(self._table))
        self.fingerprint = hashlib.sha256(f"{content_hash} {self._length}".encode()).hexdigest()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that [`EpochSampler`] yields next, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        """Row `index`, or row `index` for an epoch if `key` is `(epoch, index)`; a plain index means epoch 0.

        Raises:
            MediaError: If a file of the row does not exist or is not a regular file.
            ValueError: If a path leaves its root through a symbolic link.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = operator.index(index)
        if not -self._length <= index < self._length:
            raise IndexError(f"Row {index} of {self._length}.")
        index %= self._length
        return self._row(index, epoch)

    def bare_row(self, key: tuple[int, int]) -> Row:
        """A row without its files, which are not looked for: what is known of one that cannot be read.

        Args:
            key (`tuple[int, int]`): Epoch and index.

        Returns:
            `Row`: Neither sound nor video; the captions of the manifest, and an empty one where a file has them.
        """
        epoch, index = key
        record = self._table[index]
        captions = record["captions"] if record["text"] is None else [""]
        return self._make_row(index, epoch, dict.fromkeys(self._roots), captions)

    def named_rows(self) -> Iterator[Row]:
        """All rows with their files as the manifest names them, which may be absent: to plan what is to be read.

        Raises:
            ValueError: If a path leaves its root through a symbolic link.
        """
        for index in range(len(self)):
            record = self._table[index]
            paths: dict[str, str | None] = {}
            for name, root in self._roots.items():
                try:
                    paths[name] = None if record[name] is None else str(self._follow(record, index, name))
                except MediaError:  # which reading it will meet again
                    paths[name] = str(root / record[name])
            yield self._make_row(index, 0, paths, record["captions"])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def captions(self) -> Iterator[str]:
        """All captions of all rows of the manifest, also of those that `max_samples` leaves out; reads text files, and
        warns of one that cannot be read.

        Raises:
            MediaError: If there is no caption but in files that cannot be read.
        """
        problem, is_empty = None, True
        for index, record in enumerate(self._table):
            own = list(record["captions"])
            if record["text"] is not None:
                try:
                    own.append(_read_caption_file(self._resolve(record, index, "text")))
                except MediaError as error:  # what becomes of its row is decided where the row is used
                    logger.warning(f"A caption is left out. {error}")
                    problem = error
            is_empty = is_empty and not own
            yield from own
        if is_empty and problem is not None:
            raise problem

    def relative_path(self, row: Row, modality: Modality) -> str:
        """Path of a row's file of `"audio"` or `"video"`, relative to the root that its column has, with `/`."""
        column = "video" if modality == "audio" and row["audio_is_sound_track"] else modality
        return Path(cast(str, row[modality])).relative_to(self._roots[column]).as_posix()

    def clip_names(self) -> list[str]:
        """Names of the clips of all rows, without folder and extension, each once, in alphabetical order."""
        paths = {record["video"] or record["audio"] for record in self._table.select(range(len(self)))}
        return sorted({PurePosixPath(path).stem for path in paths if path is not None})

    def check_files(self) -> None:
        """Check that every file of every row exists.

        Raises:
            ValueError: If files are missing; names the first ten and their number.
        """
        problems = []
        for index in range(len(self)):
            try:
                self._row(index, epoch=0)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            more = f"\n… and {len(problems) - 10} more." if len(problems) > 10 else ""
            raise ValueError(
                f"{len(problems)} of {len(self)} rows have no usable file:\n" + "\n".join(problems[:10]) + more
            )

    def _row(self, index: int, epoch: int) -> Row:
        record = self._table[index]
        paths = {name: None if record[name] is None else self._resolve(record, index, name) for name in self._roots}
        return self._make_row(index, epoch, paths, record["captions"])

    def _make_row(self, index: int, epoch: int, paths: Mapping[str, str | None], captions: list[str]) -> Row:
        record = self._table[index]
        is_sound_track = "audio" not in self.columns and paths["video"] is not None
        row: Row = {
            "id": record["id"],
            "index": index,
            "epoch": epoch,
            "video": paths["video"],
            "audio": paths["video"] if is_sound_track else paths["audio"],
            "audio_is_sound_track": is_sound_track,
            "text": paths["text"],
            "captions": captions,
            "start_seconds": record["start_seconds"],
            "end_seconds": record["end_seconds"],
            "group": record["group"],
        }
        row.update(json.loads(record["further"]))  # type: ignore[typeddict-item]
        return row

    def _resolve(self, record: dict[str, Any], index: int, column: str) -> str:
        """Absolute path of a cell: links followed, inside the root, an existing file."""
        path = self._follow(record, index, column)
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise MediaError(
                f"{self._where(record, index, column)}: {path} {problem}. Paths are relative to --{column}_root "
                f"{self._roots[column]}."
            ) from FileNotFoundError(errno.ENOENT, problem, str(path))
        return str(path)

    def _follow(self, record: dict[str, Any], index: int, column: str) -> Path:
        """Absolute path of a cell: links followed, inside the root."""
        root, where = self._roots[column], self._where(record, index, column)
        try:
            path = (root / record[column]).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long
            raise MediaError(f"{where}: {record[column]!r} cannot be resolved: {error}") from error
        if not path.is_relative_to(root):
            raise ValueError(
                f"{where}: {record[column]!r} is a link that leaves its folder for {path}. "
                f"Pass the folder that holds the files as --{column}_root."
            )
        return path

    def _where(self, record: dict[str, Any], index: int, column: str) -> str:
        return f"{self.manifest_file}, row {index} (line {record['line']}, id {record['id']!r}), column {column!r}"


class QuestionDataset(MultimodalDataset):
    """The rows of a manifest with questions: a row's text is its `question`, and `answer` is what should come out.

    Captions that the manifest has besides are left out. Arguments and errors are those of [`MultimodalDataset`].

    Example:

    ```python
    >>> dataset = QuestionDataset("train_questions.jsonl")
    >>> dataset[0]["captions"], dataset[0]["answer"]
    (['which shape is to be seen?'], 'bar')
    ```
    """

    needed_columns = {**MODALITY_COLUMNS, "text": ("question",)}

    def captions(self) -> Iterator[str]:
        """The questions of all rows of the manifest, also of those that `max_samples` leaves out."""
        return (self._cell(index, "question") for index in range(len(self._table)))

    def pairs(self) -> list[tuple[str, str]]:
        """Question and answer of each row that has an answer."""
        answers = (json.loads(self._table[index]["further"]).get("answer") for index in range(len(self)))
        return [(self._cell(index, "question"), answer) for index, answer in enumerate(answers) if answer]

    def _make_row(self, index: int, epoch: int, paths: Mapping[str, str | None], captions: list[str]) -> Row:
        return super()._make_row(index, epoch, {**paths, "text": None}, [self._cell(index, "question")])

    def _cell(self, index: int, column: str) -> str:
        """A cell that must hold text."""
        record = self._table[index]
        value = json.loads(record["further"]).get(column)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{self.manifest_file}, row {index} (line {record['line']}, id {record['id']!r}): `{column}` must be "
                f"a text, got {value!r}."
            )
        return value.strip()


def row_captions(row: Row) -> list[str]:
    """All captions of a row, from the manifest or from its text file; empty if the row has no text.

    Raises:
        MediaError: If the text file is not UTF-8 or is blank.
    """
    return row["captions"] if row["text"] is None else [_read_caption_file(row["text"])]


def _read_caption_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            raise MediaError(f"{path!r}: is no caption: it has more than {MAX_CAPTION_BYTES} bytes.")
        caption = content.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path!r}: cannot be read as UTF-8 text: {error}") from error
    if not caption:
        raise MediaError(f"{path!r}: the caption is empty. Leave the cell empty where a row has no text.")
    return caption


def _scan(path: Path) -> tuple[str, tuple[str, ...]]:
    """Content hash and columns of a manifest."""
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in FORMATS.items())
        raise ValueError(f"{path}: unknown manifest format {path.suffix!r}; known are {known}.")
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest file.")
    with path.open("rb") as file:
        content_hash = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".jsonl":
        columns = tuple(dict.fromkeys(key for _, record in read_jsonl(path) for key in record))
    else:
        head = [cells for _, cells in itertools.islice(read_table(path), 2)]
        columns = tuple(head[0]) if len(head) == 2 else ()
    if not columns:
        raise ValueError(f"{path}: the manifest has 0 rows.")
    return content_hash, columns


def _check_columns(path: Path, columns: Sequence[str], needed: Mapping[Modality, Sequence[str]]) -> None:
    if len(set(columns)) != len(columns):
        raise ValueError(f"{path}: a column occurs twice in the header: {', '.join(columns)}.")
    reserved = [name for name in columns if name in Row.__annotations__ and name not in COLUMNS]
    if reserved:
        raise ValueError(f"{path}: rows have entries {', '.join(reserved)} of their own; rename these columns.")
    unknown = [name for name in columns if name not in COLUMNS]
    similar = {
        name: match[0] for name in unknown if (match := difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.8))
    }
    hint = "".join(f" Did you mean {match!r} with {name!r}?" for name, match in similar.items())
    for modality, accepted in needed.items():
        if not set(accepted) & set(columns):
            raise ValueError(
                f"{path}: no column for {modality}: one of {', '.join(accepted)} is needed, the manifest has "
                f"{', '.join(columns)}.{hint} Accepted are {', '.join(COLUMNS)}, and further ones for the task."
            )
    if hint:
        logger.warning(f"{path}: further columns are handed on, but not read.{hint}")


def _load_table(
    path: Path, content_hash: str, columns: tuple[str, ...], cache_dir: str | Path | None
) -> datasets.Dataset:
    """The manifest's rows as a memory-mapped table, from the cache if this very content was read before."""
    features = datasets.Features(
        {
            name: datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)
            for name, kind in _TABLE_FEATURES.items()
        }
    )
    source = {"manifest": str(path.resolve()), "content": content_hash, "version": _TABLE_VERSION}
    shows_progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # a table is read in no time
    try:
        return datasets.Dataset.from_generator(
            _table_records,
            features=features,
            cache_dir=None if cache_dir is None else str(cache_dir),
            gen_kwargs={**source, "columns": columns},
        )
    except DatasetGenerationError as error:  # wraps what the generator raised
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    finally:
        if shows_progress:
            datasets.enable_progress_bars()


def _table_records(manifest: str, content: str, version: int, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Checked records of a manifest; `content` and `version` are there for the cache key."""
    path = Path(manifest)
    if path.suffix == ".jsonl":
        records = read_jsonl(path)
    else:
        cells = read_table(path)
        next(cells)
        records = ((line, dict(zip(columns, row, strict=True))) for line, row in cells)
    seen: dict[str, int] = {}
    for index, (line, record) in enumerate(records):
        where = f"{path}, line {line}"
        parsed = _parse_record(record, columns, index, where)
        if parsed["id"] in seen:
            raise ValueError(f"{where}: the id {parsed['id']!r} occurred before, in line {seen[parsed['id']]}.")
        seen[parsed["id"]] = line
        yield {"line": line, **parsed}


def read_table(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each line of a CSV or TSV file, the header first; blank lines left out."""
    csv.field_size_limit(sys.maxsize)  # a cell may be longer than the module's 128 KiB
    width = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            for cells in reader:
                if len(cells) < 2 and not "".join(cells).strip():
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {width}. "
                        "A cell that contains the separator must be quoted."
                    )
                yield reader.line_num, [cell.strip() for cell in cells]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: cannot be read as a UTF-8 table: {error}.") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file; blank lines left out."""
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
                record = json.loads(text) if text else None
                json.dumps(record, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
            except (ValueError, RecursionError) as error:  # among them UnicodeError and JSONDecodeError
                raise ValueError(f"{path}, line {line_number}: is not a JSON object: {error}.") from error
            if not text:
                continue
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {line_number}: must be a JSON object, got {text[:40]!r}.")
            yield line_number, record


def _parse_record(record: dict[str, Any], columns: tuple[str, ...], index: int, where: str) -> dict[str, Any]:
    """One record of a manifest as the table stores it."""
    parsed: dict[str, Any] = {name: _parse_path(record, name, where) for name in ("video", "audio", "text")}
    caption, captions = _parse_text(record, "caption", where), _parse_captions(record, where)
    if sum(value is not None for value in (parsed["text"], caption, captions)) > 1:
        raise ValueError(f"{where}: a row may have one of `text`, `caption` and `captions`, not several.")
    parsed["captions"] = captions or ([] if caption is None else [caption])
    if not (parsed["video"] or parsed["audio"] or parsed["text"] or parsed["captions"]):
        raise ValueError(f"{where}: the row is empty: it has neither `video` nor `audio` nor a text.")

    start, end = (_parse_seconds(record, name, where) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: `end_seconds` is {end}, which is not after the start, {start or 0.0}.")
    parsed["start_seconds"], parsed["end_seconds"] = start, end

    parsed["id"] = _parse_name(record, "id", where) or str(index)
    parsed["group"] = _parse_name(record, "group", where) or _default_group(parsed)
    further = {name: record.get(name) for name in columns if name not in COLUMNS}
    parsed["further"] = json.dumps(further, ensure_ascii=False)
    return parsed


def _default_group(parsed: dict[str, Any]) -> str:
    """What makes a clip: its files and its segment; a row without media stands alone."""
    clip = {name: parsed[name] for name in ("video", "audio", "start_seconds", "end_seconds")}
    if clip["video"] is None and clip["audio"] is None:
        return f"id={parsed['id']}"
    return " ".join(f"{name}={value}" for name, value in clip.items() if value is not None)


def _parse_text(record: dict[str, Any], name: str, where: str) -> str | None:
    """A string cell; blank counts as empty."""
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: `{name}` must be a string ({COLUMNS[name]}), got {value!r}.")
    return (value or "").strip() or None


def _parse_name(record: dict[str, Any], name: str, where: str) -> str | None:
    """A string cell that may also be an integer."""
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _parse_text(record, name, where)


def _parse_captions(record: dict[str, Any], where: str) -> list[str] | None:
    value = record.get("captions")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            pass  # refused below, with the text as it stands
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(caption, str) and caption.strip() for caption in value):
        raise ValueError(
            f'{where}: `captions` must be a JSON list of non-empty strings, such as ["a cat", "a cat purrs"], '
            f"got {value!r}. One caption goes into the column `caption`."
        )
    return [caption.strip() for caption in value]


def _parse_seconds(record: dict[str, Any], name: str, where: str) -> float | None:
    value = record.get(name)
    if value is None or value == "":
        return None
    convert: Callable[[Any], float] = float
    try:
        seconds = math.nan if isinstance(value, bool) else convert(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{where}: `{name}` must be a time in seconds, 0 or more, got {value!r}.")
    return seconds


def _parse_path(record: dict[str, Any], name: str, where: str) -> str | None:
    """A path cell, refused by its looks alone where it could point out of its root; no file is touched."""
    value = _parse_text(record, name, where)
    if value is None:
        return None
    problem = None
    if _PROTOCOL.match(value):
        problem = "looks like a URL or an FFmpeg protocol"
    elif PurePosixPath(value).is_absolute() or PureWindowsPath(value).anchor:
        problem = "is absolute"
    elif _climbs(PurePosixPath(value).parts) or _climbs(PureWindowsPath(value).parts):
        problem = "leaves its folder by '..'"
    elif "\0" in value:
        problem = "holds a NUL character"
    if problem:
        raise ValueError(
            f"{where}: the path {value!r} in column {name!r} {problem}. Give a file's path relative to --{name}_root."
        )
    return value


def _climbs(parts: Sequence[str]) -> bool:
    """Whether a relative path goes above its start."""
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
