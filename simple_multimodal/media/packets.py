"""The packets of a video: which of them hold its frames, and what the headers of H.264 and HEVC say about them."""

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
    The packets that hold the frames of a video, as needed to decode a few frames exactly.

    Every packet holds one frame; some may not be shown (edit lists). Packets are numbered in file order, which is
    decoding order.

    Args:
        time_stamps (`np.ndarray` of shape `(num_frames,)`, `int64`):
            Presentation time stamp of each frame, in ticks of the stream; all distinct, and ascending unless the file
            contradicts its own order.
        packets (`np.ndarray` of shape `(num_frames,)`, `int64`):
            Number of the packet of each frame.
        entries (`np.ndarray` of shape `(num_entries,)`, `int64`):
            Numbers of the packets at which decoding can start, ascending; the first is 0. Frames that follow an entry
            in both decoding and presentation order depend on nothing before it.
        entry_time_stamps (`np.ndarray` of shape `(num_entries,)`, `int64`):
            Presentation time stamps of the entries, in ticks.
        is_unreferenced (`np.ndarray` of shape `(num_packets,)`, `bool`):
            Whether no other frame depends on a packet's frame, so that a decoder can skip it.
        preamble (`np.ndarray` of shape `(num_bytes,)`, `uint8`):
            The data before the frame in the first packet (parameter sets, and the name and version of the encoder,
            whose bugs decoders work around): a decoder that starts at another entry needs it first.
    """

    time_stamps: np.ndarray
    packets: np.ndarray
    entries: np.ndarray
    entry_time_stamps: np.ndarray
    is_unreferenced: np.ndarray
    preamble: np.ndarray


class Packets(NamedTuple):
    """
    The information in a stream's packets: the packet table, the first frame, the duration of the last frame, and the
    number of frames that an edit list hides.
    """

    table: PacketTable
    first_frame: VideoFrame | None
    last_ticks: int
    num_hidden: int


def num_announced(stream: VideoStream, container: str) -> int:
    """Return the number of packets that the header announces; 0 if it does not."""
    if container != MP4_FORMAT:
        return stream.frames
    return min(stream.frames, len(stream.index_entries))  # without those that an edit list cuts off at either end


def read_packets(container: InputContainer, stream: VideoStream, *, is_verified: bool = False) -> Packets | None:
    """
    Read the packets of a freshly opened video, and decode the first packet of H.264 and HEVC.

    Return `None` if a packet is damaged or has no time stamp of its own, or if there are more or fewer packets than
    promised: such a file may decode to other frames than its packets promise. Unless the file `is_verified` by
    decoding it, also return `None` if headers violate the standards, or if the time stamps may be decoding times (as
    always in AVI, and in some MP4 files).
    """
    codec = stream.codec_context
    inspector = NalInspector(stream, checks_headers=not is_verified) if codec.name in NAL_CODECS else None
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
            time_stamps.append(packet.pts)  # before the inspector empties the packet
            durations.append(packet.duration or 0)
            shown.append(not packet.is_discard)
            if inspector is None:
                frame = CodedFrame(packet.is_keyframe, is_unreferenced=False)
            else:
                if number == 0:  # decode a copy, which is output even if an edit list hides the frame
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
    if np.abs(np.arange(len(stamps)) - ranks).max() > REORDER_FRAMES:  # the clock restarts or jumps
        return None
    if inspector is not None and not is_verified and (np.diff(stamps) > 0).all():
        # Either no frame is reordered, or these are decoding times: without B slices it is the former.
        if inspector.is_hevc or any(_slice_type(header) == B_SLICE for header in headers):
            return None
    packets = np.flatnonzero(shown)  # (num_frames,)
    packets = packets[np.argsort(stamps[packets], kind="stable")]
    ascending = stamps[packets]
    # A frame shown before the first packet's depends on frames that the file lacks.
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
    """A packet is not valid for its codec."""


class CodedFrame(NamedTuple):
    """
    The headers of a packet's frame.

    Args:
        is_entry (`bool`): Whether decoding can start here.
        is_unreferenced (`bool`): Whether no frame of the same temporal layer depends on this one.
        layer (`int`): Temporal layer of the frame.
        slice_header (`bytes`): First bytes of the header of its first slice.
    """

    is_entry: bool
    is_unreferenced: bool
    layer: int = 0
    slice_header: bytes = b""


class NalInspector:
    """
    Reads the network abstraction layer of H.264 and HEVC packets.

    A packet is a chain of units: each prefixed with its length, as in MP4 and Matroska (ISO/IEC 14496-15), or with a
    start code (annex B of the standards). FFmpeg's `*_metadata` filter parses all headers in them, down to those of
    the slices, and refuses anything that the standards do not allow.

    Args:
        stream (`av.video.stream.VideoStream`): The stream.
        checks_headers (`bool`): Whether to parse all headers.
    """

    def __init__(self, stream: VideoStream, *, checks_headers: bool):
        codec = stream.codec_context
        self.is_hevc = codec.name == "hevc"
        extradata = codec.extradata or b""
        place = 21 if self.is_hevc else 4  # offset of `lengthSizeMinusOne` in the decoder configuration record
        has_lengths = len(extradata) > place and extradata[0] == 1
        self.length_size = (extradata[place] & 3) + 1 if has_lengths else None
        self.preamble: bytes | None = None  # of the first packet, once it has been read
        self.filter = BitStreamFilterContext(f"{codec.name}_metadata", stream) if checks_headers else None

    def units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """
        Split a packet into its units.

        Args:
            data (`bytes`): The packet.

        Yields:
            `tuple[int, int]`: Offset of a unit's prefix, and offset of the unit itself.

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
            packet (`av.Packet`): The packet of one frame.

        Returns:
            `CodedFrame`: The headers of the frame.

        Raises:
            _UnsoundPacket: The chain of units is broken, or holds no frame of a supported kind.
            av.FFmpegError: A header violates the standard.
        """
        data = bytes(packet)
        slices: list[int] = []  # offsets of the units that hold slices
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
            # IDR and CRA (19 to 21) are random access points; after a BLA (16 to 18) frames may be missing. Even types
            # below 16 are not referenced by frames of their own temporal layer, only by those of higher ones.
            kinds = [data[start] >> 1 & 0x3F for start in slices]
            if any(16 <= kind <= 18 for kind in kinds):
                raise _UnsoundPacket
            return CodedFrame(
                is_entry=all(19 <= kind <= 21 for kind in kinds),
                is_unreferenced=all(kind < 16 and kind % 2 == 0 for kind in kinds),
                layer=data[slices[0] + 1] & 7,
            )
        # An IDR frame (type 5) empties the reference buffer; `nal_ref_idc` 0 marks frames that no other refers to.
        return CodedFrame(
            is_entry=all(data[start] & 0x1F == 5 for start in slices),
            is_unreferenced=all(data[start] >> 5 & 3 == 0 for start in slices),
            slice_header=data[slices[0] + 1 : slices[0] + 9],
        )


def _slice_type(header: bytes) -> int:
    """Return the type of an H.264 slice, read from the two Exp-Golomb numbers at the start of its header."""
    bits = "".join(f"{byte:08b}" for byte in header + b"\xff" * 24)  # padded so that parsing a damaged one ends
    place = 0
    value = 0
    for _ in range(2):  # first_mb_in_slice, slice_type
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        value = int(bits[place - zeros - 1 : place], 2) - 1
    return value % 5
