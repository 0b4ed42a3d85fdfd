"""The frame index of a video: which frames a file has, when they are shown, and which packets hold them."""

import hashlib
import json
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simple_multimodal.media.audio_index import AudioIndex
from simple_multimodal.media.clock import REORDER_PICTURES, ClockRun, Timeline, find_runs, make_timeline
from simple_multimodal.media.container import (
    MAX_FRAMES,
    MAX_PIXELS,
    AudioTrack,
    Tracks,
    VideoTrack,
    check_media_file,
    choose_tracks,
    decode_packets,
    demux_packets,
    open_audio_stream,
    open_media,
    open_video_stream,
    probe_tracks,
    require_video,
)
from simple_multimodal.media.conversion import Matrix, is_transposed, read_display_matrix
from simple_multimodal.media.errors import MediaError, UnsoundIndexError
from simple_multimodal.output_folder import write_atomically

logger = logging.getLogger(__name__)

INDEX_VERSION = 2  # of what is stored; another one is not read
INDEX_DIR_VARIABLE = "SIMPLE_MULTIMODAL_INDEX_DIR"
MAX_ASPECT_RATIO = 64  # of a frame; scaled until its short side fits, a longer one would fill the memory
HASHED_BYTES = 2**16  # of the head and of the tail of a file, for the key of its index

MP4_FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"
SEEKABLE_FORMATS = {MP4_FORMAT, "matroska,webm", "avi"}
NAL_CODECS = {"h264", "hevc"}
KEY_FRAME_CODECS = {"vp8", "vp9", "av1", "libdav1d", "mjpeg"}  # a key frame of theirs depends on nothing before it


@dataclass(frozen=True)
class PacketTable:
    """
    Where the frames of a video lie among its packets: what is needed to decode a few of them exactly.

    Every packet holds one picture; some may not be shown (edit lists). Packets are numbered in the order of the file,
    which is that of decoding.

    Args:
        time_stamps (`np.ndarray` of shape `(num_frames,)`, `int64`):
            Presentation time stamp of each frame, in ticks of the stream; no two alike, and ascending unless the file
            contradicts its own order.
        packets (`np.ndarray` of shape `(num_frames,)`, `int64`):
            Number of the packet of each frame.
        entries (`np.ndarray` of shape `(num_entries,)`, `int64`):
            Numbers of the packets at which decoding can start, ascending; the first is 0. Frames that follow an entry
            in both orders depend on nothing before it.
        entry_time_stamps (`np.ndarray` of shape `(num_entries,)`, `int64`):
            Presentation time stamps of the entries, in ticks.
        is_unreferenced (`np.ndarray` of shape `(num_packets,)`, `bool`):
            Whether no other picture depends on a packet's, so that a decoder need not see it.
        preamble (`np.ndarray` of shape `(num_bytes,)`, `uint8`):
            What the first packet holds before its picture (parameter sets, and by which version of which encoder it
            was written, of whose errors decoders know): a decoder that starts at another entry has to see it first.
    """

    time_stamps: np.ndarray
    packets: np.ndarray
    entries: np.ndarray
    entry_time_stamps: np.ndarray
    is_unreferenced: np.ndarray
    preamble: np.ndarray


