"""Inputs of pipelines: clips and requests."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias, cast

import datasets

from simple_multimodal.data.files import is_media_folder
from simple_multimodal.data.records import further_values
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.data.sources import holds_rows, open_rows
from simple_multimodal.errors import InputError

Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A media file, a folder of them, or a list of files."""

Clip: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A media file, a row as a dictionary, or a finished [`Row`]."""

Clips: TypeAlias = Files | Clip | Sequence[Mapping[str, Any]] | RowDataset | datasets.Dataset | Any
"""Rows (a data set, its manifest, dictionaries, a pandas DataFrame), or [`Files`]."""

Request = Mapping[str, Any]
"""One request to a pipeline, such as `{"text": "a dog barks", "clips": "my_clips/"}`."""


class ClipKey(NamedTuple):
    """Files and segment of a row; rows with equal keys show the same clip."""

    video: str | None
    audio: str | None
    pose: str | None
    start_seconds: float | None
    end_seconds: float | None
    further: str = "{}"
    """JSON of the row's values for modalities with their own columns."""

    @classmethod
    def of(cls, row: Row) -> Self:
        further = json.dumps(further_values(row), sort_keys=True)
        return cls(row["video"], row["audio"], row["pose"], row["start_seconds"], row["end_seconds"], further)


def open_clips(clips: Clips) -> RowDataset | Files:
    """Open rows as a data set; return files and folders unchanged."""
    if isinstance(clips, Mapping):
        clips = [clips]
    return open_rows(clips, modalities=None) if holds_rows(clips) else cast(Files, clips)


def rows_of_source(clips: Clips, *, recursive: bool = False) -> tuple[list[Row], Literal["skip", "fail"]]:
    """
    Return the rows of clips, and what to do about those that cannot be read: skip the ones that nobody named.

    Args:
        clips: Rows, a media file, a folder, or a list of files.
        recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a folder.

    Raises:
        ValueError: If `recursive` is given with rows.
    """
    source = open_clips(clips)
    if isinstance(source, RowDataset):
        if recursive:
            raise InputError("`recursive` applies to folders, but rows name their files. Leave it out.")
        return list(source.rows(files="named")), "skip"
    rows = list(RowDataset.from_files(source, recursive=recursive).rows(files="named"))
    return rows, "skip" if is_media_folder(source) else "fail"


def as_requests(
    inputs: Request | Sequence[Request], *, clips: str, text: str | None = None, optional: Sequence[str] = ()
) -> list[Request]:
    """
    Check the inputs of a pipeline's call.

    Args:
        inputs (`dict` or `Sequence[dict]`): One request or several.
        clips (`str`): Key of the entry with the clips.
        text (`str`, *optional*): Key of the entry with the text.
        optional (`Sequence[str]`, *optional*): Keys of further texts, which may be left out.

    Raises:
        ValueError: If an input is not a dictionary with these entries, **or** a text is not a string.
    """
    entries = [clips] if text is None else [text, clips]
    requests = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    for number, request in enumerate(requests):
        if not isinstance(request, Mapping) or set(request) - set(optional) != set(entries):
            found = ", ".join(map(str, request)) if isinstance(request, Mapping) else type(request).__name__
            raise InputError(f"Request {number} must be a dictionary with {' and '.join(entries)}, got {found}.")
        for name in (*entries, *optional):
            if name != clips and not isinstance(request.get(name, ""), str):
                raise InputError(f"Request {number}: `{name}` must be a string, got {type(request[name]).__name__}.")
    return requests


def rows_of_clips(clips: Sequence[Clip]) -> tuple[list[Row], list[int]]:
    """
    Return a row for each distinct clip, and for each of `clips` the number of its row. A finished [`Row`], which has
    an `index`, only gets a new one.

    Raises:
        MediaError: If a file cannot be read as media.
        ValueError: If a dictionary is not a row.
    """
    rows: dict[ClipKey, Row] = {}
    numbers = []
    for clip in clips:
        row: Row
        if isinstance(clip, Mapping) and "index" in clip:  # no column may have that name
            row = cast(Row, clip)
        else:
            is_row = isinstance(clip, Mapping)
            dataset = RowDataset([clip], modalities=None) if is_row else RowDataset.from_files([clip])  # type: ignore
            (row,) = dataset.rows(files="named")
        row = rows.setdefault(ClipKey.of(row), {**row, "index": len(rows)})
        numbers.append(row["index"])
    return list(rows.values()), numbers


def clips_alone(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without their texts, so that these are not read."""
    return [{**row, "text": None, "captions": []} for row in rows]
