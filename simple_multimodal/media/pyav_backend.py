"""Video backend on PyAV, whose wheel bundles FFmpeg: the frames of a full decode, decoding as little as needed."""

import bisect
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from simple_multimodal.media.backend import check_positions
from simple_multimodal.media.container import (
    decode_frames,
    demux_packets,
    open_media,
    open_video_stream,
)
from simple_multimodal.media.conversion import DecordConverter, FrameConverter
from simple_multimodal.media.errors import MediaError, UnsoundIndexError
from simple_multimodal.media.frame_index import FrameIndex
from simple_multimodal.media.packets import PacketTable

SEEK_PACKETS = 256  # seeking past this many packets is faster than reading them


class PyAVBackend:
    """
    Decodes with PyAV: exact on every file that decodes.

    With a packet table it decodes only the groups of pictures (GOPs) that hold wanted frames, only up to the last
    wanted frame, and skips frames on which no wanted frame depends. Without a table it decodes from the start up to
    the last wanted frame.

    Args:
        is_like_decord (`bool`, *optional*, defaults to `False`): Whether scaled frames get the same pixels as in
            decord, see [`DecordConverter`].
    """

    device = "cpu"

    def __init__(self, *, is_like_decord: bool = False):
        self.is_like_decord = is_like_decord

    def frames(
        self,
        path: str | os.PathLike[str],
        positions: Sequence[int],
        index: FrameIndex,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """
        Decode the frames at the given positions.

        If the size changes within the stream, frames are scaled to the size of the first.

        Args:
            path (`str` or `os.PathLike`): The file.
            positions (`Sequence[int]`): Frame numbers in `[0, index.num_frames)`, in any order, repeats allowed.
            index (`FrameIndex`): The index of the video, from `index_video`.
            size (`tuple[int, int]`, *optional*): Height and width to scale to, in the step that converts colours
                (swscale's bilinear kernel, which averages when it shrinks); by default the video's own.

        Returns:
            `np.ndarray` of shape `(len(positions), 3, height, width)`, `uint8`: RGB, rotation of the file applied.

        Raises:
            MediaError: The file cannot be read, or yields fewer frames than were indexed.
            ValueError: A position is outside the file.
        """
        check_positions(positions, index)
        places: dict[int, list[int]] = {}
        for place, position in enumerate(positions):
            places.setdefault(int(position), []).append(place)
        height, width = size or (index.height, index.width)
        convert: DecordConverter | FrameConverter
        if self.is_like_decord and size is not None:
            convert = DecordConverter(size, index.display_matrix)
        else:
            convert = FrameConverter((height, width), index.display_matrix, scales=size is not None)
        frames = np.empty((len(positions), 3, height, width), dtype=np.uint8)
        with open_media(path, probe="everything" if index.table is None else "nothing") as container:
            stream = open_video_stream(container, index.stream, path)
            decode = _decode_from_start if index.table is None else _decode_sparsely
            missing = dict(places)
            for position, frame in decode(container, stream, index, sorted(places)):
                first, *others = missing.pop(position)
                convert(frame, frames[first])
                frames[others] = frames[first]
        if missing and index.table is not None:
            raise UnsoundIndexError(f"{index.path!r}: does not yield all frames that its packets promise")
        if missing:
            raise MediaError(
                f"{os.fspath(path)!r}: has no frame {min(missing)}, although {index.num_frames} were indexed; "
                "did the file change?"
            )
        return frames


def _decode_from_start(
    container: InputContainer, stream: VideoStream, index: FrameIndex, positions: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at ascending positions, counting the decoder's output."""
    wanted = set(positions)
    for number, frame in enumerate(decode_frames(container, stream)):
        if number in wanted:
            yield number, frame
        if number == positions[-1]:
            return


def _decode_sparsely(
    container: InputContainer, stream: VideoStream, index: FrameIndex, positions: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at ascending positions, identified by time stamp; stop early where the file is damaged."""
    table = index.table
    assert table is not None
    wanted = {int(table.time_stamps[position]): position for position in positions}
    codec = stream.codec_context
    # Make the decoder hold frames back as long as the standard allows: if it guesses the delay from the frames it has
    # seen, it drops frames that come out of order. The time stamp identifies each frame that it outputs.
    codec.options = codec.options | {"strict": "strict"}
    for packet in _needed_packets(container, stream, table, positions):
        try:
            decoded = codec.decode(packet)
        except av.FFmpegError:
            if packet is not None and packet.pts is None:  # the preamble, which holds no frame
                continue
            return
        for frame in decoded:
            if frame.is_corrupt:
                return
            if frame.pts in wanted:
                yield wanted.pop(frame.pts), frame
        if not wanted:
            return
        if packet is None:
            codec.flush_buffers()


def _needed_packets(
    container: InputContainer, stream: VideoStream, table: PacketTable, positions: list[int]
) -> Iterator[av.Packet | None]:
    """Yield the packets to decode for some frames, and `None` where the decoder must be flushed."""
    packets = demux_packets(container, stream)
    number = 0  # of the next packet
    for run in plan_runs(table, positions):
        if number == 0 and run.first > 0 and len(table.preamble) > 0:
            yield av.Packet(table.preamble.tobytes())
        if run.first - number > SEEK_PACKETS:
            yield None
            container.seek(run.first_time_stamp, stream=stream)
            packets = demux_packets(container, stream)
            number = run.first
        elif number > 0 and stream.codec_context.name == "hevc":
            # Frames that depend on frames before a random access point are only dropped if decoding starts there.
            yield None
        for packet in packets:
            if number == run.first and packet.pts != run.first_time_stamp:
                return
            number += 1
            if number > run.first and number - 1 not in run.skipped:
                yield packet
            if number > run.last:
                break
    yield None


class Run(NamedTuple):
    """Consecutive packets to decode.

    Args:
        first (`int`): Number of the first packet, an entry of the table.
        first_time_stamp (`int`): Presentation time stamp of the first packet, in ticks.
        last (`int`): Number of the packet of the last wanted frame, in file order.
        skipped (`set[int]`): Numbers of packets in between on which no wanted frame depends.
    """

    first: int
    first_time_stamp: int
    last: int
    skipped: set[int]


def plan_runs(table: PacketTable, positions: list[int]) -> list[Run]:
    """
    Plan which packets to decode for some frames: each group of pictures once, up to its last wanted frame.

    Args:
        table (`PacketTable`): The packet table of the video.
        positions (`list[int]`): Frame numbers, ascending.

    Returns:
        `list[Run]`: Runs in file order that do not touch.
    """
    entries, entry_time_stamps = table.entries.tolist(), table.entry_time_stamps.tolist()
    spans: dict[int, list[int]] = {}  # wanted packets, by the number of the entry at which decoding starts
    for packet, time_stamp in zip(
        table.packets[positions].tolist(), table.time_stamps[positions].tolist(), strict=True
    ):
        number = bisect.bisect_right(entries, packet) - 1
        while entry_time_stamps[number] > time_stamp:  # a frame shown before the entry depends on earlier ones
            number -= 1
        spans.setdefault(number, []).append(packet)
    runs: list[Run] = []
    wanted: set[int] = set()
    for number in sorted(spans):
        wanted.update(spans[number])
        first, time_stamp, last = entries[number], entry_time_stamps[number], max(spans[number])
        if runs and first <= runs[-1].last + 1:
            first, time_stamp, last = runs[-1].first, runs[-1].first_time_stamp, max(runs.pop().last, last)
        unreferenced = first + np.flatnonzero(table.is_unreferenced[first : last + 1])
        runs.append(Run(first, time_stamp, last, set(unreferenced.tolist()) - wanted))
    return runs