@dataclass(frozen=True)
class FrameIndex:
    """
    What a full decode of a video puts out: how many frames, when, and how large.

    Frame `i` is the `i`-th picture in the decoder's output order. A file that yields fewer frames than its header
    promises is indexed as what it yields.

    Args:
        num_frames (`int`):
            Number of frames, at least 1.
        seconds (`np.ndarray` of shape `(num_frames,)`, `float64`):
            Presentation time of each frame, in seconds from the earliest one; never descending. Where a file's time
            stamps contradict the output order (some AVI files store none for pictures out of order), the times are
            sorted: the `i`-th frame has the `i`-th smallest time. Where the clock starts again (recordings joined by
            appending one file to another), time goes on; see [`make_timeline`]. Read-only.
        width (`int`):
            Width of a frame in pixels, after rotation.
        height (`int`):
            Height of a frame in pixels, after rotation.
        duration_seconds (`float`):
            Time from the first frame's start to the last frame's end, in seconds.
        start_seconds (`float`, *optional*, defaults to 0.0):
            Time of the first frame on the container's clock, in seconds.
        is_in_presentation_order (`bool`, *optional*, defaults to `True`):
            Whether the time stamps agreed with the output order.
        path (`str`, *optional*, defaults to `"video"`):
            The file, for messages.
        codec (`str`, *optional*, defaults to `""`):
            FFmpeg's name of the stream's codec.
        num_promised (`int`, *optional*, defaults to 0):
            Frames that the container promises; 0 where it does not say.
        display_matrix (`tuple[int, int, int, int]`, *optional*):
            How the decoded pictures are to be turned, see `read_display_matrix`.
        table ([`PacketTable`], *optional*):
            Where the frames lie; `None` where a few can only be had by decoding from the start.
        tracks ([`Tracks`], *optional*):
            The streams of the file that are read.
        clock_runs (`tuple[ClockRun, ...]`, *optional*):
            Where the clock starts again.
    """

    num_frames: int
    seconds: np.ndarray
    width: int
    height: int
    duration_seconds: float
    start_seconds: float = 0.0
    is_in_presentation_order: bool = True
    path: str = "video"
    codec: str = ""
    num_promised: int = 0
    display_matrix: Matrix = (1, 0, 0, 1)
    table: PacketTable | None = None
    tracks: Tracks | None = None
    clock_runs: tuple[ClockRun, ...] = ()

    @property
    def stream(self) -> int:
        """Number of the video stream among all streams of the file."""
        return 0 if self.tracks is None or self.tracks.video is None else self.tracks.video.stream

    @property
    def coded_size(self) -> tuple[int, int]:
        """Width and height of the decoded pictures, before they are turned for display."""
        return (self.height, self.width) if is_transposed(self.display_matrix) else (self.width, self.height)


