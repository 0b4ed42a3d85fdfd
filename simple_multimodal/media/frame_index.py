"""The frame index of a video: the frames of a file, their times, and the packets that hold them."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from simple_multimodal.media.clock import ClockRun, Timeline, find_runs, make_timeline
from simple_multimodal.media.container import (
    MAX_FRAMES,
    MAX_PIXELS,
    Tracks,
    choose_tracks,
    decode_packets,
    demux_packets,
    open_audio_stream,
    open_media,
    open_video_stream,
    require_video,
    tick_seconds,
)
from simple_multimodal.media.conversion import Matrix, is_transposed, read_display_matrix
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.packets import MP4_FORMAT, NAL_CODECS, PacketTable, num_announced, read_packets

logger = logging.getLogger(__name__)

MAX_ASPECT_RATIO = 64  # of a frame; a longer one, scaled until its short side fits, would fill the memory
SEEKABLE_FORMATS = {MP4_FORMAT, "matroska,webm", "avi"}
KEY_FRAME_CODECS = {"vp8", "vp9", "av1", "libdav1d", "mjpeg"}  # codecs whose key frames depend on no earlier frame


@dataclass(frozen=True)
class FrameIndex:
    """
    The frames that a full decode of a video yields: their number, times and size.

    Frame `i` is the `i`-th in the decoder's output order. The index counts the frames that a file yields, even if its
    header promises more.

    Args:
        num_frames (`int`):
            Number of frames, at least 1.
        seconds (`np.ndarray` of shape `(num_frames,)`, `float64`):
            Presentation time of each frame, in seconds from the earliest one; never descending. Where a file's time
            stamps contradict the output order (some AVI files store none for frames out of order), the times are
            sorted: the `i`-th frame has the `i`-th smallest time. Where the clock restarts (recordings joined by
            appending one file to another), time continues; see [`make_timeline`]. Read-only.
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
            Number of frames that the container announces; 0 if it does not.
        display_matrix (`tuple[int, int, int, int]`, *optional*):
            Rotation to apply to the decoded frames, see `read_display_matrix`.
        table ([`PacketTable`], *optional*):
            The packets of the frames; `None` if frames can only be read by decoding from the start.
        tracks ([`Tracks`], *optional*):
            The streams that are read from the file.
        clock_runs (`tuple[ClockRun, ...]`, *optional*):
            Restarts of the clock.
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
        """Width and height of the decoded frames, before rotation."""
        return (self.height, self.width) if is_transposed(self.display_matrix) else (self.width, self.height)


def build_index(path: str | os.PathLike[str]) -> FrameIndex:
    """
    Index a video without looking for a stored index.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `FrameIndex`: Number, times and size of its frames.

    Raises:
        MediaError: The file cannot be read, or holds no frame.
    """
    index = index_from_packets(path) or index_by_decoding(path)
    if index.num_frames < index.num_promised:
        logger.warning(
            "%r: yields %d frames of the %d that its header promises; only those are used",
            index.path,
            index.num_frames,
            index.num_promised,
        )
    return index


def index_from_packets(path: str | os.PathLike[str]) -> FrameIndex | None:
    """Index a video from its packets, decoding only the first; return `None` where that cannot be trusted."""
    with open_media(path) as container:
        tracks = choose_tracks(container, path)
        track = require_video(tracks, path)
        if tracks.container not in SEEKABLE_FORMATS or track.codec not in NAL_CODECS:
            return None
        stream = open_video_stream(container, track.stream, path)
        packets = read_packets(container, stream)
        # A frame of two fields may lie in two packets.
        if packets is None or packets.first_frame is None or packets.first_frame.interlaced_frame:
            return None
        timeline = make_timeline(packets.table.time_stamps.tolist(), Fraction(0))
        return _make_index(
            path,
            stream,
            tracks,
            timeline,
            packets.first_frame,
            packets.last_ticks,
            num_hidden=packets.num_hidden,
            table=packets.table,
        )


def index_by_decoding(path: str | os.PathLike[str]) -> FrameIndex:
    """Index a video by decoding all of it, without colour conversion."""
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
        for _, frame in decode_packets(container, stream, counted(demux_packets(container, stream))):
            assert isinstance(frame, VideoFrame)
            first = first or frame
            if len(ticks) == MAX_FRAMES:
                raise MediaError(f"{name!r}: has more than {MAX_FRAMES} frames; split the file into shorter ones")
            ticks.append(frame.pts)
            last_ticks = frame.duration or 0
            is_damaged |= frame.is_corrupt
        if first is None:
            raise MediaError(
                f"{name!r}: no frame of its {stream.codec_context.name} video can be decoded (damaged, or "
                f"frames of more than {MAX_PIXELS} pixels)"
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
        packets = read_packets(container, open_video_stream(container, index.stream, path), is_verified=True)
    if packets is None or packets.table.time_stamps.tolist() != sorted(known):
        return index
    # The time stamps identify the frames even if they contradict the output order.
    order = np.searchsorted(packets.table.time_stamps, known)
    table = replace(packets.table, time_stamps=np.array(known), packets=packets.table.packets[order])
    return replace(index, table=table)


def _find_clock_runs(path: str | os.PathLike[str], index: FrameIndex, timeline: Timeline) -> tuple[ClockRun, ...]:
    """
    Find the byte positions at which the clock of a file restarts; the audio of a run belongs to its video.

    Return nothing if the packets do not show as many restarts as the frames do: the audio is then placed on its own.
    """
    assert index.tracks is not None
    audio = index.tracks.audio
    places: dict[int, list[int]] = {}  # byte positions of the packets of each stream
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
                    # A packet without a position takes that of the packet before.
                    known.append(packet.pos if packet.pos is not None else known[-1] if known else 0)
                    stamps.setdefault(packet.stream_index, []).append(packet.pts if packet.dts is None else packet.dts)
        except av.FFmpegError:  # the file is truncated
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
    """Return the index of a stream whose frames lie on this timeline, and whose first frame is `first`."""
    time_base = tick_seconds(stream)
    matrix = read_display_matrix(first)
    width, height = (first.height, first.width) if is_transposed(matrix) else (first.width, first.height)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(
            f"{os.fspath(path)!r}: its frames are {width} x {height}; one side may be at most {MAX_ASPECT_RATIO} "
            "times as long as the other"
        )
    seconds = timeline.ticks.astype(np.float64) * time_base.numerator / time_base.denominator
    seconds.setflags(write=False)  # shared by all users of the cached index
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
        num_promised=max(num_announced(stream, tracks.container) - num_hidden, 0),
        display_matrix=matrix,
        table=table,
        tracks=tracks,
    )
