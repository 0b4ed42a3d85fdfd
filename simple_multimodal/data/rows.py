"""Rows: one per sample, with paths, captions and times. Media files are not opened here; the collator reads them."""

import errno
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Self, TypedDict, cast

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from simple_multimodal.data.fields import captions_remedy
from simple_multimodal.data.files import media_records
from simple_multimodal.data.manifest import read_manifest
from simple_multimodal.data.records import (
    CLIP_FILES,
    COLUMNS,
    FILE_COLUMNS,
    SCHEMA,
    RecordParser,
    Table,
    as_records,
    report,
)
from simple_multimodal.data.roots import Roots
from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError
from simple_multimodal.modalities import DEFAULT_MODALITIES, Modality

if TYPE_CHECKING:
    import pandas

logger = logging.get_logger(__name__)

MAX_CAPTION_BYTES = 2**20  # size limit of a text file
BATCH_ROWS = 1000

Folder = str | os.PathLike[str]
Files = Literal["resolve", "named", "none"]


class Row(TypedDict):
    """One sample. Further columns are included under their own names."""

    id: str
    index: int  # row number, from 0
    epoch: int  # epoch for which the sample is loaded
    video: str | None  # absolute path
    audio: str | None  # absolute path; that of the video if there is no `audio` column
    audio_from_video: bool
    text: str | None  # absolute path of a text file
    pose: str | None  # absolute path of a pose file, or of features of its frames
    captions: list[str]  # as in the source; empty if they are in a file
    start_seconds: float | None
    end_seconds: float | None
    group: str
    is_skipped: NotRequired[bool]  # the sample could not be read and has no modality


EMPTY_ROW: Row = {
    "id": "",
    "index": -1,
    "epoch": 0,
    "video": None,
    "audio": None,
    "audio_from_video": True,
    "text": None,
    "pose": None,
    "captions": [],
    "start_seconds": None,
    "end_seconds": None,
    "group": "",
    "is_skipped": True,
}
"""A row that lacks every modality."""


class ClipFile(NamedTuple):
    """
    The file of a clip.

    Args:
        name (`str`): Name in the row, without folder and extension.
        path (`str`): Absolute path of the file with links resolved; it may not exist.
    """

    name: str
    path: str


