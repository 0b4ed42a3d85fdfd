"""What happens in a reading process: open, check and read untrusted clips, in a child that may crash."""

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from simple_multimodal.data.bad_samples import BadSampleError
from simple_multimodal.data.batch_reader import BatchReader, Key, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.loader_processes import LoaderInit
from simple_multimodal.data.rows import EMPTY_ROW, Row
from simple_multimodal.errors import InputError
from simple_multimodal.media.container import HEADER_FORMATS, open_media, require_video
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.index_cache import index_cache
from simple_multimodal.modalities import CLIP_MODALITIES, PRESENCE_KEYS
from simple_multimodal.processing.batch_memory import pass_batches_on

logger = logging.getLogger(__name__)

INDICES_IN_MEMORY = 4  # of the files of a clip; a file is read once
ESTIMATED_FORMATS = {"aac", "mp3"}  # their length follows from the bit rate, which may vary
MICROSECONDS = 1e-6

_SETTING = re.compile(r" \(`\w+`\)")
_PATH = re.compile(r"(?<![\w.:/])(?:/[^\s/'\"`|,;:()]+)+/?")


class ClipError(InputError):
    """A clip cannot be read; the message is the reason, without a path or setting of the server."""


class ReaderLostError(RuntimeError):
    """A clip was not read because the process that read it was killed. The clip may be intact."""


@dataclass(frozen=True)
class ReadingLimits:
    """
    Limits for untrusted clips. A clip that exceeds one gets a [`ClipError`].

    Args:
        read_seconds (`float`, *optional*, defaults to 20.0): Time to read a clip.
        memory_gigabytes (`float`, *optional*, defaults to 1.0): Memory to read a clip.
        clip_seconds (`float`, *optional*, defaults to 600.0): Duration of the video, and the duration that the header
            of a file states. Audio that is longer than its header states is limited by `read_seconds`.
        frames (`int`, *optional*, defaults to 65536): Number of frames of the video.
        pixels (`int`, *optional*, defaults to 9437184): Pixels of a frame.
    """

    read_seconds: float = 20.0
    memory_gigabytes: float = 1.0
    clip_seconds: float = 600.0
    frames: int = 2**16
    pixels: int = 4096 * 2304

    def __post_init__(self):
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(f"`{name}` must be positive, got {value}.")


def row_of(file: str | os.PathLike[str], audio: str | os.PathLike[str] | None = None) -> Row:
    """
    Return the row of a clip, without opening its files.

    Args:
        file (`str`): Media file of the clip, with or without video.
        audio (`str`, *optional*): File with the clip's audio; by default its own track.
    """
    path = os.path.abspath(file)
    row: Row = {**EMPTY_ROW, "video": path, "audio": path, "group": path}
    del row["is_skipped"]
    return row if audio is None else {**row, "audio": os.path.abspath(audio), "audio_from_video": False}


class ClipReader(BatchReader):
    """
    Reader of one clip at a time, whose files are opened only here.

    Args:
        collator ([`MultimodalCollator`]): Collator of the rows.
        limits ([`ReadingLimits`]): Limits for a clip.
    """

    def __init__(self, collator: MultimodalCollator, limits: ReadingLimits):
        super().__init__(None, collator)
        self.limits = limits

    def __call__(self, keys: Sequence[Key | Row]) -> dict[str, Any]:
        """Read a clip.

        Raises:
            BadSampleError: If it cannot be read, exceeds a limit, **or** holds nothing that the model takes.
        """
        (row,) = keys
        assert not isinstance(row, tuple)
        file, record = cast(str, row["video"]), self.collator.in_flight
        # The time limit is for all of it.
        with contextlib.nullcontext() if record is None else record.reading(row["index"], file):
            batch = super().__call__(keys)
        taken = [modality for modality in self.collator.processor.modalities if modality in CLIP_MODALITIES]
        if not any(batch[PRESENCE_KEYS[modality]].any() for modality in taken):
            raise BadSampleError.of(row, file, f"{file!r}: has no {' or '.join(taken)}, which the model needs")
        return batch

    def row(self, key: Key | Row) -> Row:
        """Return the row of a clip that [`row_of`] made, after a look at its files: one without video is audio.

        Raises:
            MediaError: If a file cannot be read as media, or the clip exceeds a limit.
        """
        assert not isinstance(key, tuple)
        row, limits = key, self.limits
        video, audio = cast(str, row["video"]), cast(str, row["audio"])
        for file in dict.fromkeys((video, audio)):
            _check(file, "lasts", _stated_seconds(file), "seconds", limits.clip_seconds)
        index: FrameIndex | None = None
        if "video" in set(self.collator.processor.modalities) - set(self.collator.drop_modalities):
            try:
                index = index_cache.get(video)  # which reading the frames needs, too
            except MediaError:
                if index_cache.tracks(video).video is not None:
                    raise
        if index is not None:
            _check(video, "has frames of", index.width * index.height, "pixels", limits.pixels)
            _check(video, "has", index.num_frames, "frames", limits.frames)
            _check(video, "lasts", index.duration_seconds, "seconds", limits.clip_seconds)
        elif index_cache.tracks(video).video is None:
            if not row["audio_from_video"]:
                require_video(index_cache.tracks(video), video)
            return {**row, "video": None, "audio_from_video": False}
        return row


