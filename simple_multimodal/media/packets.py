"""The packets of a video: where its frames lie among them, and what the headers of H.264 and HEVC say about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from simple_multimodal.media.clock import REORDER_FRAMES
from simple_multimodal.media.container import MAX_FRAMES, demux_packets

MP4_FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"
NAL_CODECS = {"h264", "hevc"}
B_SLICE = 1


@dataclass(frozen=True)
class PacketTable:
    """
    Where the frames of a video lie among its packets: what is needed to decode a few of them exactly.

    Every packet holds one frame; some may not be shown (edit lists). Packets are numbered in the order of the file,
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
            Whether no other frame depends on a packet's, so that a decoder need not see it.
        preamble (`np.ndarray` of shape `(num_bytes,)`, `uint8`):
            What the first packet holds before its frame (parameter sets, and by which version of which encoder it
            was written, of whose errors decoders know): a decoder that starts at another entry has to see it first.
    """

    time_stamps: np.ndarray
    packets: np.ndarray
    entries: np.ndarray
    entry_time_stamps: np.ndarray
    is_unreferenced: np.ndarray
    preamble: np.ndarray


class Packets(NamedTuple):
    """
    What the packets of a stream say: where its frames lie, its first frame, how long the last one shows, and how many
    an edit list hides.
    """

    table: PacketTable
    first_frame: VideoFrame | None
    last_ticks: int
    num_hidden: int


def num_announced(stream: VideoStream, container: str) -> int:
    """How many packets the header announces; 0 where it does not say."""
    if container != MP4_FORMAT:
        return stream.frames
    return min(stream.frames, len(stream.index_entries))  # without those that an edit list cuts off at an end


def read_packets(container: InputContainer, stream: VideoStream, *, is_settled: bool = False) -> Packets | None:
    """
    Read the packets of a freshly opened video, and decode the first of H.264 and HEVC.

    `None` where a packet is damaged or without a time stamp of its own, or where their number is not the promised one:
    such a file may decode to other frames than its packets promise. Unless it was `is_settled` by decoding it, also
    where headers are not what the standards allow, or the time stamps may be those of decoding (AVI has no others, and
    some MP4 files neither).
    """
    codec = stream.codec_context
    inspector = NalInspector(stream, checks_headers=not is_settled) if codec.name in NAL_CODECS else None
    time_stamps: list[int] = []
    durations: list[int] = []
    shown: list[bool] = []
    entries: list[int] = []
    unreferenced: list[bool] = []
    layers: list[int] = []
    headers: list[bytes] = []
    first_frames: list[VideoFrame] = []
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
                frame = CodedFrame(packet.is_keyframe, is_unreferenced=False)
            else:
                if number == 0:  # a copy, which is put out even if an edit list hides it
                    first_frames = [*codec.decode(av.Packet(bytes(packet))), *codec.decode(None)]
                frame = inspector.read(packet)
            unreferenced.append(frame.is_unreferenced)
            layers.append(frame.layer)
            headers.append(frame.slice_header)
            if frame.is_entry:
                entries.append(number)
    except (av.FFmpegError, _UnsoundPacket):
        return None
    announced = num_announced(stream, container.format.name)
    if not time_stamps or announced not in (0, len(time_stamps)) or not entries or entries[0] != 0:
        return None
    if inspector is not None and (len(first_frames) != 1 or first_frames[0].is_corrupt):
        return None
    stamps = np.array(time_stamps)  # (num_packets,)
    ranks = np.argsort(np.argsort(stamps, kind="stable"), kind="stable")
    if np.abs(np.arange(len(stamps)) - ranks).max() > REORDER_FRAMES:  # the clock starts again, or jumps
        return None
    if inspector is not None and not is_settled and (np.diff(stamps) > 0).all():
        # Nothing is shown out of order, or these are times of decoding: without B slices it is the former.
        if inspector.is_hevc or any(_slice_type(header) == B_SLICE for header in headers):
            return None
    packets = np.flatnonzero(shown)  # (num_frames,)
    packets = packets[np.argsort(stamps[packets], kind="stable")]
    ascending = stamps[packets]
    # A frame shown before that of the first packet depends on others that the file lacks.
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
    return Packets(table, first_frames[0] if first_frames else None, durations[packets[-1]], num_hidden)


class _UnsoundPacket(Exception):
    """A packet is not what its codec writes."""


class CodedFrame(NamedTuple):
    """
    What the headers of a packet say of its frame.

    Args:
        is_entry (`bool`): Decoding can start here.
        is_unreferenced (`bool`): No frame of the same temporal layer depends on it.
        layer (`int`): Its temporal layer.
        slice_header (`bytes`): How its first slice begins.
    """

    is_entry: bool
    is_unreferenced: bool
    layer: int = 0
    slice_header: bytes = b""


class NalInspector:
    """
    Read the network abstraction layer of H.264 and HEVC packets.

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
        Cut a packet into its units.

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

    def read(self, packet: av.Packet) -> CodedFrame:
        """
        Read a packet, and leave it empty.

        Args:
            packet (`av.Packet`): One frame.

        Returns:
            `CodedFrame`: What its headers say.

        Raises:
            _UnsoundPacket: The chain of units is broken, or holds no frame of a kind that can be followed.
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
            # IDR and CRA (19 to 21) are random access points; behind a BLA (16 to 18) frames may be missing. Even
            # types below 16 are referenced by no frame of their own temporal layer, though by those of higher ones.
            kinds = [data[start] >> 1 & 0x3F for start in slices]
            if any(16 <= kind <= 18 for kind in kinds):
                raise _UnsoundPacket
            return CodedFrame(
                is_entry=all(19 <= kind <= 21 for kind in kinds),
                is_unreferenced=all(kind < 16 and kind % 2 == 0 for kind in kinds),
                layer=data[slices[0] + 1] & 7,
            )
        # An IDR frame (type 5) empties the buffer of references; `nal_ref_idc` 0 marks what no frame refers to.
        return CodedFrame(
            is_entry=all(data[start] & 0x1F == 5 for start in slices),
            is_unreferenced=all(data[start] >> 5 & 3 == 0 for start in slices),
            slice_header=data[slices[0] + 1 : slices[0] + 9],
        )


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
