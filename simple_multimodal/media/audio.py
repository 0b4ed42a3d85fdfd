"""Read audio tracks as mono waveforms whose first sample lies at the segment's start on the video's timeline."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from av import AudioFrame, AudioResampler
from av.audio.plane import AudioPlane

from simple_multimodal.errors import InputError
from simple_multimodal.media.audio_index import (
    AudioEntry,
    AudioIndex,
    AudioRun,
    Block,
    LostPlaceError,
    build_audio_index,
    find_seams,
    frames_from,
    make_blocks,
    timed_frames,
)
from simple_multimodal.media.clock import ClockRun
from simple_multimodal.media.container import Tracks, decode_audio, open_audio_stream, open_media
from simple_multimodal.media.errors import MediaError, NoAudioError
from simple_multimodal.media.index_cache import index_cache, index_video
from simple_multimodal.media.sampling import check_segment

logger = logging.getLogger(__name__)

MAX_AUDIO_SAMPLES = 2**25  # of a returned waveform: 128 MiB, 35 minutes at 16 kHz
SEEK_SECONDS = 120.0  # a segment that starts later is decoded from an entry shortly before it
RESAMPLER_SECONDS = 0.1  # of audio before the segment that warm up the resampler: more than its filter spans

# FFmpeg's sample formats: type, value of silence, and full scale relative to it.
_SAMPLE_FORMATS = {
    "u8": (np.uint8, 128.0, 2.0**7),
    "s16": (np.int16, 0.0, 2.0**15),
    "s32": (np.int32, 0.0, 2.0**31),
    "s64": (np.int64, 0.0, 2.0**63),
    "flt": (np.float32, 0.0, 1.0),
    "dbl": (np.float64, 0.0, 1.0),
}


def has_audio(path: str | os.PathLike[str]) -> bool:
    """
    Check whether a file has an audio track that can be decoded (a silent one counts), without decoding it.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `bool`: Whether the file has such a track.

    Raises:
        MediaError: The file cannot be read as media.
    """
    return index_cache.tracks(path).audio is not None


def read_audio(
    path: str | os.PathLike[str],
    sampling_rate: int,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    index_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """
    Read the audio of a file, or of a segment of it, as a mono waveform.

    Time runs from the first video frame, as `FrameIndex.seconds` does; in a file without video, from the first
    audio sample. Sample `k` of the whole file lies at `k / sampling_rate` seconds, and a segment is the slice
    `[round(start_seconds * sampling_rate), round(end_seconds * sampling_rate))` of the whole: neighbouring segments
    neither overlap nor leave a gap. Audio before the first video frame is dropped; silence fills the time before a
    track that starts late and any gaps in it. If the audio ends before the segment does, the waveform is shorter than
    the segment. Where the clock restarts (recordings joined by appending one file to another), the audio of the second
    recording follows that of the first, in sync with its video.

    The channels are averaged, then resampled by FFmpeg's swresample. A segment that starts before `SEEK_SECONDS` is
    decoded from the start of the file. For a later segment the track is decoded once to index it; from then on
    decoding starts shortly before the segment. For codecs whose frames depend on few others (PCM, FLAC, MP3, AAC
    without noise substitution) the samples equal those of decoding from the start, bit for bit; for others (AAC with
    noise substitution, Opus) they are the same every time.

    Args:
        path (`str` or `os.PathLike`): The file.
        sampling_rate (`int`): Sampling rate of the result, in Hz.
        start_seconds (`float`, *optional*): Start of the segment, in seconds; default 0.
        end_seconds (`float`, *optional*): End of the segment (exclusive), in seconds; default the end of the audio.
        index_dir (`str` or `os.PathLike`, *optional*): Folder of stored frame indices, see `index_video`.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, `float32`: The waveform, full scale at -1 and 1; at least one sample.

    Raises:
        NoAudioError: The file has no audio in the segment: no track that can be decoded, a track without packets, or
            one that ends before the segment starts.
        MediaError: The file or its audio cannot be read, or the audio exceeds the limits.
        ValueError: The sampling rate or the segment is not allowed.
    """
    if sampling_rate < 1:
        raise InputError(f"sampling_rate is {sampling_rate}; give a positive number of Hz, such as 16000")
    check_segment(start_seconds, end_seconds)
    name = os.fspath(path)
    first = 0 if start_seconds is None else round(start_seconds * sampling_rate)
    stop = None if end_seconds is None else round(end_seconds * sampling_rate)
    if first == stop:
        raise InputError(
            f"the segment [{start_seconds}, {end_seconds}) is shorter than a sample at {sampling_rate} Hz; widen it"
        )
    tracks = index_cache.tracks(path, index_dir)
    if tracks.audio is None:
        raise NoAudioError(f"{name!r}: has no audio track that can be decoded")
    start, clock_runs = _video_clock(path, tracks, index_dir)
    pieces: list[tuple[int, np.ndarray]] = []
    audio_stop = 0  # position after the last sample
    num_kept = 0  # samples in pieces, which overlap where time stamps go back
    for position, piece in _resampled(path, tracks, sampling_rate, start, clock_runs, first, index_dir):
        audio_stop = max(audio_stop, position + len(piece))
        length = (audio_stop if stop is None else min(audio_stop, stop)) - first
        if max(length, num_kept) > MAX_AUDIO_SAMPLES:
            raise MediaError(
                f"{name!r}: the audio is longer than {MAX_AUDIO_SAMPLES} samples; choose a shorter segment"
            )
        begin = max(first - position, 0)
        end = len(piece) if stop is None else min(stop - position, len(piece))
        if begin < end:
            pieces.append((position + begin - first, piece[begin:end]))
            num_kept += end - begin
        if stop is not None and position >= stop:
            break
    num_samples = (audio_stop if stop is None else min(stop, audio_stop)) - first
    if audio_stop == 0:
        raise NoAudioError(f"{name!r}: its audio track has no samples after the first video frame")
    if num_samples <= 0:
        raise NoAudioError(
            f"{name!r}: has no audio after {start_seconds} s; it ends at {audio_stop / sampling_rate:.3f} s"
        )
    waveform = np.zeros(num_samples, dtype=np.float32)
    for place, piece in pieces:
        waveform[place : place + len(piece)] = piece
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name!r}: its audio contains samples that are infinite or not a number")
    return waveform


def _video_clock(
    path: str | os.PathLike[str], tracks: Tracks, index_dir: str | os.PathLike[str] | None
) -> tuple[float | None, Sequence[ClockRun]]:
    """Return the first frame's time on the container's clock (`None`: no video) and where that clock restarts."""
    if tracks.video is None:
        return None, ()
    try:
        index = index_video(path, index_dir=index_dir)
    except MediaError:
        return None, ()
    return index.start_seconds, index.clock_runs


def _resampled(
    path: str | os.PathLike[str],
    tracks: Tracks,
    sampling_rate: int,
    start_seconds: float | None,
    clock_runs: Sequence[ClockRun],
    first: int,
    index_dir: str | os.PathLike[str] | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yield the mono audio of a file in pieces, each with its position in samples from the timeline's zero.

    Decoding starts at the beginning of the file, or shortly before the `first` sample of a segment that starts late.
    The pieces are contiguous until the time stamps diverge from the sample count or the rate changes.
    """
    assert tracks.audio is not None
    name, number, probe = os.fspath(path), tracks.audio.stream, tracks.audio.probe

    def build() -> AudioIndex:
        with open_media(path, probe=probe) as container:
            stream = open_audio_stream(container, number, path)
            return build_audio_index(container, stream, name, start_seconds, clock_runs)

    if first >= SEEK_SECONDS * sampling_rate:
        index = index_cache.audio(path, start_seconds, build, index_dir)
        place = _find_place(index, sampling_rate, first, name)
        if place is not None:
            try:
                with open_media(path, probe=probe) as container:
                    stream = open_audio_stream(container, number, path)
                    frames = ((None, frame) for frame in frames_from(container, stream, tracks, place.entry))
                    yield from _resample_runs(_cut(make_blocks(frames, name), index, place, name), sampling_rate)
                return
            except LostPlaceError:
                logger.warning("%r: seeking does not find its audio; decoding from the start", name)
    with open_media(path, probe=probe) as container:
        stream = open_audio_stream(container, number, path)
        timed = timed_frames(stream, decode_audio(container, stream), clock_runs)
        seams = find_seams(make_blocks(timed, name), start_seconds)
        yield from _resample_runs(((run, 0, _mono(block.frames)) for run, block in seams), sampling_rate)


