"""Rows and batches after a model has encoded them, as kept on the CPU and in files."""

import json
import os
from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from transformers import PreTrainedModel

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.records import further_values
from simple_multimodal.data.rows import Row
from simple_multimodal.data.store import Tensors, Unreadable
from simple_multimodal.modalities import MODALITIES
from simple_multimodal.models.pairs import Encoded, encode_clips


class ClipVersion(NamedTuple):
    """A row's clip and the state of its files: sizes in bytes and modification times in nanoseconds, `None` without a
    file.
    """

    id: str
    group: str
    video: str | None
    audio: str | None
    start_seconds: float | None
    end_seconds: float | None
    video_size: int | None
    video_mtime_ns: int | None
    audio_size: int | None
    audio_mtime_ns: int | None
    further: str
    """JSON of the row's values for modalities with their own columns, and the version of its pose if it has one."""

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return the version of a row's clip, from the current state of its files."""
        video, audio = row["video"], row["audio"]
        segment = row["start_seconds"], row["end_seconds"]
        video_size, video_mtime_ns = _size_and_time(video)
        audio_size, audio_mtime_ns = _size_and_time(audio)
        states = video_size, video_mtime_ns, audio_size, audio_mtime_ns
        further = further_values(row)
        if (pose := row["pose"]) is not None:  # clips without one have the versions that they had before
            further["pose"] = [pose, *_size_and_time(pose)]
        return cls(row["id"], row["group"], video, audio, *segment, *states, json.dumps(further, sort_keys=True))

    @property
    def file(self) -> str | None:
        """The file that stands for the clip in results, see [`clip_file`]."""
        pose, *_ = json.loads(self.further).get("pose", [None])
        return self.video or self.audio or pose


def _size_and_time(path: str | None) -> tuple[int, int] | tuple[None, None]:
    if path is None:
        return None, None
    try:
        status = os.stat(path)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


class EncodedBatch(NamedTuple):
    """An encoded batch on the CPU.

    Args:
        clips (`list[Encoded]`): One encoded clip per row.
        values (`dict[str, torch.Tensor]`): Further tensors by name, of shape `(num_rows, ...)`.
        sums (`dict[str, torch.Tensor]`): `(sum, count)` of losses and metrics over the rows, float64 of shape `(2,)`.
    """

    clips: list[Encoded]
    values: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}


class EncodedRows(NamedTuple):
    """Rows encoded by the towers.

    Args:
        rows (`list[Row]`): Rows that could be read, in their order.
        clips (`list[Encoded]`): One encoded clip for each of `rows`.
        bad_samples (`list[BadSample]`): Rows that could not be read.
        values, sums (`dict[str, torch.Tensor]`): As in [`EncodedBatch`], for `rows`.
    """

    rows: list[Row]
    clips: list[Encoded]
    bad_samples: list[BadSample]
    values: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}


def encode_batch(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> EncodedBatch:
    """Encode only the clips of a batch."""
    return EncodedBatch(encode_clips(model, batch))


def sum_by_name(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the sum of the tensors of each name; a name need not be in all parts."""
    totals: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


_VALUE = "value."
"""Start of the stored names of further values, which tells them from modalities."""


def pack(rows: Iterable[Row], encoded: EncodedBatch, bad_samples: Iterable[BadSample]) -> list[Tensors | Unreadable]:
    """Return the contents to store for each row: its encoded clip and values, or why it could not be read."""
    unread = {sample.row: Unreadable(sample.file, sample.reason) for sample in bad_samples}
    remaining = iter(range(len(encoded.clips)))
    return [unread[row["index"]] if row["index"] in unread else _tensors(encoded, next(remaining)) for row in rows]


def _tensors(encoded: EncodedBatch, number: int) -> dict[str, torch.Tensor]:
    clip = encoded.clips[number]
    tensors: dict[str, torch.Tensor] = {modality: tokens for modality, tokens in clip.tokens.items()}
    if clip.embed is not None:
        tensors["embed"] = clip.embed[None]
    return tensors | {f"{_VALUE}{name}": value[number : number + 1] for name, value in encoded.values.items()}


def unpack(rows: Iterable[Row], contents: Iterable[Tensors | Unreadable]) -> tuple[EncodedBatch, list[BadSample]]:
    """Return the clips, values and bad samples that were passed to [`pack`]."""
    clips: list[Encoded] = []
    values: dict[str, list[torch.Tensor]] = {}
    bad_samples: list[BadSample] = []
    for row, content in zip(rows, contents, strict=True):
        if isinstance(content, Unreadable):
            bad_samples.append(BadSample(row["index"], row["epoch"], row["id"], *content))
        else:
            tokens = {modality: content[modality] for modality in MODALITIES if modality in content}
            clips.append(Encoded(content["embed"][0] if "embed" in content else None, tokens))
            for name in content:
                if name.startswith(_VALUE):
                    values.setdefault(name.removeprefix(_VALUE), []).append(content[name])
    return EncodedBatch(clips, {name: torch.cat(parts) for name, parts in values.items()}), bad_samples