class RowDataset:
    """Dataset of rows, one per sample. A row holds the paths of media files, which the collator reads.

    Args:
        rows (`Iterable[Mapping]` or [`Table`]):
            A dictionary per row with the columns in `COLUMNS`, such as `{"video": "cat.mp4", "caption": "a cat"}`; or
            a table that was already read. See also [`from_manifest`], [`from_files`], [`from_dataset`] and
            [`from_dataframe`].
        roots (`str`, `Path` or `Mapping[str, str | Path]`, *optional*):
            Root folder of the files of all columns, or of each column (`"video"`, `"audio"`, `"text"`, `"pose"`). The
            default for a manifest is its own folder. Files of other rows are by default relative to the working
            directory and may be anywhere.
        follow_links (`bool`, *optional*, defaults to `False`):
            Follow symbolic links wherever they lead. Otherwise they may lead below one of the roots and, from a
            snapshot of the hub's cache, to its blobs.
        max_samples (`int`, *optional*):
            Keep only the first rows. Applied before any file of a row is touched.
        modalities (`Sequence[str]`, *optional*, defaults to `("text", "audio", "video")`):
            Modalities of the model: each must have a column. `None`: there must be a column of media, whichever.
        text_column (`str`, *optional*):
            Column with the text of a row, such as `"question"`, which every row must have; captions are then ignored.
            By default the text is one of `text`, `caption` and `captions`.
        typed_columns (`Mapping[str, str]`, *optional*):
            Further columns that are read and checked by their kind, such as `{"answer": "name"}`, instead of being
            passed on unchanged.

    Raises:
        ValueError: If there are no rows **or** no column for one of `modalities`, **or** if a row has a repeated id,
            both `text` and a caption, neither media nor text, a wrong type or time, **or** a path that is absolute and
            not below its root, leaves its root, or looks like a URL or an FFmpeg protocol. The message names the row
            or line; if there are several, the first ones and their number.

    Example:

    ```python
    >>> dataset = RowDataset.from_manifest("train.csv", roots={"video": "datasets/video"})
    >>> dataset[0]
    {'id': '0', 'index': 0, 'epoch': 0, 'video': '/…/datasets/video/cat.mp4', 'audio': '/…/datasets/video/cat.mp4',
     'text': None, 'pose': None, 'audio_from_video': True, 'captions': ['a cat purrs'], 'start_seconds': None,
     'end_seconds': None, 'group': 'video=cat.mp4'}
    >>> questions = RowDataset.from_manifest(
    ...     "train_questions.jsonl", text_column="question", typed_columns={"answer": "name"}
    ... )
    >>> questions[0]["captions"], questions[0]["answer"]
    (['what shape do you see?'], 'bar')
    ```
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] | Table,
        *,
        roots: Folder | Mapping[str, Folder | None] | None = None,
        follow_links: bool = False,
        max_samples: int | None = None,
        modalities: Sequence[Modality] | None = DEFAULT_MODALITIES,
        text_column: str | None = None,
        typed_columns: Mapping[str, str] | None = None,
    ):
        if max_samples is not None and max_samples < 1:
            raise InputError(f"`max_samples` must be 1 or more, got {max_samples}.")
        if not isinstance(rows, Table):
            rows = as_records(rows)
            columns = tuple(dict.fromkeys(name for row in rows for name in row))
            rows = _in_memory(rows, RecordParser("rows", columns, text_column, typed_columns or {}), modalities)
        self.columns = rows.columns
        self.manifest_file = rows.manifest_file
        self.name = rows.name
        self._unit = rows.unit
        self._has_one_text = text_column is not None
        self._table = rows.data
        own_folder = os.getcwd() if self.manifest_file is None else self.manifest_file.parent
        given = roots if isinstance(roots, Mapping) else dict.fromkeys(FILE_COLUMNS, roots)
        if unknown := sorted(given.keys() - set(FILE_COLUMNS)):
            raise InputError(f"`roots` names {', '.join(unknown)}; columns of files are {', '.join(FILE_COLUMNS)}.")
        self._roots = Roots(
            {name: own_folder if given.get(name) is None else cast(Folder, given[name]) for name in FILE_COLUMNS},
            follow_links=follow_links,
            anywhere=self.manifest_file is None and not any(given.values()),
        )
        self._check_absolute()
        self._length = min(len(self._table), max_samples or len(self._table))
        self.fingerprint = hashlib.sha256(f"{rows.content_hash} {self._length}".encode()).hexdigest()
        self.epoch = 0
        self._clip_names: pa.Array | None = None
        self._clip_files: tuple[pa.Array, pa.Array] | None = None

    @classmethod
    def from_manifest(
        cls,
        manifest_file: Folder,
        *,
        modalities: Sequence[Modality] | None = DEFAULT_MODALITIES,
        text_column: str | None = None,
        typed_columns: Mapping[str, str] | None = None,
        cache_dir: Folder | None = None,
        **settings: Any,
    ) -> Self:
        """Open the rows of a manifest; see [`read_manifest`]. `settings` are further arguments of the class."""
        table = read_manifest(
            manifest_file,
            modalities=modalities,
            text_column=text_column,
            typed_columns=typed_columns,
            cache_dir=cache_dir,
        )
        return cls(table, **settings)

    @classmethod
    def from_files(cls, paths: Folder | Sequence[Folder], *, recursive: bool = False, **settings: Any) -> Self:
        """Make a row without text for each media file, or for each one in a folder; see [`media_records`]. `settings`
        are further arguments of the class."""
        records = enumerate(media_records(paths, recursive=recursive))
        numbered = [{"place": number, **record} for number, record in records]
        return cls(_table_of("files", pa.Table.from_pylist(numbered, SCHEMA), CLIP_FILES), **settings)

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        *,
        modalities: Sequence[Modality] | None = DEFAULT_MODALITIES,
        text_column: str | None = None,
        typed_columns: Mapping[str, str] | None = None,
        cache_dir: Folder | None = None,
        max_samples: int | None = None,
        **settings: Any,
    ) -> Self:
        """Make rows from a `datasets.Dataset`. Its `Video` and `Audio` columns are not decoded by that library: their
        files are used, and files stored in the dataset itself are written to the cache.

        Args:
            dataset (`datasets.Dataset`):
                Dataset with the columns in `COLUMNS`; rename others (`dataset.rename_column("sentence", "caption")`).
            cache_dir (`str` or `Path`, *optional*):
                Folder for files stored in the dataset; by default the cache of `datasets`.
            max_samples (`int`, *optional*):
                Keep only the first rows; nothing is read or written for the others.
            modalities, text_column, typed_columns, settings:
                As for the class.

        Raises:
            ValueError: If rows are wrong, see the class.
        """
        if max_samples is not None:
            dataset = dataset.select(range(min(max(max_samples, 1), len(dataset))))
        features = dataset.features
        media = [name for name in features if isinstance(features[name], (datasets.Video, datasets.Audio))]
        for name in media:
            dataset = dataset.cast_column(name, type(features[name])(decode=False))
        folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, "simple_multimodal", "media")
        records = ({**row, **{name: _media_path(row[name], folder) for name in media}} for row in dataset)
        parser = RecordParser("dataset", tuple(dataset.column_names), text_column, typed_columns or {})
        return cls(_in_memory(records, parser, modalities), max_samples=max_samples, **settings)

    @classmethod
    def from_dataframe(cls, frame: "pandas.DataFrame", **settings: Any) -> Self:
        """Make rows from a pandas table, in which NaN is an empty cell; `settings` are arguments of the class."""
        return cls(frame.astype(object).where(frame.notna(), None).to_dict("records"), **settings)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that [`EpochSampler`] yields next, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        """Return row `index`, or row `index` for an epoch if `key` is `(epoch, index)`; see [`row`]."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.row(index, epoch)

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def row(self, index: int, epoch: int = 0, *, files: Files = "resolve") -> Row:
        """Return a row.

        Args:
            index (`int`):
                Number of the row; negative numbers count from the end.
            epoch (`int`, *optional*, defaults to 0):
                Epoch for which it is loaded.
            files (`str`, *optional*, defaults to `"resolve"`):
                `"resolve"`: absolute paths of files that exist. `"named"`: absolute paths of files that may be
                missing. `"none"`: no files, without looking for them, as for a row that cannot be read; its captions
                are those of the source, or an empty one if they are in a file.

        Raises:
            MediaError: If a file of the row does not exist or is not a regular file.
            ValueError: If a link leads out of the roots.
        """
        index = operator.index(index)
        if not -self._length <= index < self._length:
            raise IndexError(f"Row {index} of {self._length}.")
        index %= self._length
        return self._make_row(self._table[index], index, epoch, files)

    def rows(self, *, files: Files = "resolve") -> Iterator[Row]:
        """Iterate over all rows in order; arguments and errors as in [`row`].

        Raises:
            ValueError: With `"named"` before the first row, if links lead out of the roots.
        """
        if files == "named":
            self.check_links()
        for index, record in enumerate(self._records(self._length)):
            yield self._make_row(record, index, 0, files)

    def column(self, name: str) -> list[Any]:
        """Return the values of a column in the order of the rows, with paths as given; `None` if a row has no value.
        Faster than iterating over the rows.
        """
        if name in COLUMNS and name in SCHEMA.names:
            return self._cells(name).to_pylist()
        return [json.loads(further).get(name) for further in self._cells("further").to_pylist()]

    def captions(self) -> Iterator[str]:
        """Iterate over all captions, including those of rows beyond `max_samples`. Text files are read; those that
        cannot be read are skipped, with one warning at the end.

        Raises:
            MediaError: If all captions are in files that cannot be read.
        """
        problems: list[MediaError] = []
        is_empty = True
        for index, record in enumerate(self._records(len(self._table))):
            own = list(record["captions"])
            if record["text"] is not None:
                try:
                    own.append(_read_caption_file(self._resolve(record, index, "text")))
                except MediaError as error:  # handled when the row is used
                    problems.append(error)
            is_empty = is_empty and not own
            yield from own
        if problems and is_empty:
            raise problems[0]
        if problems:
            logger.warning(f"Skipped {len(problems)} text files that cannot be read; the first one: {problems[0]}")

    def num_captions(self) -> int:
        """Return the number of captions of all rows without opening files; a text file counts as one."""
        if self._has_one_text:
            return len(self)
        lists, files = (self._cells(name) for name in ("captions", "text"))
        return (pc.sum(pc.list_value_length(lists)).as_py() or 0) + len(files) - files.null_count

    def relative_path(self, row: Row, modality: Modality) -> str:
        """Return the path of a row's file of `modality` with `/`, relative to the root of its column, or to the root
        of the file system if it is elsewhere.
        """
        column = "video" if modality == "audio" and row["audio_from_video"] else modality
        path, root = Path(cast(str, row[modality])), self._roots.folders[column]  # type: ignore[literal-required]
        return path.relative_to(root if path.is_relative_to(root) else path.anchor).as_posix()

    def clip_cells(self) -> list[str]:
        """Return the unique files of all clips as the source names them, in file order."""
        return pc.coalesce(*map(self._cells, CLIP_FILES)).unique().drop_null().to_pylist()

    def clip_names(self) -> list[str]:
        """Return the unique names of all clips, without folder and extension, in alphabetical order."""
        if self._clip_names is None:  # in Arrow memory: millions of strings take a fraction of the memory
            names = {PurePosixPath(path.strip()).stem for path in self.clip_cells()}
            self._clip_names = pa.array(sorted(names), pa.string())
        return self._clip_names.to_pylist()

    def clip_files(self) -> list[ClipFile]:
        """Return the unique files of all clips, sorted. Lists folders, but opens no file."""
        if self._clip_files is None:  # in Arrow memory, like the names
            cells, has_file = {}, pc.is_null(self._cells("id"))  # of no row yet
            for column in CLIP_FILES:
                cells[column] = self._cells(column).filter(pc.invert(has_file))
                has_file = pc.or_(has_file, pc.is_valid(self._cells(column)))
            clips = {
                ClipFile(PurePosixPath(cell.strip()).stem, path)
                for column, own in cells.items()
                for cell, path in self._roots.targets(own.unique().drop_null().to_pylist(), column)
            }
            ordered = sorted(clips)
            names = pa.array([clip.name for clip in ordered], pa.string())
            self._clip_files = names, pa.array([os.fsencode(clip.path) for clip in ordered], pa.binary())
        names, paths = (column.to_pylist() for column in self._clip_files)
        return list(map(ClipFile, names, map(os.fsdecode, paths)))

    def check_links(self) -> None:
        """Check that no file of a row, and no folder of one, is a link that leads out of the roots. Lists folders, but
        opens no file and does not check that files exist.

        Raises:
            ValueError: If there are such links; the message names the first one and the number of rows with one.
        """
        for column in FILE_COLUMNS:
            cells = self._cells(column)
            out = self._roots.links_out(cells.unique().drop_null().to_pylist(), column)
            if not out:
                continue
            indices = pc.indices_nonzero(pc.is_in(cells, pa.array(out, pa.string()))).to_pylist()
            try:
                self._locate(self._table[indices[0]], indices[0], column)
            except ValueError as error:
                others = f" {len(indices) - 1} other rows have such links, too." if len(indices) > 1 else ""
                raise InputError(f"{error}{others}") from error

    def _cells(self, column: str) -> pa.ChunkedArray:
        return self._table.data.column(column).slice(0, self._length)

    def _records(self, num_rows: int) -> Iterator[dict[str, Any]]:
        """Yield the first records of the table, read in batches."""
        for batch in self._table.data.table.slice(0, num_rows).to_batches(BATCH_ROWS):
            yield from batch.to_pylist()

    def _make_row(self, record: Mapping[str, Any], index: int, epoch: int, files: Files) -> Row:
        further = json.loads(record["further"])
        record = {**record, **{name: further.pop(name) for name in COLUMNS if name in further}}  # see `media_records`
        paths = {name: self._path(record, index, name, files) for name in FILE_COLUMNS}
        row = {
            "id": record["id"],
            "index": index,
            "epoch": epoch,
            **paths,
            "audio_from_video": record["audio_from_video"],
            "captions": [""] if files == "none" and record["text"] is not None else record["captions"],
            "start_seconds": record["start_seconds"],
            "end_seconds": record["end_seconds"],
            "group": record["group"],
            **further,
        }
        if record["audio_from_video"]:
            row["audio"] = row["video"]
        return cast(Row, row)

    def _path(self, record: Mapping[str, Any], index: int, column: str, files: Files) -> str | None:
        if record[column] is None or files == "none":
            return None
        return (self._locate if files == "named" else self._resolve)(record, index, column)

    def _resolve(self, record: Mapping[str, Any], index: int, column: str) -> str:
        """Return the absolute path of a cell's file, which must exist."""
        path = Path(self._locate(record, index, column))
        try:
            if path.is_file():
                return str(path)
            problem = "is not a regular file" if path.exists() else "does not exist"
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # as a caption in a column of files may be
                raise
            problem = "does not exist"
        raise MediaError(
            f"{self._where(record, index, column)}: {path} {problem}. Paths are relative to "
            f"{self._roots.folders[column]} (`{column}_root`).{captions_remedy(column)}"
        ) from FileNotFoundError(errno.ENOENT, problem, str(path))

    def _locate(self, record: Mapping[str, Any], index: int, column: str) -> str:
        """Return the absolute path of a cell's file, inside the roots."""
        try:
            return self._roots.locate(record[column], column)
        except ValueError as error:  # or a MediaError, which is one
            raise type(error)(f"{self._where(record, index, column)}: {error}") from error

    def _check_absolute(self) -> None:
        """Refuse absolute paths that are not below their roots, which the stored table does not know."""
        problems = []
        for column in FILE_COLUMNS:
            cells = self._table.data.column(column)
            absolute = pc.indices_nonzero(pc.starts_with(pc.utf8_ltrim_whitespace(cells), "/"))
            places = self._table.data.column("place").take(absolute)
            for place, cell in zip(places.to_pylist(), cells.take(absolute).to_pylist(), strict=True):
                try:
                    self._roots.relative(cell.strip(), column)
                except ValueError as error:
                    problems.append((place, str(error)))
        if problems:
            raise InputError(report(self.name, self._unit, sorted(problems)))

    def _where(self, record: Mapping[str, Any], index: int, column: str) -> str:
        line = f"line {record['place']}, " if self._unit == "line" else ""
        return f"{self.name}, row {index} ({line}id {record['id']!r}), column {column!r}"


