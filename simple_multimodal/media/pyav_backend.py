"""Video backend on PyAV, whose wheel carries FFmpeg: the wanted frames of a full decode at the least decoding."""

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

SEEK_PACKETS = 256  # to skip as many packets by seeking is faster than to read over them


class PyAVBackend:
    """
    Decodes with PyAV: exact on every file that decodes.

    With a packet table it decodes only the groups of pictures that hold wanted frames, only up to the last of them,
    and of those only what the wanted ones depend on; without one, from the start up to the last wanted frame.

    Args:
        is_like_decord (`bool`, *optional*, defaults to `False`): Whether frames that are scaled have the pixels that
            decord gives them, see [`DecordConverter`].
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
        Decode the frames at some positions.

        A frame of another size than the first (streams may change it) is scaled to the first one's size.

        Args:
            path (`str` or `os.PathLike`): The file.
            positions (`Sequence[int]`): Frame numbers in `[0, index.num_frames)`, in any order, repeats allowed.
            index (`FrameIndex`): What `index_video(path)` returned.
            size (`tuple[int, int]`, *optional*): Height and width to scale to, in the step that converts colours
                (swscale's bilinear kernel, which averages where it shrinks); by default the video's own.

        Returns:
            `np.ndarray` of shape `(len(positions), 3, height, width)`, `uint8`: RGB, rotation of the file applied.

        Raises:
            MediaError: The file cannot be read, or yields fewer frames than those indexed.
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
                f"{os.fspath(path)!r}: yields no frame {min(missing)} though {index.num_frames} were indexed; "
                "did the file change?"
            )
        return frames


def _decode_from_start(
    container: InputContainer, stream: VideoStream, index: FrameIndex, positions: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at ascending positions, counting all that the decoder puts out."""
    wanted = set(positions)
    for number, frame in enumerate(decode_frames(container, stream)):
        if number in wanted:
            yield number, frame
        if number == positions[-1]:
            return


def _decode_sparsely(
    container: InputContainer, stream: VideoStream, index: FrameIndex, positions: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at ascending positions, known by their time stamps; end early where the file is damaged."""
    table = index.table
    assert table is not None
    wanted = {int(table.time_stamps[position]): position for position in positions}
    codec = stream.codec_context
    # The decoder is to hold frames back as long as the standard allows: with a guess from those that it has seen, it
    # drops what comes out of order. Which one it puts out is known by its time stamp.
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
    """Yield the packets to decode for some frames, and `None` where the decoder has to put out what it holds back."""
    packets = demux_packets(container, stream)
    number = 0  # of the packet that comes next
    for run in plan_runs(table, positions):
        if number == 0 and run.first > 0 and len(table.preamble) > 0:
            yield av.Packet(table.preamble.tobytes())
        if run.first - number > SEEK_PACKETS:
            yield None
            container.seek(run.first_time_stamp, stream=stream)
            packets = demux_packets(container, stream)
            number = run.first
        elif number > 0 and stream.codec_context.name == "hevc":
            # Frames that lean on others before a random access point are left out only where decoding starts there.
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
    """Packets to decode one after the other.

    Args:
        first (`int`): An entry of the table.
        first_time_stamp (`int`): Its presentation time stamp, in ticks.
        last (`int`): Packet of the last wanted frame in file order.
        skipped (`set[int]`): Packets between them that no wanted frame depends on.
    """

    first: int
    first_time_stamp: int
    last: int
    skipped: set[int]


def plan_runs(table: PacketTable, positions: list[int]) -> list[Run]:
    """
    Plan what to decode for some frames: every group of pictures once, up to the last frame wanted of it.

    Args:
        table (`PacketTable`): Of the video.
        positions (`list[int]`): Frame numbers, ascending.

    Returns:
        `list[Run]`: Runs in file order that do not touch.
    """
    entries, entry_time_stamps = table.entries.tolist(), table.entry_time_stamps.tolist()
    spans: dict[int, list[int]] = {}  # packets wanted, by the number of the entry that decoding starts from
    for packet, time_stamp in zip(
        table.packets[positions].tolist(), table.time_stamps[positions].tolist(), strict=True
    ):
        number = bisect.bisect_right(entries, packet) - 1
        while entry_time_stamps[number] > time_stamp:  # a frame shown before the entry leans on what precedes it
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
