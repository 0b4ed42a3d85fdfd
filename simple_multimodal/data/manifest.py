"""Manifests: tables of samples (paths, captions, times) read lazily through `datasets`."""

import difflib
import errno
import hashlib
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, cast

import datasets
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from simple_multimodal.data.fields import (
    READERS,
    read_captions,
    read_name,
    read_path,
    read_prose,
    read_seconds,
)
from simple_multimodal.data.roots import Roots
from simple_multimodal.data.tables import read_jsonl, read_records, read_table, table_format
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

MODALITY_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "text": ("text", "caption", "captions"),
    "audio": ("audio", "video"),
    "video": ("video",),
}
"""Columns of which one must be there for a model that takes the modality."""

MAX_LINK_BYTES = 4096  # of the text of a symbolic link
MAX_CAPTION_BYTES = 2**20  # of a text file

_TABLE_VERSION = 2  # part of the cache key: raise it when the stored rows change
PATH_COLUMNS = ("video", "audio", "text")
MAX_PROBLEMS = 5  # that one message tells of
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
        follow_links (`bool`, *optional*, defaults to `False`):
            Follow symbolic links wherever they lead. Otherwise they may lead below one of the three roots and, from a
            snapshot of the hub's cache, to its blobs.

    Raises:
        ValueError: If the manifest is missing, of another format, without rows **or** without a column for one of
            `modalities`, **or** if a row has another number of cells, an id that occurred before, both `text` and a
            caption, neither media nor text, a wrong type or time, **or** a path that is absolute and not below its
            root, leaves its root or looks like a URL or an FFmpeg protocol. The message names file and line, and the
            first of several rows with their number.

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
    task_columns: Mapping[str, str] = {}
    """Further columns that are read, by their kind of field, instead of being handed on as they are."""

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
        follow_links: bool = False,
    ):
        self.manifest_file = Path(manifest_file)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"`max_samples` must be 1 or more, got {max_samples}.")
        content_hash, columns = _scan(self.manifest_file)
        _check_columns(self.manifest_file, columns, {m: self.needed_columns[m] for m in modalities})
        self.columns = columns
        own_folder = self.manifest_file.parent
        roots = {"video": video_root, "audio": audio_root, "text": text_root}
        self._roots = Roots(
            {name: own_folder if root is None else root for name, root in roots.items()}, follow_links=follow_links
        )
        self._table = _load_table(self.manifest_file, content_hash, columns, self.task_columns, cache_dir)
        self._check_absolute()
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
            ValueError: If a link leads out of the roots.
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
        return self._make_row(index, epoch, dict.fromkeys(PATH_COLUMNS), captions)

    def named_rows(self) -> Iterator[Row]:
        """All rows with their files as the manifest names them, which may be absent: to plan what is to be read.

        Raises:
            ValueError: If links lead out of the roots.
        """
        self.check_links()
        for index in range(len(self)):
            record = self._table[index]
            yield self._make_row(index, 0, self._paths(record, index, self._locate), record["captions"])

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

    def num_captions(self) -> int:
        """Return the number of captions of all rows; opens no file, a text file counts as one."""
        lists, files = (self._table.data.column(name).slice(0, self._length) for name in ("captions", "text"))
        return (pc.sum(pc.list_value_length(lists)).as_py() or 0) + len(files) - files.null_count

    def relative_path(self, row: Row, modality: Modality) -> str:
        """Path of a row's file of `"audio"` or `"video"`, relative to the root that its column has, with `/`."""
        column = "video" if modality == "audio" and row["audio_is_sound_track"] else modality
        return Path(cast(str, row[modality])).relative_to(self._roots.folders[column]).as_posix()

    def clip_names(self) -> list[str]:
        """Names of the clips of all rows, without folder and extension, each once, in alphabetical order."""
        paths = {record["video"] or record["audio"] for record in self._table.select(range(len(self)))}
        return sorted({PurePosixPath(path.strip()).stem for path in paths if path is not None})

    def check_links(self) -> None:
        """Check that no file of a row is a link, or lies in a folder, which leads out of the roots. Lists folders,
        but opens no file, and does not ask whether files are there.

        Raises:
            ValueError: If there are some; names the first and how many rows have one.
        """
        for column in PATH_COLUMNS:
            cells = self._table.data.column(column).slice(0, self._length)
            out = set(self._roots.links_out(cells.unique().drop_null().to_pylist(), column))
            if not out:
                continue
            rows = [index for index, cell in enumerate(cells.to_pylist()) if cell in out]
            try:
                self._locate(self._table[rows[0]], rows[0], column)
            except ValueError as error:
                others = f" {len(rows) - 1} other rows have such links, too." if len(rows) > 1 else ""
                raise ValueError(f"{error}{others}") from error

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
        return self._make_row(index, epoch, self._paths(record, index, self._resolve), record["captions"])

    def _paths(
        self, record: dict[str, Any], index: int, find: Callable[[dict[str, Any], int, str], str]
    ) -> dict[str, str | None]:
        return {name: None if record[name] is None else find(record, index, name) for name in PATH_COLUMNS}

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
        """Absolute path of a cell, an existing file."""
        path = Path(self._locate(record, index, column))
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise MediaError(
                f"{self._where(record, index, column)}: {path} {problem}. Paths are relative to --{column}_root "
                f"{self._roots.folders[column]}."
            ) from FileNotFoundError(errno.ENOENT, problem, str(path))
        return str(path)

    def _locate(self, record: dict[str, Any], index: int, column: str) -> str:
        """Absolute path of a cell, inside the roots."""
        try:
            return self._roots.locate(record[column], column)
        except ValueError as error:  # or a MediaError, which is one
            raise type(error)(f"{self._where(record, index, column)}: {error}") from error

    def _check_absolute(self) -> None:
        """Refuse absolute paths that are not below their roots, of which the stored table knows nothing."""
        problems = []
        for column in PATH_COLUMNS:
            for index, cell in enumerate(self._table.data.column(column).to_pylist()):
                if cell is not None and cell.lstrip().startswith("/"):
                    try:
                        self._roots.relative(cell.strip(), column)
                    except ValueError as error:
                        problems.append((self._table[index]["line"], str(error)))
        if problems:
            raise ValueError(_report(self.manifest_file, sorted(problems)))

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
    task_columns = {"question": "question", "answer": "name", "answer_type": "name"}

    def captions(self) -> Iterator[str]:
        """The questions of all rows of the manifest, also of those that `max_samples` leaves out."""
        return (question for question, _ in self._pairs(len(self._table)))

    def num_captions(self) -> int:
        """Return the number of questions, one of each row."""
        return len(self)

    def pairs(self) -> list[tuple[str, str]]:
        """Question and answer of each row that has an answer."""
        return [(question, answer) for question, answer in self._pairs(len(self)) if answer is not None]

    def _pairs(self, num_rows: int) -> Iterator[tuple[str, str | None]]:
        for text in self._table.data.column("further").slice(0, num_rows).to_pylist():
            further = json.loads(text)
            yield further["question"], further.get("answer")

    def _make_row(self, index: int, epoch: int, paths: Mapping[str, str | None], captions: list[str]) -> Row:
        row = super()._make_row(index, epoch, {**paths, "text": None}, [])
        row["captions"] = [row["question"]]  # type: ignore[typeddict-item]
        return row


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
    suffix = table_format(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest file.")
    with path.open("rb") as file:
        begin = file.read(MAX_LINK_BYTES)
        if b"\n" not in begin.strip() and os.path.isfile(path.parent / os.fsdecode(begin).replace("\0", "").strip()):
            raise ValueError(
                f"{path}: holds nothing but the path of a file: it is a symbolic link that was copied or checked out "
                f"as text (git does so with core.symlinks off). Make it a link, or name {os.fsdecode(begin).strip()}."
            )
        file.seek(0)
        content_hash = hashlib.file_digest(file, "sha256").hexdigest()
    if suffix == ".jsonl":
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
    if len(columns) == 1 and (other := next((mark for mark in ";\t|," if mark in columns[0]), None)):
        hint = f" The separator seems to be {other!r}: that of .csv is a comma, that of .tsv a tab."
    for modality, accepted in needed.items():
        if not set(accepted) & set(columns):
            raise ValueError(
                f"{path}: no column for {modality}: one of {', '.join(accepted)} is needed, the manifest has "
                f"{', '.join(columns)}.{hint} Accepted are {', '.join(COLUMNS)}, and further ones for the task."
            )
    if hint:
        logger.warning(f"{path}: further columns are handed on, but not read.{hint}")


def _load_table(
    path: Path,
    content_hash: str,
    columns: tuple[str, ...],
    task_columns: Mapping[str, str],
    cache_dir: str | Path | None,
) -> datasets.Dataset:
    """The manifest's rows as a memory-mapped table, from the cache if this very content was read before."""
    features = datasets.Features(
        {
            name: datasets.List(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)
            for name, kind in _TABLE_FEATURES.items()
        }
    )
    # Not resolved: what a link leads to may have another suffix, or none.
    source = {"manifest": os.path.abspath(path), "content": content_hash, "version": _TABLE_VERSION}
    shows_progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # a table is read in no time
    try:
        return datasets.Dataset.from_generator(
            _table_records,
            features=features,
            cache_dir=None if cache_dir is None else str(cache_dir),
            gen_kwargs={**source, "columns": columns, "task_columns": dict(task_columns)},
        )
    except DatasetGenerationError as error:  # wraps what the generator raised
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    finally:
        if shows_progress:
            datasets.enable_progress_bars()


def _table_records(
    manifest: str, content: str, version: int, columns: tuple[str, ...], task_columns: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Checked records of a manifest; `content` and `version` are there for the cache key."""
    path = Path(manifest)
    seen: dict[str, int] = {}
    problems: list[tuple[int, str]] = []
    is_jsonl = table_format(path) == ".jsonl"
    for index, (line, record) in enumerate(read_records(path)):
        try:
            parsed = _parse_record(record, columns, task_columns, index, is_jsonl=is_jsonl)
            if parsed["id"] in seen:
                raise ValueError(f"the id {parsed['id']!r} occurred before, in line {seen[parsed['id']]}.")
        except ValueError as error:
            problems.append((line, str(error)))
            continue
        seen[parsed["id"]] = line
        yield {"line": line, **parsed}
    if problems:
        raise ValueError(_report(path, problems))


def _report(path: Path, problems: Sequence[tuple[int, str]]) -> str:
    """One message about rows that are wrong, each with its line."""
    told = " ".join(f"{path}, line {line}: {problem}" for line, problem in problems[:1])
    if len(problems) > 1:
        told = f"{path}: {len(problems)} rows are wrong. " + " ".join(
            f"Line {line}: {problem}" for line, problem in problems[:MAX_PROBLEMS]
        )
    if left := problems[MAX_PROBLEMS:]:
        lines = ", ".join(str(line) for line, _ in left[:20])
        told += f" And {len(left)} more, in the lines {lines}{', …' * (len(left) > 20)}."
    return told


def _parse_record(
    record: dict[str, Any], columns: tuple[str, ...], task_columns: Mapping[str, str], index: int, *, is_jsonl: bool
) -> dict[str, Any]:
    """One record of a manifest as the table stores it."""
    parsed: dict[str, Any] = {name: read_path(record.get(name), name) for name in PATH_COLUMNS}
    caption, captions = read_prose(record.get("caption"), "caption"), read_captions(record.get("captions"), "captions")
    if sum(value is not None for value in (parsed["text"], caption, captions)) > 1:
        raise ValueError("a row may have one of `text`, `caption` and `captions`, not several.")
    parsed["captions"] = captions or ([] if caption is None else [caption])
    if not (parsed["video"] or parsed["audio"] or parsed["text"] or parsed["captions"]):
        raise ValueError("the row is empty: it has neither `video` nor `audio` nor a text.")

    start, end = (read_seconds(record.get(name), name) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"`end_seconds` is {end}, which is not after the start, {start or 0.0}.")
    parsed["start_seconds"], parsed["end_seconds"] = start, end

    parsed["id"] = read_name(record.get("id"), "id") or str(index)
    parsed["group"] = read_name(record.get("group"), "group") or _default_group(parsed)
    further = {name: record.get(name) for name in columns if name not in COLUMNS}
    if not is_jsonl:
        further = {name: record[name].strip() for name in further}
    further |= {name: READERS[kind](record.get(name), name) for name, kind in task_columns.items()}
    parsed["further"] = json.dumps(further, ensure_ascii=False)
    return parsed


def _default_group(parsed: dict[str, Any]) -> str:
    """What makes a clip: its files and its segment; a row without media stands alone."""
    clip = {name: parsed[name] for name in ("video", "audio", "start_seconds", "end_seconds")}
    if clip["video"] is None and clip["audio"] is None:
        return f"id={parsed['id']}"
    return " ".join(f"{name}={str(value).strip()}" for name, value in clip.items() if value is not None)