def without_files(row: Row) -> Row:
    """Return a row as [`RowDataset.row`] does with `files="none"`."""
    captions = row["captions"] if row["text"] is None else [""]
    return cast(Row, {**row, **dict.fromkeys(FILE_COLUMNS), "captions": captions})


def clip_file(row: Mapping[str, Any], columns: Sequence[str] = CLIP_FILES) -> str | None:
    """Return the file that stands for a row's clip in results: the first that it has; `None` without any."""
    return next((row[name] for name in columns if row[name] is not None), None)


def row_captions(row: Row) -> list[str]:
    """Return all captions of a row, its own or the one in its text file; none if the row has no text.

    Raises:
        MediaError: If the text file is not UTF-8 or is blank.
    """
    return row["captions"] if row["text"] is None else [_read_caption_file(row["text"])]


def _read_caption_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            raise MediaError(f"{path!r}: is not a caption: it has more than {MAX_CAPTION_BYTES} bytes.")
        caption = content.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path!r}: cannot be read as UTF-8 text: {error}") from error
    if not caption:
        raise MediaError(f"{path!r}: the caption is empty. Leave the cell empty if the row has no text.")
    return caption


def _in_memory(
    records: Iterable[Mapping[str, Any]], parser: RecordParser, modalities: Sequence[Modality] | None
) -> Table:
    """Make a table in memory from records, after checking them."""
    batches: list[pa.RecordBatch] = []
    if parser.columns:
        parser.check_columns(modalities)
        batches = list(parser.parse(enumerate(records)))
    if not batches:
        raise InputError(f"{parser.name}: there are 0 rows.")
    return _table_of(parser.name, pa.Table.from_batches(batches), parser.columns)


def _table_of(name: str, table: pa.Table, columns: tuple[str, ...]) -> Table:
    digest = hashlib.sha256()
    has_poses = table["pose"].null_count < len(table)  # rows without any keep the hash that they had before
    for batch in (table if has_poses else table.drop_columns("pose")).to_batches():
        digest.update(batch.serialize())
    return Table(datasets.Dataset(datasets.table.InMemoryTable(table)), columns, digest.hexdigest(), name)


def _media_path(cell: Mapping[str, Any] | None, folder: Path) -> str | None:
    """Return the file of a `Video` or `Audio` cell; content in the cell is written to a file named after its hash."""
    if cell is None:
        return None
    path, content = cell["path"], cell["bytes"]
    if content is None or (path is not None and os.path.isfile(path)):
        return path
    name = hashlib.sha256(content).hexdigest()[:32] + PurePosixPath(path or "").suffix
    file = folder / name[:2] / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        incomplete = file.with_name(f".{name}.{os.getpid()}")
        incomplete.write_bytes(content)
        incomplete.replace(file)
    return str(file)
