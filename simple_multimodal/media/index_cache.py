"""Indices of media files, kept in memory and on disk."""

import hashlib
import json
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import av
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simple_multimodal.media.audio_index import AudioIndex
from simple_multimodal.media.clock import ClockRun
from simple_multimodal.media.container import AudioTrack, Probe, Tracks, VideoTrack, check_media_file, probe_tracks
from simple_multimodal.media.errors import UnsoundIndexError
from simple_multimodal.media.frame_index import FrameIndex, build_index, index_by_decoding
from simple_multimodal.media.packets import PacketTable
from simple_multimodal.output_folder import write_atomically

logger = logging.getLogger(__name__)

INDEX_VERSION = 3  # of the stored format; other versions are ignored
INDEX_DIR_VARIABLE = "SIMPLE_MULTIMODAL_INDEX_DIR"
HASHED_BYTES = 2**16  # of the head and the tail of a file, for the key of its index


def default_index_dir() -> Path:
    """Return the folder of stored indices: `$SIMPLE_MULTIMODAL_INDEX_DIR`, else one in the user's cache folder."""
    if INDEX_DIR_VARIABLE in os.environ:
        return Path(os.environ[INDEX_DIR_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simple_multimodal" / "frame_index"


Kept = TypeVar("Kept")


class FrameIndexCache:
    """
    Caches indices of media files in memory, and on disk for other processes and later runs.

    In memory the key is a file's path, size and modification time; on disk it is its size, modification time and a
    hash of its head and tail, so that a copy of a folder needs no new index and a changed file gets one. Each index is
    one file on disk, written atomically, so any number of processes can read and write at the same time. Two threads
    that request the same new file at once both index it.

    All methods take the `path` of a media file and, where they use the disk, the `index_dir` of stored indices
    (default `default_index_dir()`). They raise `MediaError` if the file is not a non-empty regular file, cannot be
    read, or lacks the requested stream.

    Args:
        max_files (`int`): Maximum number of indices in memory; the least recently used is dropped first.
        on_disk (`bool`, *optional*, defaults to `True`): Whether indices are kept on disk, too.
    """

    def __init__(self, max_files: int, *, on_disk: bool = True):
        self.max_files = max_files
        self.on_disk = on_disk
        self.indices: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
        self.known_tracks: OrderedDict[tuple[str, int, int], Tracks] = OrderedDict()
        self.audio_indices: OrderedDict[tuple[str, int, int], tuple[float | None, AudioIndex]] = OrderedDict()
        self.reset_lock()

    def reset_lock(self) -> None:
        """Create a new lock: in a forked child, the thread that held the old one does not exist."""
        self.lock = threading.Lock()

    def get(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """Return the frame index of a file; build and store it if it is not cached."""
        status = check_media_file(path)
        index = self._recall(self.indices, path, status)
        if index is None:
            stored_path = self._stored_path(path, status, index_dir)
            index = _load_index(stored_path, path)
            if index is None:
                index = build_index(path)
                _store_index(index, stored_path)
            self.put(path, index, status)
        return index

    def put(self, path: str | os.PathLike[str], index: FrameIndex, status: os.stat_result) -> None:
        """Keep an index in memory; `status` is the file's status before it was indexed."""
        self._keep(self.indices, path, status, index)

    def tracks(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> Tracks:
        """Return the streams that are read from a file: from its index, or by probing it if there is none yet."""
        status = check_media_file(path)
        index = self._recall(self.indices, path, status)
        if index is not None and index.tracks is not None:
            return index.tracks
        tracks = self._recall(self.known_tracks, path, status)
        if tracks is None:
            index = _load_index(self._stored_path(path, status, index_dir), path)
            if index is not None:
                self.put(path, index, status)
            tracks = index.tracks if index is not None and index.tracks is not None else probe_tracks(path)
            self._keep(self.known_tracks, path, status, tracks)
        return tracks

    def audio(
        self,
        path: str | os.PathLike[str],
        start_seconds: float | None,
        build: Callable[[], AudioIndex],
        index_dir: str | os.PathLike[str] | None = None,
    ) -> AudioIndex:
        """
        Return the index of a file's audio track; build and store it if it is not cached.

        Args:
            path (`str` or `os.PathLike`): The file.
            start_seconds (`float`, *optional*): Time of the first video frame, relative to which the audio is placed.
                It may change if the frames turn out to differ from what their packets promised.
            build (`Callable`): Function that builds the index.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices.
        """
        status = check_media_file(path)
        kept = self._recall(self.audio_indices, path, status)
        if kept is not None and kept[0] == start_seconds:
            return kept[1]
        stored_path = self._stored_path(path, status, index_dir, ".audio")
        arrays, values = _load(stored_path) or ({}, {})
        index = AudioIndex.from_arrays(arrays) if values == {"start_seconds": start_seconds} else None
        if index is None:
            index = build()
            _store(index.to_arrays(), {"start_seconds": start_seconds}, stored_path)
        self._keep(self.audio_indices, path, status, (start_seconds, index))
        return index

    def rebuild(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """
        Replace a file's index with one built by decoding all of it, without a packet table, and return it.

        Needed for a file whose packets looked valid but do not decode to the frames that they promise.
        """
        status = check_media_file(path)
        index = replace(index_by_decoding(path), table=None)
        _store_index(index, self._stored_path(path, status, index_dir))
        self.put(path, index, status)
        return index

    def verify(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """Decode all of a file, replace its index if the frames differ, and return the valid index."""
        index = self.get(path, index_dir)
        decoded = index_by_decoding(path)
        if index.table is None or np.array_equal(index.seconds, decoded.seconds):
            return index
        return self.rebuild(path, index_dir)

    def _stored_path(
        self,
        path: str | os.PathLike[str],
        status: os.stat_result,
        index_dir: str | os.PathLike[str] | None,
        suffix: str = "",
    ) -> Path | None:
        """Return the path of a file's stored index; `None` if indices are not kept on disk."""
        if not self.on_disk:
            return None
        decoder = av.library_versions["libavcodec"]
        key = f"{INDEX_VERSION} {decoder} {status.st_mtime_ns} {content_hash(path)}"
        name = hashlib.sha256(key.encode()).hexdigest()
        return Path(index_dir or default_index_dir(), name[:2], f"{name[2:]}{suffix}.safetensors")

    def _recall(
        self, kept: OrderedDict[tuple[str, int, int], Kept], path: str | os.PathLike[str], status: os.stat_result
    ) -> Kept | None:
        key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
        with self.lock:
            if key in kept:
                kept.move_to_end(key)
            return kept.get(key)

    def _keep(
        self,
        kept: OrderedDict[tuple[str, int, int], Kept],
        path: str | os.PathLike[str],
        status: os.stat_result,
        value: Kept,
    ) -> None:
        with self.lock:
            kept[os.path.abspath(path), status.st_size, status.st_mtime_ns] = value
            while len(kept) > self.max_files:
                kept.popitem(last=False)


index_cache = FrameIndexCache(max_files=4096)
if sys.platform != "win32":  # Windows cannot fork
    os.register_at_fork(after_in_child=index_cache.reset_lock)


def index_video(path: str | os.PathLike[str], *, index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
    """
    Index a video, or find its index in memory or on disk; all backends share it.

    An MP4, MOV, MKV, WebM or AVI file with H.264 or HEVC is indexed from its packets, without decoding, if all of them
    are valid. Any other file is decoded once.

    Args:
        path (`str` or `os.PathLike`): The file.
        index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

    Returns:
        `FrameIndex`: Number, times and size of its frames.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    return index_cache.get(path, index_dir)


Result = TypeVar("Result")


def with_index(
    path: str | os.PathLike[str],
    read: Callable[[FrameIndex], Result],
    *,
    index_dir: str | os.PathLike[str] | None = None,
) -> Result:
    """
    Read a video with its index; if the index turns out to be wrong, rebuild it by decoding the file and read again.

    Args:
        path (`str` or `os.PathLike`): The file.
        read (`Callable`): Function that chooses frames of the video and decodes them.
        index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

    Returns:
        The result of `read`.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    try:
        return read(index_cache.get(path, index_dir))
    except UnsoundIndexError as error:
        logger.warning("%s; decoding all of it to count them", error)
        return read(index_cache.rebuild(path, index_dir))


def content_hash(path: str | os.PathLike[str]) -> str:
    """
    Hash the size, head and tail of a file: copies have the same hash, different files different ones.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `str`: SHA-256 in hexadecimal digits.

    Raises:
        MediaError: The file is not a non-empty regular file.
    """
    size = check_media_file(path).st_size
    key = hashlib.sha256(f"{size} ".encode())
    with open(path, "rb") as file:
        key.update(file.read(HASHED_BYTES))
        file.seek(-min(HASHED_BYTES, size), os.SEEK_END)
        key.update(file.read(HASHED_BYTES))
    return key.hexdigest()


def _load_index(stored_path: Path | None, path: str | os.PathLike[str]) -> FrameIndex | None:
    """Read a stored index; return `None` if it is missing or cannot be read."""
    stored = _load(stored_path)
    if stored is None:
        return None
    arrays, values = stored
    try:
        seconds = arrays.pop("seconds")
        seconds.setflags(write=False)
        values["display_matrix"] = tuple(values["display_matrix"])
        values["clock_runs"] = tuple(ClockRun(*run) for run in values["clock_runs"])
        values["tracks"] = _tracks_from_json(values["tracks"])
        table = PacketTable(**arrays) if arrays else None
        return FrameIndex(seconds=seconds, path=os.fspath(path), table=table, **values)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _tracks_from_json(values: dict[str, Any] | None) -> Tracks | None:
    if values is None:
        return None
    video, audio = values.pop("video"), values.pop("audio")
    if audio is not None and audio["probe"] not in get_args(Probe):
        raise ValueError(f"no probe {audio['probe']!r}")
    return Tracks(
        **values,
        video=None if video is None else VideoTrack(**video),
        audio=None if audio is None else AudioTrack(**audio),
    )


def _store_index(index: FrameIndex, stored_path: Path | None) -> None:
    """Store an index; if that fails, log a warning and continue."""
    values = {f.name: getattr(index, f.name) for f in fields(index) if f.name not in ("seconds", "table", "path")}
    values["tracks"] = None if index.tracks is None else asdict(index.tracks)
    _store({"seconds": index.seconds} | (vars(index.table) if index.table else {}), values, stored_path)


def _load(stored_path: Path | None) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Read stored arrays and values; return `None` if they are missing or cannot be read."""
    if stored_path is None:
        return None
    try:
        with safe_open(stored_path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it has no iterator
            return arrays, json.loads(file.metadata()["index"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _store(arrays: dict[str, np.ndarray], values: dict[str, Any], stored_path: Path | None) -> None:
    """Store arrays and values; if that fails, log a warning and continue."""
    if stored_path is None:
        return
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"index": json.dumps(values)})
    try:
        stored_path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(stored_path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        logger.warning("frame indices cannot be stored in %r: %s", os.fspath(stored_path.parents[1]), error)
