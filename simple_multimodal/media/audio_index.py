"""The audio index of a file: its runs of contiguous samples, and the packets at which decoding can start."""

import bisect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
from av import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from simple_multimodal.media.clock import REORDER_FRAMES, ClockRun
from simple_multimodal.media.container import Tracks, decode_audio, demux_packets
from simple_multimodal.media.errors import MediaError

MAX_DECODED_AUDIO_SAMPLES = 2**32  # decoded from one file, all channels: about 12 hours of 48 kHz stereo
SOURCE_RATES = (1_000, 1_000_000)  # Hz: headers may claim any rate, and the cost of resampling grows with the ratio
MAX_RUNS = 2**16  # of an index; damaged files may have a gap at every packet
BLOCK_SECONDS = 0.25  # of audio that is converted and resampled together
MAX_TIME_STAMP_ERROR_SECONDS = 0.05  # time stamps off by less (rounding, jitter) do not count as a gap

# Decoded and discarded where decoding starts in the middle: MP3 and AAC depend on the packets before.
PREROLL_PACKETS = 10
ENTRY_SECONDS = 10.0  # between packets at which decoding can start
SEEK_MARGIN_SECONDS = 0.5  # seeking by time may land slightly after the requested time
# Containers in which packets are found by byte position: their time stamps are estimates, or may restart.
BYTE_SEEK_FORMATS = {"mp3", "aac", "mpegts", "mpeg"}
# Containers that split samples into packets from any entry point: they must be entered exactly at a packet.
RAW_FORMATS = {"wav", "w64", "aiff"}


class Block(NamedTuple):
    """
    Contiguous decoded audio frames of one format and sampling rate.

    Args:
        seconds (`float`, *optional*): Start of the first frame on the container's clock; `None` if unknown.
        frames (`list[av.AudioFrame]`): The frames, each with at least one sample.
        num_samples (`int`): Number of samples of all frames.
    """

    seconds: float | None
    frames: list[AudioFrame]
    num_samples: int

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.frames[0].sample_rate


class AudioRun(NamedTuple):
    """
    A run of contiguous audio.

    Args:
        first_sample (`int`): Number of samples decoded from the file before the run.
        rate (`int`): Samples per second, as decoded.
        seconds (`float`): Start of the run on the timeline, whose zero is the first video frame.
    """

    first_sample: int
    rate: int
    seconds: float


class AudioEntry(NamedTuple):
    """
    A packet at which decoding can start.

    Args:
        first_byte (`int`): Byte position of the packet that is decoded first.
        time_stamp (`int`): Time stamp of that packet, in ticks of the stream.
        byte (`int`): Byte position of a later packet, from which on the decoded samples are used.
        sample (`int`): Number of samples that a full decode outputs before that later packet.
    """

    first_byte: int
    time_stamp: int
    byte: int
    sample: int


