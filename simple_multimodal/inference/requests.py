"""What pipelines are asked about: clips, and requests."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from simple_multimodal.data.records import further_values
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.data.tables import is_table
from simple_multimodal.errors import InputError

Clips = RowDataset | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A data set, or its manifest; or a media file, a folder of them, or a list of files."""

Request = Mapping[str, Any]
"""What one call of a pipeline asks for, such as `{"text": "a dog barks", "clips": "my_clips/"}`."""


class ClipKey(NamedTuple):
    """What makes two rows show the same clip: their files and segment."""

    video: str | None
    audio: str | None
    start_seconds: float | None
    end_seconds: float | None
    further: str = "{}"
    """JSON of what a row has of the modalities that have columns of their own."""

    @classmethod
    def of(cls, row: Row) -> Self:
        further = json.dumps(further_values(row), sort_keys=True)
        return cls(row["video"], row["audio"], row["start_seconds"], row["end_seconds"], further)


def open_manifest(clips: Clips) -> Clips:
    """The data set if this is a manifest, else what it is."""
    if isinstance(clips, (str, os.PathLike)) and is_table(clips):
        return RowDataset.from_manifest(os.fspath(clips), modalities=())
    return clips


def as_requests(inputs: Request | Sequence[Request], *, clips: str, text: str | None = None) -> list[Request]:
    """
    Check the inputs of a pipeline's call.

    Args:
        inputs (`dict` or `Sequence[dict]`): One request or several.
        clips (`str`): The entry of a request that names what it is about.
        text (`str`, *optional*): The entry that is a text.

    Raises:
        ValueError: If an input is not a request with exactly these entries, **or** the text is not a string.
    """
    entries = [clips] if text is None else [text, clips]
    requests = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    for number, request in enumerate(requests):
        if not isinstance(request, Mapping) or set(request) != set(entries):
            found = ", ".join(map(str, request)) if isinstance(request, Mapping) else type(request).__name__
            raise InputError(f"Request {number} must be a dictionary with {' and '.join(entries)}, got {found}.")
        if text is not None and not isinstance(request[text], str):
            raise InputError(f"Request {number}: `{text}` must be a string, got {type(request[text]).__name__}.")
    return requests


def rows_of_files(files: Sequence[str | os.PathLike[str]]) -> tuple[list[Row], list[int]]:
    """
    A row for each different media file, and for each of `files` the number of its row.

    Raises:
        MediaError: If one cannot be read as media.
    """
    paths = [os.path.abspath(file) for file in files]
    numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    return list(RowDataset.from_files(list(numbers)).rows(files="named")), [numbers[path] for path in paths]


def clips_alone(rows: Sequence[Row]) -> list[Row]:
    """Rows without their texts, which are not read then."""
    return [{**row, "text": None, "captions": []} for row in rows]