def default_index_dir() -> Path:
    """The folder of stored indices: `$SIMPLE_MULTIMODAL_INDEX_DIR`, else one in the user's cache folder."""
    if INDEX_DIR_VARIABLE in os.environ:
        return Path(os.environ[INDEX_DIR_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simple_multimodal" / "frame_index"


Kept = TypeVar("Kept")


class FrameIndexCache:
    """
    Keeps indices of frames and audio in memory, and on disk for other processes and later runs.

    In memory a file is known by path, size and modification time; on disk by size, modification time and a hash of its
    head and tail, so that a copy of a folder needs no new index and a changed file gets one. One file on disk per
    video, written beside its place and renamed: readers and writers on any number of processes do not disturb each
    other.

    Args:
        max_files (`int`): How many indices are kept in memory; the least recently used goes first.
    """

    def __init__(self, max_files: int):
        self.max_files = max_files
        self.indices: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
        self.known_tracks: OrderedDict[tuple[str, int, int], Tracks] = OrderedDict()
        self.audio_indices: OrderedDict[tuple[str, int, int], tuple[float | None, AudioIndex]] = OrderedDict()
        self.reset_lock()

    def reset_lock(self) -> None:
        """Makes a new lock: in a forked child, the thread that held it does not exist."""
        self.lock = threading.Lock()

    def get(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """
        Returns the index of a file, building it where it is not known yet.

        Args:
            path (`str` or `os.PathLike`): The file.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

        Returns:
            `FrameIndex`: The index. Two threads that ask for the same new file at once both build it.

        Raises:
            MediaError: The file is not a regular file with content, cannot be read, or holds no frame.
        """
        status = check_media_file(path)
        index = self._recall(self.indices, path, status)
        if index is None:
            stored_path = _stored_path(path, status, Path(index_dir or default_index_dir()))
            index = _load_index(stored_path, path)
            if index is None:
                index = build_index(path)
                _store_index(index, stored_path)
            self.put(path, index, status)
        return index

    def put(self, path: str | os.PathLike[str], index: FrameIndex, status: os.stat_result) -> None:
        """
        Keeps an index in memory.

        Args:
            path (`str` or `os.PathLike`): The file.
            index (`FrameIndex`): Its index.
            status (`os.stat_result`): What the file system said about the file before it was indexed.
        """
        self._keep(self.indices, path, status, index)

    def tracks(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> Tracks:
        """
        Returns which streams of a file are read: as its index says, or where there is none yet, by probing the file.

        Args:
            path (`str` or `os.PathLike`): The file.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

        Returns:
            `Tracks`: The streams.

        Raises:
            MediaError: The file is not a regular file with content, or cannot be read as media.
        """
        status = check_media_file(path)
        index = self._recall(self.indices, path, status)
        if index is not None and index.tracks is not None:
            return index.tracks
        tracks = self._recall(self.known_tracks, path, status)
        if tracks is None:
            index = _load_index(_stored_path(path, status, Path(index_dir or default_index_dir())), path)
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
        Returns the index of a file's audio track, building it where it is not known yet.

        Args:
            path (`str` or `os.PathLike`): The file.
            start_seconds (`float`, *optional*): When the first video frame is shown, which the audio is placed by. It
                may change when frames turn out to be others than their packets promised.
            build (`Callable`): Builds the index.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

        Returns:
            `AudioIndex`: The index. Two threads that ask for the same new file at once both build it.

        Raises:
            MediaError: The file cannot be read.
        """
        status = check_media_file(path)
        kept = self._recall(self.audio_indices, path, status)
        if kept is not None and kept[0] == start_seconds:
            return kept[1]
        stored_path = _stored_path(path, status, Path(index_dir or default_index_dir()), ".audio")
        arrays, values = _load(stored_path) or ({}, {})
        index = AudioIndex.from_arrays(arrays) if values == {"start_seconds": start_seconds} else None
        if index is None:
            index = build()
            _store(index.to_arrays(), {"start_seconds": start_seconds}, stored_path)
        self._keep(self.audio_indices, path, status, (start_seconds, index))
        return index

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

    def settle(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """
        Replaces a file's index by one made by decoding all of it, without a packet table.

        For a file whose packets looked sound but do not decode to what they promise.

        Args:
            path (`str` or `os.PathLike`): The file.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

        Returns:
            `FrameIndex`: The new index.

        Raises:
            MediaError: The file cannot be read, or holds no frame.
        """
        status = check_media_file(path)
        index = replace(_index_by_decoding(path), table=None)
        _store_index(index, _stored_path(path, status, Path(index_dir or default_index_dir())))
        self.put(path, index, status)
        return index

    def verify(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
        """
        Decodes all of a file, and replaces its index if that says otherwise.

        Args:
            path (`str` or `os.PathLike`): The file.
            index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

        Returns:
            `FrameIndex`: The index that holds.

        Raises:
            MediaError: The file cannot be read, or holds no frame.
        """
        index = self.get(path, index_dir)
        decoded = _index_by_decoding(path)
        if index.table is None or np.array_equal(index.seconds, decoded.seconds):
            return index
        return self.settle(path, index_dir)


index_cache = FrameIndexCache(max_files=4096)
if sys.platform != "win32":  # Windows cannot fork
    os.register_at_fork(after_in_child=index_cache.reset_lock)


def index_video(path: str | os.PathLike[str], *, index_dir: str | os.PathLike[str] | None = None) -> FrameIndex:
    """
    Indexes a video, or finds its index in memory or on disk; all backends share it.

    An MP4, MOV, MKV or WebM file with H.264 or HEVC is indexed from its packets, without decoding, if all of them are
    sound. Any other file is decoded once.

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
    Reads a video with its index; should the index turn out unsound, decodes the file for a new one and reads again.

    Args:
        path (`str` or `os.PathLike`): The file.
        read (`Callable`): Chooses frames of the video and decodes them.
        index_dir (`str` or `os.PathLike`, *optional*): Folder of stored indices; default `default_index_dir()`.

    Returns:
        What `read` returns.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    try:
        return read(index_cache.get(path, index_dir))
    except UnsoundIndexError as error:
        logger.warning("%s; it is decoded as a whole to count them", error)
        return read(index_cache.settle(path, index_dir))


def build_index(path: str | os.PathLike[str]) -> FrameIndex:
    """
    Indexes a video anew.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `FrameIndex`: Number, times and size of its frames.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    index = _index_from_packets(path) or _index_by_decoding(path)
    if index.num_frames < index.num_promised:
        logger.warning(
            "%r: yields %d frames of the %d that its header promises; it is read as what it yields",
            index.path,
            index.num_frames,
            index.num_promised,
        )
    return index


def _index_from_packets(path: str | os.PathLike[str]) -> FrameIndex | None:
    """Indexes a video from its packets, decoding only the first; `None` where that cannot be trusted."""
    with open_media(path) as container:
        tracks = choose_tracks(container, path)
        track = require_video(tracks, path)
        if tracks.container not in SEEKABLE_FORMATS or track.codec not in NAL_CODECS:
            return None
        stream = open_video_stream(container, track.stream, path)
        packets = _read_packets(container, stream)
        # A picture of two fields may lie in two packets.
        if packets is None or packets.first_picture is None or packets.first_picture.interlaced_frame:
            return None
        timeline = make_timeline(packets.table.time_stamps.tolist(), Fraction(0))
        return _make_index(
            path,
            stream,
            tracks,
            timeline,
            packets.first_picture,
            packets.last_ticks,
            num_hidden=packets.num_hidden,
            table=packets.table,
        )


def _index_by_decoding(path: str | os.PathLike[str]) -> FrameIndex:
    """Indexes a video by decoding all of it, without colour conversion."""
    name = os.fspath(path)
    is_damaged = False
    num_hidden = 0

    def counted(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        nonlocal num_hidden
        for packet in packets:
            num_hidden += packet.is_discard
            yield packet

    with open_media(path) as container:
        tracks = choose_tracks(container, path)
        stream = open_video_stream(container, require_video(tracks, path).stream, path)
        frame_seconds = 1 / stream.average_rate if stream.average_rate else Fraction(0)
        step = frame_seconds / tick_seconds(stream)
        ticks: list[int | None] = []
        last_ticks = 0
        first: VideoFrame | None = None
        for _, picture in decode_packets(container, stream, counted(demux_packets(container, stream))):
            assert isinstance(picture, VideoFrame)
            first = first or picture
            if len(ticks) == MAX_FRAMES:
                raise MediaError(f"{name!r}: has more than {MAX_FRAMES} frames; cut the file into shorter ones")
            ticks.append(picture.pts)
            last_ticks = picture.duration or 0
            is_damaged |= picture.is_corrupt
        if first is None:
            raise MediaError(
                f"{name!r}: not one frame of its {stream.codec_context.name} video can be decoded (damaged, or "
                f"pictures of more than {MAX_PIXELS} pixels)"
            )
        timeline = make_timeline(ticks, step)
        index = _make_index(path, stream, tracks, timeline, first, last_ticks, num_hidden=num_hidden)
        known = [tick for tick in ticks if tick is not None]
        has_table = (
            not is_damaged
            and len(known) == len(ticks)
            and tracks.container in SEEKABLE_FORMATS
            and stream.codec_context.name in NAL_CODECS | KEY_FRAME_CODECS
        )
    if len(timeline.offsets) > 1:
        return replace(index, clock_runs=_find_clock_runs(path, index, timeline))
    if not has_table:
        return index
    with open_media(path) as container:
        packets = _read_packets(container, open_video_stream(container, index.stream, path), is_settled=True)
    if packets is None or packets.table.time_stamps.tolist() != sorted(known):
        return index
    # The time stamps know the frames also where they contradict the order that these are put out in.
    order = np.searchsorted(packets.table.time_stamps, known)
    table = replace(packets.table, time_stamps=np.array(known), packets=packets.table.packets[order])
    return replace(index, table=table)


def _find_clock_runs(path: str | os.PathLike[str], index: FrameIndex, timeline: Timeline) -> tuple[ClockRun, ...]:
    """
    Finds the bytes of a file from which its clock has started again; the audio of a run goes with its video.

    Nothing where the packets do not show as many restarts as the frames do: then the audio is placed by itself.
    """
    assert index.tracks is not None
    audio = index.tracks.audio
    places: dict[int, list[int]] = {}  # of the packets of each stream, in bytes
    stamps: dict[int, list[int | None]] = {}
    with open_media(path, probe="everything" if audio is None else audio.probe) as container:
        video_stream = open_video_stream(container, index.stream, path)
        streams: list[VideoStream | AudioStream] = [video_stream]
        if audio is not None:
            streams.append(open_audio_stream(container, audio.stream, path))
        try:
            for packet in demux_packets(container, *streams):
                if packet.size:
                    known = places.setdefault(packet.stream_index, [])
                    # One without a place of its own shares that of the packet before.
                    known.append(packet.pos if packet.pos is not None else known[-1] if known else 0)
                    stamps.setdefault(packet.stream_index, []).append(packet.pts if packet.dts is None else packet.dts)
        except av.FFmpegError:  # the file breaks off
            pass
        time_base = tick_seconds(video_stream)
    starts = {number: find_runs(stamps[number])[1:] for number in stamps}
    if len(starts[index.stream]) != len(timeline.offsets) - 1:
        return ()
    audio_starts = [] if audio is None else [places[audio.stream][place] for place in starts.get(audio.stream, ())]
    runs = []
    for start, offset in zip(starts[index.stream], timeline.offsets[1:], strict=True):
        last, first = places[index.stream][start - 1], places[index.stream][start]
        between = [place for place in audio_starts if last < place < first]
        runs.append(ClockRun(min([first, *between]), float(offset * time_base)))
    return tuple(runs)


def _make_index(
    path: str | os.PathLike[str],
    stream: VideoStream,
    tracks: Tracks,
    timeline: Timeline,
    first: VideoFrame,
    last_ticks: int,
    *,
    num_hidden: int,
    table: PacketTable | None = None,
) -> FrameIndex:
    """The index of a stream whose frames lie on this timeline and begin with a picture."""
    time_base = tick_seconds(stream)
    matrix = read_display_matrix(first)
    width, height = (first.height, first.width) if is_transposed(matrix) else (first.width, first.height)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(
            f"{os.fspath(path)!r}: its frames are {width} x {height}; one side may be at most {MAX_ASPECT_RATIO} "
            "times as long as the other"
        )
    seconds = timeline.ticks.astype(np.float64) * time_base.numerator / time_base.denominator
    seconds.setflags(write=False)  # it is shared by every user of the cached index
    last_seconds = float(last_ticks * time_base) or (float(1 / stream.average_rate) if stream.average_rate else 0.0)
    return FrameIndex(
        num_frames=len(seconds),
        seconds=seconds,
        width=width,
        height=height,
        duration_seconds=float(seconds[-1]) + last_seconds,
        start_seconds=float(timeline.start * time_base),
        is_in_presentation_order=timeline.is_in_order,
        path=os.fspath(path),
        codec=stream.codec_context.name,
        num_promised=max(_num_announced(stream, tracks.container) - num_hidden, 0),
        display_matrix=matrix,
        table=table,
        tracks=tracks,
    )


def _num_announced(stream: VideoStream, container: str) -> int:
    """How many packets the header announces; 0 where it does not say."""
    if container != MP4_FORMAT:
        return stream.frames
    return min(stream.frames, len(stream.index_entries))  # without those that an edit list cuts off at an end


class _Packets(NamedTuple):
    """
    What the packets of a sound stream say: where its frames lie, its first picture, how long the last one shows, and
    how many an edit list hides.
    """

    table: PacketTable
    first_picture: VideoFrame | None
    last_ticks: int
    num_hidden: int


def _read_packets(container: InputContainer, stream: VideoStream, *, is_settled: bool = False) -> _Packets | None:
    """
    Reads the packets of a freshly opened video, and decodes the first of H.264 and HEVC.

    `None` where a packet is damaged or without a time stamp of its own, or where their number is not the promised one:
    such a file may decode to other frames than its packets promise. Unless it was `is_settled` by decoding it, also
    where headers are not what the standards allow, or the time stamps may be those of decoding (AVI has no others, and
    some MP4 files neither).
    """
    codec = stream.codec_context
    inspector = _NalInspector(stream, checks_headers=not is_settled) if codec.name in NAL_CODECS else None
    time_stamps: list[int] = []
    durations: list[int] = []
    shown: list[bool] = []
    entries: list[int] = []
    unreferenced: list[bool] = []
    layers: list[int] = []
    headers: list[bytes] = []
    first_pictures: list[VideoFrame] = []
    try:
        for packet in demux_packets(container, stream):
            if packet.size == 0:  # the end of the stream
                continue
            if packet.pts is None or packet.is_corrupt or len(time_stamps) == MAX_FRAMES:
                return None
            number = len(time_stamps)
            time_stamps.append(packet.pts)  # now: the inspector empties the packet
            durations.append(packet.duration or 0)
            shown.append(not packet.is_discard)
            if inspector is None:
                picture = _Picture(packet.is_keyframe, is_unreferenced=False)
            else:
                if number == 0:  # a copy, which is put out even if an edit list hides it
                    first_pictures = [*codec.decode(av.Packet(bytes(packet))), *codec.decode(None)]
                picture = inspector.read(packet)
            unreferenced.append(picture.is_unreferenced)
            layers.append(picture.layer)
            headers.append(picture.slice_header)
            if picture.is_entry:
                entries.append(number)
    except (av.FFmpegError, _UnsoundPacket):
        return None
    num_announced = _num_announced(stream, container.format.name)
    if not time_stamps or num_announced not in (0, len(time_stamps)) or not entries or entries[0] != 0:
        return None
    if inspector is not None and (len(first_pictures) != 1 or first_pictures[0].is_corrupt):
        return None
    stamps = np.array(time_stamps)  # (num_packets,)
    ranks = np.argsort(np.argsort(stamps, kind="stable"), kind="stable")
    if np.abs(np.arange(len(stamps)) - ranks).max() > REORDER_PICTURES:  # the clock starts again, or jumps
        return None
    if inspector is not None and not is_settled and (np.diff(stamps) > 0).all():
        # Nothing is shown out of order, or these are times of decoding: without B slices it is the former.
        if inspector.is_hevc or any(_slice_type(header) == B_SLICE for header in headers):
            return None
    packets = np.flatnonzero(shown)  # (num_frames,)
    packets = packets[np.argsort(stamps[packets], kind="stable")]
    ascending = stamps[packets]
    # Pictures before the first packet's lean on others that the file lacks.
    if len(packets) == 0 or (np.diff(ascending) == 0).any() or ascending[0] < stamps[0]:
        return None
    table = PacketTable(
        time_stamps=ascending,
        packets=packets,
        entries=np.array(entries),
        entry_time_stamps=stamps[entries],
        is_unreferenced=np.array(unreferenced) & (np.array(layers) == max(layers)),
        preamble=np.frombuffer(b"" if inspector is None else inspector.preamble or b"", np.uint8),
    )
    num_hidden = len(shown) - len(packets)
    return _Packets(table, first_pictures[0] if first_pictures else None, durations[packets[-1]], num_hidden)


class _UnsoundPacket(Exception):
    """A packet is not what its codec writes."""


class _Picture(NamedTuple):
    """What the headers of a packet say of its picture.

    Args:
        is_entry (`bool`): Decoding can start here.
        is_unreferenced (`bool`): No picture of the same temporal layer depends on it.
        layer (`int`): Its temporal layer.
        slice_header (`bytes`): How its first slice begins.
    """

    is_entry: bool
    is_unreferenced: bool
    layer: int = 0
    slice_header: bytes = b""


class _NalInspector:
    """
    Reads the network abstraction layer of H.264 and HEVC packets.

    A packet is a chain of units: each behind its length, as MP4 and Matroska hold them (ISO/IEC 14496-15), or behind a
    start code (annex B of the standards). FFmpeg's `*_metadata` filter parses all headers in them, down to those of
    the slices, and refuses what the standards do not allow.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.
        checks_headers (`bool`): Whether all headers are parsed.
    """

    def __init__(self, stream: VideoStream, *, checks_headers: bool):
        codec = stream.codec_context
        self.is_hevc = codec.name == "hevc"
        extradata = codec.extradata or b""
        place = 21 if self.is_hevc else 4  # of `lengthSizeMinusOne` in the decoder configuration record
        has_lengths = len(extradata) > place and extradata[0] == 1
        self.length_size = (extradata[place] & 3) + 1 if has_lengths else None
        self.preamble: bytes | None = None  # of the first packet, once it is read
        self.filter = BitStreamFilterContext(f"{codec.name}_metadata", stream) if checks_headers else None

    def units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """
        Cuts a packet into its units.

        Args:
            data (`bytes`): The packet.

        Yields:
            `tuple[int, int]`: Where the prefix of a unit begins, and where the unit itself does.

        Raises:
            _UnsoundPacket: The chain is broken.
        """
        if self.length_size is None:
            prefix = data.find(b"\0\0\1")
            while prefix >= 0:
                if prefix + 5 > len(data):
                    raise _UnsoundPacket
                yield prefix, prefix + 3
                prefix = data.find(b"\0\0\1", prefix + 3)
            return
        prefix = 0
        while prefix < len(data):
            start = prefix + self.length_size
            end = start + int.from_bytes(data[prefix:start], "big")
            if end > len(data) or end < start + 2:
                raise _UnsoundPacket
            yield prefix, start
            prefix = end

    def read(self, packet: av.Packet) -> _Picture:
        """
        Reads a packet, and leaves it empty.

        Args:
            packet (`av.Packet`): One frame.

        Returns:
            `_Picture`: What its headers say.

        Raises:
            _UnsoundPacket: The chain of units is broken, or holds no picture of a kind that can be followed.
            av.FFmpegError: A header is not what the standard allows.
        """
        data = bytes(packet)
        slices: list[int] = []  # where units that hold slices begin
        for prefix, start in self.units(data):
            kind = data[start] >> 1 & 0x3F if self.is_hevc else data[start] & 0x1F
            if kind < 32 if self.is_hevc else 1 <= kind <= 5:
                if self.preamble is None:
                    self.preamble = data[:prefix]
                slices.append(start)
        if not slices:
            raise _UnsoundPacket
        if self.filter is not None:
            self.filter.filter(packet)
        if self.is_hevc:
            # IDR and CRA (19 to 21) are random access points; behind a BLA (16 to 18) pictures may be missing. Even
            # types below 16 are referenced by no picture of their own temporal layer, though by those of higher ones.
            kinds = [data[start] >> 1 & 0x3F for start in slices]
            if any(16 <= kind <= 18 for kind in kinds):
                raise _UnsoundPacket
            return _Picture(
                is_entry=all(19 <= kind <= 21 for kind in kinds),
                is_unreferenced=all(kind < 16 and kind % 2 == 0 for kind in kinds),
                layer=data[slices[0] + 1] & 7,
            )
        # An IDR picture (type 5) empties the buffer of references; `nal_ref_idc` 0 marks what no picture refers to.
        return _Picture(
            is_entry=all(data[start] & 0x1F == 5 for start in slices),
            is_unreferenced=all(data[start] >> 5 & 3 == 0 for start in slices),
            slice_header=data[slices[0] + 1 : slices[0] + 9],
        )


B_SLICE = 1


def _slice_type(header: bytes) -> int:
    """The kind of an H.264 slice, from the two Exp-Golomb numbers that its header begins with."""
    bits = "".join(f"{byte:08b}" for byte in header + b"\xff" * 24)  # so that a damaged one has an end
    place = 0
    value = 0
    for _ in range(2):  # first_mb_in_slice, slice_type
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        value = int(bits[place - zeros - 1 : place], 2) - 1
    return value % 5


def content_hash(path: str | os.PathLike[str]) -> str:
    """
    Hashes size, head and tail of a file: a copy has the same hash, another file another one.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `str`: SHA-256 in hexadecimal digits.

    Raises:
        MediaError: The file is not a regular file with content.
    """
    size = check_media_file(path).st_size
    key = hashlib.sha256(f"{size} ".encode())
    with open(path, "rb") as file:
        key.update(file.read(HASHED_BYTES))
        file.seek(-min(HASHED_BYTES, size), os.SEEK_END)
        key.update(file.read(HASHED_BYTES))
    return key.hexdigest()


def _stored_path(path: str | os.PathLike[str], status: os.stat_result, index_dir: Path, suffix: str = "") -> Path:
    """Where what is known of a file is stored."""
    decoder = av.library_versions["libavcodec"]
    key = f"{INDEX_VERSION} {decoder} {status.st_mtime_ns} {content_hash(path)}"
    name = hashlib.sha256(key.encode()).hexdigest()
    return index_dir / name[:2] / f"{name[2:]}{suffix}.safetensors"


def _load_index(stored_path: Path, path: str | os.PathLike[str]) -> FrameIndex | None:
    """Reads a stored index; `None` where there is none that can be read."""
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
    return Tracks(
        **values,
        video=None if video is None else VideoTrack(**video),
        audio=None if audio is None else AudioTrack(**audio),
    )


def _store_index(index: FrameIndex, stored_path: Path) -> None:
    """Stores an index; where that is not possible, says so and goes on."""
    values = {f.name: getattr(index, f.name) for f in fields(index) if f.name not in ("seconds", "table", "path")}
    values["tracks"] = None if index.tracks is None else asdict(index.tracks)
    _store({"seconds": index.seconds} | (vars(index.table) if index.table else {}), values, stored_path)


def _load(stored_path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads stored arrays and values; `None` where there are none that can be read."""
    try:
        with safe_open(stored_path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it has no iterator
            return arrays, json.loads(file.metadata()["index"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _store(arrays: dict[str, np.ndarray], values: dict[str, Any], stored_path: Path) -> None:
    """Stores arrays and values; where that is not possible, says so and goes on."""
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"index": json.dumps(values)})
    try:
        stored_path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(stored_path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        logger.warning("frame indices cannot be kept in %r: %s", os.fspath(stored_path.parents[1]), error)


def tick_seconds(stream: VideoStream) -> Fraction:
    """
    Returns the unit of a stream's time stamps.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.

    Returns:
        `Fraction`: Length of a tick, in seconds.
    """
    assert stream.time_base is not None  # every stream that FFmpeg reads has one
    return stream.time_base