class _Place(NamedTuple):
    """Where to enter a track: a run, a sample of the track in that run, and an entry before the sample."""

    run: int
    sample: int
    entry: AudioEntry


def _find_place(index: AudioIndex, sampling_rate: int, first: int, name: str) -> _Place | None:
    """
    Return where to start decoding for sample `first` of the result; `None` means the start of the file.

    Resampling is bit-exact only if it starts at a sample that coincides with one of the result, counted from the start
    of the run.
    """
    ends = [run.seconds + (stop - run.first_sample) / run.rate for run, stop in _with_stops(index)]
    number = next((number for number, end in enumerate(ends) if end * sampling_rate > first), None)
    if number is None:
        raise NoAudioError(
            f"{name!r}: has no audio after {first / sampling_rate:.3f} s; it ends at {max(ends, default=0):.3f} s"
        )
    run = index.runs[number]
    wanted = (first - round(run.seconds * sampling_rate)) * run.rate // sampling_rate
    wanted -= math.ceil(RESAMPLER_SECONDS * run.rate)
    step = run.rate // math.gcd(run.rate, sampling_rate)
    sample = run.first_sample + max(wanted // step * step, 0)
    entry = index.entry_before(sample)
    return None if entry is None else _Place(number, sample, entry)


def _with_stops(index: AudioIndex) -> Iterator[tuple[AudioRun, int]]:
    """Yield each run with the number of the track's first sample after it."""
    stops = [*(run.first_sample for run in index.runs), index.num_samples][1:]
    return zip(index.runs, stops, strict=True)


def _cut(
    blocks: Iterable[Block], index: AudioIndex, place: _Place, name: str
) -> Iterator[tuple[AudioRun, int, np.ndarray]]:
    """Cut the audio decoded from an entry into the runs of the track, starting at a place; see `_resample_runs`."""
    runs = list(_with_stops(index))[place.run :]
    end = place.entry.sample  # of the current block, in samples of the track
    for block in blocks:
        mono = _mono(block.frames)
        begin, end = end, end + len(mono)
        while runs and runs[0][1] <= begin:
            del runs[0]
        for run, stop in runs:
            low, high = max(begin, run.first_sample, place.sample), min(end, stop)
            if low < high:
                if block.rate != run.rate:
                    raise MediaError(f"{name!r}: its audio differs from the indexed audio; did the file change?")
                yield run, low - run.first_sample, mono[low - begin : high - begin]
            if end <= stop:
                break


def _resample_runs(
    parts: Iterable[tuple[AudioRun, int, np.ndarray]], sampling_rate: int
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Resample mono audio run by run, and yield it with its position in samples from the timeline's zero.

    Each part is a run, the number of the part's first sample in it, and the samples. The parts of a run are
    contiguous; if the first part does not start at sample 0, it starts at a sample of the result.
    """
    resampler: AudioResampler | None = None
    present: AudioRun | None = None
    position = 0
    for run, number, mono in parts:
        if run is not present:
            for piece in _resample(resampler, None):
                yield position, piece
                position += len(piece)
            resampler = None if run.rate == sampling_rate else AudioResampler("flt", "mono", sampling_rate)
            present = run
            position = round(run.seconds * sampling_rate) + number * sampling_rate // run.rate
        for piece in _resample(resampler, mono, run.rate):
            yield position, piece
            position += len(piece)
    for piece in _resample(resampler, None):
        yield position, piece
        position += len(piece)


def _mono(frames: list[AudioFrame]) -> np.ndarray:
    """Average the channels of decoded frames, as `float32` of shape `(samples,)` with full scale at -1 and 1."""
    dtype, silence, full_scale = _SAMPLE_FORMATS[frames[0].format.name.removesuffix("p")]
    num_channels = frames[0].layout.nb_channels
    if frames[0].format.is_planar:
        # PyAV 18.1 looks for a null pointer after the planes, which is missing with eight or more of them: it returns
        # planes that do not exist, and reading one may crash the process.
        planes = zip(*(frame.planes[:num_channels] for frame in frames), strict=True)
        samples = np.stack([_joined(channel, frames, dtype, 1) for channel in planes])
    else:
        interleaved = _joined([frame.planes[0] for frame in frames], frames, dtype, num_channels)
        samples = interleaved.reshape(-1, num_channels).T  # (channels, samples)
    samples = samples.astype(np.float32)
    if silence:
        samples -= np.float32(silence)
    mono = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    return mono if full_scale == 1 else mono / np.float32(full_scale)


def _joined(planes: Sequence[AudioPlane], frames: list[AudioFrame], dtype: Any, num_channels: int) -> np.ndarray:
    """Concatenate the samples of one plane of each frame."""
    return np.concatenate(
        [
            np.frombuffer(memoryview(plane), dtype, frame.samples * num_channels)
            for plane, frame in zip(planes, frames, strict=True)
        ]
    )


def _resample(resampler: AudioResampler | None, mono: np.ndarray | None, rate: int = 0) -> Iterator[np.ndarray]:
    """Resample a piece of mono audio; `None` flushes the resampler."""
    if resampler is None:
        if mono is not None:
            yield mono
        return
    frame = None
    if mono is not None:
        frame = AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
        frame.sample_rate = rate
    for resampled in resampler.resample(frame):
        yield resampled.to_ndarray()[0]