def _check(file: str, what: str, value: float, unit: str, limit: float) -> None:
    if value > limit:
        raise MediaError(f"{file!r}: {what} {value:.10g} {unit}; at most {limit:.10g} are allowed")


def _stated_seconds(file: str) -> float:
    """Return the duration that the header of a file states; 0 if it states none."""
    with open_media(file, probe="nothing") as container:
        is_stated = container.format.name in HEADER_FORMATS - ESTIMATED_FORMATS
        return (container.duration or 0) * MICROSECONDS if is_stated else 0.0


def public_reason(message: str, files: Sequence[str | None]) -> str:
    """
    Return the message of an error about a clip without what concerns the server alone: paths, and the names of its
    settings.

    Args:
        message (`str`): The message.
        files (`Sequence[str]`): Files of the clip.
    """
    for file in filter(None, files):
        for name in (repr(file), file):
            message = message.replace(f"{name}: ", "").replace(name, "the file")
    message = _SETTING.sub("", _PATH.sub("…", message))
    return " ".join(message.split())


def read_clips(connection: Connection, collator: MultimodalCollator, limits: ReadingLimits) -> None:
    """
    Read clips in this process until its owner ends, or closes the connection.

    Args:
        connection (`Connection`): Connection on which rows of [`row_of`] are received. `None` is sent when this
            process is ready, and when it has received a row. Each row is answered with a batch of one row, a
            [`ClipError`], a [`ReaderLostError`], or for an error of this program a [`RuntimeError`].
        collator ([`MultimodalCollator`]): Collator of the rows.
        limits ([`ReadingLimits`]): Limits for a clip.
    """
    LoaderInit()(0)  # ends with the owner, and leaves signals for the whole group to it
    torch.set_num_threads(1)  # there are as many processes as cores to use
    pass_batches_on()
    index_cache.on_disk = False  # the indices of uploads would fill it
    index_cache.max_files = INDICES_IN_MEMORY
    collator.parallel = False  # the file at fault is known at once, and read once
    reader = SupervisedReader(
        ClipReader(collator, limits),
        timeout_seconds=limits.read_seconds,
        memory_gigabytes=limits.memory_gigabytes,
        in_child=True,
    )
    connection.send(None)
    for number in itertools.count():
        try:
            row = connection.recv()
        except (EOFError, ConnectionResetError):  # reset: before its owner has read that this process is ready
            return
        connection.send(None)
        connection.send(_answer(reader, {**cast(Row, row), "index": number, "id": str(number)}))
        reader.read.known.clear()  # it will not see this clip again


def _answer(reader: SupervisedReader, row: Row) -> dict[str, Any] | Exception:
    try:
        return reader([row])
    except BadSampleError as error:
        reason = public_reason(error.sample.reason, [row["video"], row["audio"]])
        # Limits have their own reasons; otherwise the system or its administrator killed the child.
        return ReaderLostError(reason) if "(SIGKILL)" in reason else ClipError(reason)
    except Exception:
        logger.exception("Reading a clip failed")
        return RuntimeError("reading the clip failed; the server's log says why")
