"""Manifests: CSV, TSV and JSONL files of samples, converted to tables that are memory-mapped when opened again."""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from filelock import FileLock

from simple_multimodal.data.records import SCHEMA, RecordParser, Table
from simple_multimodal.data.tables import read_jsonl, read_records, read_table, table_format
from simple_multimodal.errors import InputError
from simple_multimodal.modalities import DEFAULT_MODALITIES, Modality

MAX_LINK_BYTES = 4096  # length of the text of a symbolic link
TABLE_VERSION = 5  # part of the name of a stored table: raise it when its content changes


def read_manifest(
    manifest_file: str | os.PathLike[str],
    *,
    modalities: Sequence[Modality] | None = DEFAULT_MODALITIES,
    text_column: str | None = None,
    typed_columns: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Table:
    """Read and check the records of a manifest. They are stored in a file named after the manifest's content and these
    arguments, so that they are parsed only once.

    Args:
        manifest_file (`str` or `Path`):
            `.csv`, `.tsv` or `.jsonl` with the columns in `COLUMNS`, in any order, UTF-8.
        modalities (`Sequence[str]`, *optional*, defaults to `("text", "audio", "video")`):
            Modalities of the model: each must have a column. `None`: there must be a column of media, whichever.
        text_column, typed_columns:
            See [`RowDataset`].
        cache_dir (`str` or `Path`, *optional*):
            Folder in which the table is stored; by default the cache of `datasets`.

    Raises:
        ValueError: If the file is missing, has another format, has no rows or lacks a required column, **or** if
            records are wrong. The message names file and line.
    """
    path = Path(manifest_file)
    suffix = table_format(path)
    content_hash = _hash_content(path)
    settings = [content_hash, suffix, TABLE_VERSION, text_column, sorted((typed_columns or {}).items())]
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    stored = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, "simple_multimodal", f"{name}.arrow")
    columns = _stored_columns(stored) if stored.exists() else _columns(path)
    parser = RecordParser(
        str(path), columns, text_column, typed_columns or {}, unit="line", is_cells=suffix != ".jsonl"
    )
    parser.check_columns(modalities)
    if not stored.exists():
        stored.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{stored}.lock"):  # the other processes of a run wait for the one that parses
            if not stored.exists():
                _write_table(path, parser, stored)
    return Table(datasets.Dataset.from_file(str(stored)), columns, content_hash, str(path), path)


def _write_table(path: Path, parser: RecordParser, stored: Path) -> None:
    """Write the records of a manifest to a file, which appears when it is complete."""
    schema = SCHEMA.with_metadata({"columns": json.dumps(parser.columns)})
    incomplete = stored.with_suffix(".incomplete")
    try:
        with pa.OSFile(str(incomplete), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in parser.parse(read_records(path)):
                writer.write_batch(batch)
        incomplete.replace(stored)
    finally:
        incomplete.unlink(missing_ok=True)


def _stored_columns(stored: Path) -> tuple[str, ...]:
    """Return the columns of the manifest that a stored table was made from."""
    with pa.memory_map(str(stored)) as file, pa.ipc.open_stream(file) as reader:
        return tuple(json.loads(reader.schema.metadata[b"columns"]))


def _hash_content(path: Path) -> str:
    """Return the SHA-256 of a manifest, after checking that it exists and is not a link in text form."""
    if not path.is_file():
        raise InputError(f"{path}: no such manifest file.")
    with path.open("rb") as file:
        begin = file.read(MAX_LINK_BYTES)
        if b"\n" not in begin.strip() and os.path.isfile(path.parent / os.fsdecode(begin).replace("\0", "").strip()):
            raise InputError(
                f"{path}: contains only the path of a file: it is a symbolic link that was copied or checked out as "
                f"text (git does this with core.symlinks off). Make it a link, or pass {os.fsdecode(begin).strip()}."
            )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _columns(path: Path) -> tuple[str, ...]:
    suffix = table_format(path)
    if suffix == ".jsonl":
        columns = tuple(dict.fromkeys(key for _, record in read_jsonl(path) for key in record))
    else:
        head = [cells for _, cells in itertools.islice(read_table(path), 2)]
        columns = tuple(head[0]) if len(head) == 2 else ()
    if not columns:
        header = "" if suffix == ".jsonl" else " after its first line, the header"
        raise InputError(f"{path}: the manifest has 0 rows{header}.")
    return columns