@dataclass(frozen=True)
class AudioIndex:
    """
    The output of a full decode of an audio track, and where the track can be entered.

    Args:
        runs (`Sequence[AudioRun]`): The runs, in file order.
        entries (`np.ndarray` of shape `(num_entries, 4)`, `int64`): The values of each [`AudioEntry`], in file order.
        num_samples (`int`): Number of samples of the whole track.
    """

    runs: Sequence[AudioRun]
    entries: np.ndarray
    num_samples: int

    def entry_before(self, sample: int) -> AudioEntry | None:
        """Return the last entry from which `sample` can be decoded; `None` means the start of the file."""
        number = int(np.searchsorted(self.entries[:, 3], sample, side="right")) - 1
        return None if number < 0 else AudioEntry(*self.entries[number].tolist())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the index as arrays, for storage."""
        return {
            "run_seconds": np.array([run.seconds for run in self.runs], np.float64),
            "runs": np.array([run[:2] for run in self.runs], np.int64).reshape(-1, 2),
            "entries": self.entries,
            "num_samples": np.array([self.num_samples], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "AudioIndex | None":
        """Restore an index from the arrays of `to_arrays`; return `None` if they are incomplete."""
        try:
            runs = zip(arrays["runs"].tolist(), arrays["run_seconds"].tolist(), strict=True)
            return cls(
                runs=[AudioRun(first_sample, rate, seconds) for (first_sample, rate), seconds in runs],
                entries=arrays["entries"].reshape(-1, 4),
                num_samples=int(arrays["num_samples"][0]),
            )
        except (KeyError, TypeError, ValueError, IndexError):
            return None


class LostPlaceError(Exception):
    """The packet to start at is not where the index says."""


def timed_frames(
    stream: AudioStream, frames: Iterable[tuple[av.Packet, AudioFrame]], clock_runs: Sequence[ClockRun]
) -> Iterator[tuple[float | None, AudioFrame]]:
    """
    Put the audio of recordings that were appended to each other on one clock.

    If the video shows no restart but the time stamps go back further than packets can be out of order, the audio
    continues directly after the audio before it.

    Args:
        stream (`av.audio.stream.AudioStream`): The stream.
        frames (`Iterable[tuple[av.Packet, av.AudioFrame]]`): The frames, from `decode_audio`.
        clock_runs (`Sequence[ClockRun]`): The clock runs of the video, see [`FrameIndex`].

    Yields:
        `tuple[float | None, av.AudioFrame]`: The start of a frame in seconds on the clock of the first recording
        (`None` if unknown), and the frame.
    """
    time_base = float(stream.time_base or 0)
    first_bytes = [run.first_byte for run in clock_runs]
    offset = run_offset = 0.0
    follows: float | None = None
    for packet, frame in frames:
        if clock_runs and packet.pos is not None:
            number = bisect.bisect_right(first_bytes, packet.pos)
            new_offset = clock_runs[number - 1].offset_seconds if number else 0.0
            if new_offset != run_offset:
                offset = run_offset = new_offset
                follows = None  # in sync with the video, even if the audio before it lasts longer
        length = frame.samples / max(frame.sample_rate, 1)
        if frame.pts is None:
            follows = None if follows is None else follows + length
            yield None, frame
            continue
        seconds = frame.pts * time_base
        if follows is None or abs(seconds + run_offset - follows) <= MAX_TIME_STAMP_ERROR_SECONDS:
            offset = run_offset
        elif seconds + offset < follows - max(REORDER_FRAMES * length, MAX_TIME_STAMP_ERROR_SECONDS):
            offset = follows - seconds
        follows = seconds + offset + length
        yield seconds + offset, frame


def make_blocks(frames: Iterable[tuple[float | None, AudioFrame]], name: str) -> Iterator[Block]:
    """
    Join audio frames into blocks of `BLOCK_SECONDS` or slightly more.

    A frame holds about 20 ms. Converting and resampling each one separately costs more than decoding it, and two
    threads doing so block each other, because each step is too short to release the interpreter lock for.

    Args:
        frames (`Iterable[tuple[float | None, av.AudioFrame]]`): The start of each frame in seconds, and the frame.
        name (`str`): The file, for messages.

    Yields:
        `Block`: The blocks.

    Raises:
        MediaError: There are more than `MAX_DECODED_AUDIO_SAMPLES`, or their rate is outside `SOURCE_RATES`.
    """
    block: list[AudioFrame] = []  # contiguous frames of one format and rate
    start: float | None = None
    follows = 0.0
    num_samples = num_decoded = 0
    for seconds, frame in frames:
        num_decoded += frame.samples * frame.layout.nb_channels
        if num_decoded > MAX_DECODED_AUDIO_SAMPLES:
            raise MediaError(f"{name!r}: decodes to more than {MAX_DECODED_AUDIO_SAMPLES} audio samples")
        if frame.samples == 0:
            continue
        lowest, highest = SOURCE_RATES
        if not lowest <= frame.sample_rate <= highest:
            raise MediaError(
                f"{name!r}: its audio has {frame.sample_rate} samples per second; allowed are {lowest} to {highest}"
            )
        if block and not (
            num_samples < BLOCK_SECONDS * frame.sample_rate
            and (seconds is None or abs(seconds - follows) <= MAX_TIME_STAMP_ERROR_SECONDS)
            and _format_of(frame) == _format_of(block[0])
        ):
            yield Block(start, block, num_samples)
            block = []
        if not block:
            start, num_samples = seconds, 0
        block.append(frame)
        num_samples += frame.samples
        follows = (start or 0.0) + num_samples / frame.sample_rate
    if block:
        yield Block(start, block, num_samples)


def _format_of(frame: AudioFrame) -> tuple[str, int, int]:
    """Return the properties that must agree in frames that are converted together."""
    return frame.format.name, frame.layout.nb_channels, frame.sample_rate


def find_seams(blocks: Iterable[Block], start_seconds: float | None) -> Iterator[tuple[AudioRun, Block]]:
    """
    Group blocks into contiguous runs; a run ends where the time stamps diverge from the sample count, or the rate
    changes.

    Args:
        blocks (`Iterable[Block]`): The blocks, from the start of the file.
        start_seconds (`float`, *optional*): Time of the first video frame; with `None`, time runs from the first
            block.

    Yields:
        `tuple[AudioRun, Block]`: The run that a block belongs to, and the block.
    """
    run: AudioRun | None = None
    num_samples = 0
    for block in blocks:
        follows = None if run is None else run.seconds + (num_samples - run.first_sample) / run.rate
        if start_seconds is None:
            start_seconds = block.seconds or 0.0
        seconds = block.seconds
        if seconds is None:
            seconds = start_seconds if follows is None else follows + start_seconds
        seconds -= start_seconds
        is_seam = follows is None or abs(seconds - follows) > MAX_TIME_STAMP_ERROR_SECONDS
        if run is None or is_seam or block.rate != run.rate:
            run = AudioRun(num_samples, block.rate, seconds)
        num_samples += block.num_samples
        yield run, block


def build_audio_index(
    container: InputContainer,
    stream: AudioStream,
    name: str,
    start_seconds: float | None,
    clock_runs: Sequence[ClockRun],
) -> AudioIndex:
    """
    Index an audio track by decoding all of it, without conversion or resampling.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.audio.stream.AudioStream`): The stream.
        name (`str`): The file, for messages.
        start_seconds (`float`, *optional*): See [`find_seams`].
        clock_runs (`Sequence[ClockRun]`): See [`timed_frames`].

    Returns:
        `AudioIndex`: The index.

    Raises:
        MediaError: The track exceeds the limits.
    """
    entries: list[AudioEntry] = []
    num_samples = rate = 0
    next_sample = 0.0

    def noted(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        nonlocal next_sample
        recent: deque[tuple[int, int, int]] = deque(maxlen=PREROLL_PACKETS + 1)
        last_byte = -1
        for number, packet in enumerate(packets):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.size and packet.pos is not None and packet.pos > last_byte and stamp is not None:
                last_byte = packet.pos  # the first packet there, so its position identifies it
                earlier = [place for place in recent if place[0] <= number - PREROLL_PACKETS]
                if earlier and num_samples >= next_sample:
                    entries.append(AudioEntry(*earlier[-1][1:], packet.pos, num_samples))
                    next_sample = num_samples + ENTRY_SECONDS * rate
                recent.append((number, packet.pos, stamp))
            yield packet

    def counted(frames: Iterable[tuple[av.Packet, AudioFrame]]) -> Iterator[tuple[av.Packet, AudioFrame]]:
        nonlocal num_samples, rate
        for packet, frame in frames:
            num_samples += frame.samples
            rate = frame.sample_rate
            yield packet, frame

    frames = counted(decode_audio(container, stream, noted(demux_packets(container, stream))))
    blocks = make_blocks(timed_frames(stream, frames, clock_runs), name)
    runs: list[AudioRun] = []
    for run, _ in find_seams(blocks, start_seconds):
        if not runs or run is not runs[-1]:
            runs.append(run)
        if len(runs) > MAX_RUNS:
            raise MediaError(f"{name!r}: its audio has more than {MAX_RUNS} gaps; split the file into shorter ones")
    return AudioIndex(runs, np.array(entries, np.int64).reshape(-1, 4), num_samples)


def frames_from(
    container: InputContainer, stream: AudioStream, tracks: Tracks, entry: AudioEntry
) -> Iterator[AudioFrame]:
    """
    Decode an audio track, starting at an entry.

    Args:
        container (`av.container.InputContainer`): The file, freshly opened.
        stream (`av.audio.stream.AudioStream`): The stream.
        tracks ([`Tracks`]): The tracks of the file.
        entry ([`AudioEntry`]): An entry of its index.

    Yields:
        `av.AudioFrame`: The frames, starting at sample `entry.sample` of the track.

    Raises:
        LostPlaceError: The packets are not where the index says.
    """
    is_behind = False

    def sought() -> Iterator[av.Packet]:
        nonlocal is_behind
        has_begun = False
        if tracks.container in BYTE_SEEK_FORMATS:
            container.seek(entry.first_byte, unsupported_byte_offset=True)
        else:
            margin = 0.0 if tracks.container in RAW_FORMATS else SEEK_MARGIN_SECONDS
            container.seek(entry.time_stamp - round(margin / float(stream.time_base or 1)), stream=stream)
        for packet in demux_packets(container, stream):
            if not is_behind and packet.pos is not None:
                awaited = entry.byte if has_begun else entry.first_byte
                if packet.pos > awaited:
                    raise LostPlaceError
                if packet.pos == awaited:
                    is_behind, has_begun = has_begun, True
            if has_begun:
                yield packet

    for _, frame in decode_audio(container, stream, sought()):
        if is_behind:
            yield frame
    if not is_behind:
        raise LostPlaceError
