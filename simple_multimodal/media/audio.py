"""Sound tracks to mono waveforms whose first sample lies at the segment's start on the video's timeline."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from av import AudioFrame, AudioResampler
from av.audio.plane import AudioPlane
from av.container import InputContainer

from simple_multimodal.media.container import decode_sound, find_audio_stream, find_video_stream, open_media
from simple_multimodal.media.errors import MediaError, NoSoundTrackError
from simple_multimodal.media.frame_index import index_video
from simple_multimodal.media.sampling import check_segment

MAX_AUDIO_SAMPLES = 2**25  # of a returned waveform: 128 MiB, 35 minutes at 16 kHz
MAX_DECODED_AUDIO_SAMPLES = 2**32  # decoded from one file, all channels: some 12 hours of 48 kHz stereo
SOURCE_RATES = (1_000, 1_000_000)  # Hz: the headers of a few KB may claim any, and resampling grows with the ratio
BLOCK_SECONDS = 0.25  # of sound that is converted and resampled together
MAX_TIME_STAMP_ERROR_SECONDS = 0.05  # time stamps off by less (rounding, jitter) do not count as a gap

# Sample formats of FFmpeg: type, value of silence, and value of full scale above it.
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
    Says whether a file has a sound track that can be decoded (a silent one counts), from its headers alone.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `bool`: Whether it has.

    Raises:
        MediaError: The file cannot be read as media.
    """
    with open_media(path) as container:
        return find_audio_stream(container) is not None


def read_audio(
    path: str | os.PathLike[str],
    sampling_rate: int,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    index_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """
    Reads the sound of a file, or of a segment of it, as a mono waveform.

    Time runs from the first video frame, as `FrameIndex.seconds` does; in a file without video, from the first sound.
    Sample `k` of the whole file lies at `k / sampling_rate` seconds, and a segment is the slice
    `[round(start_seconds * sampling_rate), round(end_seconds * sampling_rate))` of the whole: neighbouring segments
    neither overlap nor leave a gap. Sound before the first video frame is left out; before a sound track that starts
    late, and in gaps of it, there is silence. Where the sound ends before the segment does, the waveform is shorter
    than the segment.

    The channels are averaged, then resampled by FFmpeg's swresample.

    Args:
        path (`str` or `os.PathLike`): The file.
        sampling_rate (`int`): Sampling rate of the result, in Hz.
        start_seconds (`float`, *optional*): Start of the segment, in seconds; default 0.
        end_seconds (`float`, *optional*): End of the segment (exclusive), in seconds; default the end of the sound.
        index_dir (`str` or `os.PathLike`, *optional*): Folder of stored frame indices, see `index_video`.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, `float32`: The waveform, full scale at -1 and 1; at least one sample.

    Raises:
        NoSoundTrackError: The file has no sound track that can be decoded.
        MediaError: The file cannot be read, has no sound in the segment, or more than the limits allow.
        ValueError: The sampling rate or the segment is not allowed.
    """
    if sampling_rate < 1:
        raise ValueError(f"sampling_rate is {sampling_rate}; give a positive number of Hz, such as 16000")
    check_segment(start_seconds, end_seconds)
    name = os.fspath(path)
    first = 0 if start_seconds is None else round(start_seconds * sampling_rate)
    stop = None if end_seconds is None else round(end_seconds * sampling_rate)
    if first == stop:
        raise ValueError(
            f"the segment [{start_seconds}, {end_seconds}) is shorter than a sample at {sampling_rate} Hz; widen it"
        )
    pieces: list[tuple[int, np.ndarray]] = []
    sound_stop = 0  # position behind the last sample
    num_kept = 0  # samples in pieces, which overlap where time stamps go back
    with open_media(path, probe="sound") as container:
        start = _video_start_seconds(container, path, index_dir)
        for position, piece in _resampled_pieces(container, name, sampling_rate, start):
            sound_stop = max(sound_stop, position + len(piece))
            length = (sound_stop if stop is None else min(sound_stop, stop)) - first
            if max(length, num_kept) > MAX_AUDIO_SAMPLES:
                raise MediaError(
                    f"{name!r}: the sound is longer than {MAX_AUDIO_SAMPLES} samples; choose shorter segments of it"
                )
            begin = max(first - position, 0)
            end = len(piece) if stop is None else min(stop - position, len(piece))
            if begin < end:
                pieces.append((position + begin - first, piece[begin:end]))
                num_kept += end - begin
            if stop is not None and position >= stop:
                break
    num_samples = (sound_stop if stop is None else min(stop, sound_stop)) - first
    if sound_stop == 0:
        raise MediaError(f"{name!r}: its sound track holds no samples after the first video frame")
    if num_samples <= 0:
        raise MediaError(
            f"{name!r}: has no sound from {start_seconds} s on; its sound ends at {sound_stop / sampling_rate:.3f} s"
        )
    waveform = np.zeros(num_samples, dtype=np.float32)
    for place, piece in pieces:
        waveform[place : place + len(piece)] = piece
    if not np.isfinite(waveform).all():
        raise MediaError(f"{name!r}: its sound holds samples that are infinite or not a number")
    return waveform


def _video_start_seconds(
    container: InputContainer, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None
) -> float | None:
    """When the first frame is shown, on the container's clock; `None` where no frame can be decoded."""
    if find_video_stream(container) is None:
        return None
    try:
        return index_video(path, index_dir=index_dir).start_seconds
    except MediaError:
        return None


def _resampled_pieces(
    container: InputContainer, name: str, sampling_rate: int, start_seconds: float | None
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yields the mono sound of a file in pieces, each with its position in samples from `start_seconds`.

    The pieces follow each other without a seam until the time stamps leave the count of samples or the rate changes.
    """
    resampler: AudioResampler | None = None
    run_seconds = 0.0  # where the present run of seamless sound starts
    run_samples = 0  # decoded so far in this run
    rate = 0
    position = 0
    for seconds, block_rate, block in _blocks(container, name):
        follows = run_seconds + run_samples / rate if rate else None
        if start_seconds is None:
            start_seconds = seconds or 0.0
        if seconds is None:
            seconds = start_seconds if follows is None else follows + start_seconds
        seconds -= start_seconds
        is_seam = follows is None or abs(seconds - follows) > MAX_TIME_STAMP_ERROR_SECONDS
        if is_seam or block_rate != rate:
            for piece in _resample(resampler, None):
                yield position, piece
                position += len(piece)
            rate = block_rate
            resampler = None if rate == sampling_rate else AudioResampler("flt", "mono", sampling_rate)
            run_seconds, run_samples = seconds, 0
            position = round(seconds * sampling_rate)
        run_samples += len(block)
        for piece in _resample(resampler, block, rate):
            yield position, piece
            position += len(piece)
    for piece in _resample(resampler, None):
        yield position, piece
        position += len(piece)


def _blocks(container: InputContainer, name: str) -> Iterator[tuple[float | None, int, np.ndarray]]:
    """
    Yields the mono sound of a file as decoded, in blocks of `BLOCK_SECONDS` or a little more: start in seconds on the
    container's clock (`None`: not said), sampling rate, samples.

    Frames hold some 20 ms each. To convert and resample every one by itself costs more than decoding it, and two
    threads that do so hinder each other, as every step is too short to give the interpreter away for.
    """
    stream = find_audio_stream(container)
    if stream is None:
        raise NoSoundTrackError(f"{name!r}: has no sound track that can be decoded")
    time_base = float(stream.time_base or 0)
    frames: list[AudioFrame] = []  # of one format and rate, each beginning where the one before ends
    start: float | None = None
    follows = 0.0
    num_samples = num_decoded = 0
    for frame in decode_sound(container, stream):
        num_decoded += frame.samples * frame.layout.nb_channels
        if num_decoded > MAX_DECODED_AUDIO_SAMPLES:
            raise MediaError(f"{name!r}: decodes to more than {MAX_DECODED_AUDIO_SAMPLES} sound samples")
        if frame.samples == 0:
            continue
        lowest, highest = SOURCE_RATES
        if not lowest <= frame.sample_rate <= highest:
            raise MediaError(
                f"{name!r}: its sound has {frame.sample_rate} samples per second; {lowest} to {highest} are read"
            )
        seconds = None if frame.pts is None else frame.pts * time_base
        if frames and not (
            num_samples < BLOCK_SECONDS * frame.sample_rate
            and (seconds is None or abs(seconds - follows) <= MAX_TIME_STAMP_ERROR_SECONDS)
            and _sound_format(frame) == _sound_format(frames[0])
        ):
            yield start, frames[0].sample_rate, _mono(frames)
            frames = []
        if not frames:
            start, num_samples = seconds, 0
        frames.append(frame)
        num_samples += frame.samples
        follows = (start or 0.0) + num_samples / frame.sample_rate
    if frames:
        yield start, frames[0].sample_rate, _mono(frames)


def _sound_format(frame: AudioFrame) -> tuple[str, int, int]:
    """What has to be the same in frames that are converted together."""
    return frame.format.name, frame.layout.nb_channels, frame.sample_rate


def _mono(frames: list[AudioFrame]) -> np.ndarray:
    """Averages the channels of decoded frames, as `float32` of shape `(samples,)` with full scale at -1 and 1."""
    dtype, silence, full_scale = _SAMPLE_FORMATS[frames[0].format.name.removesuffix("p")]
    num_channels = frames[0].layout.nb_channels
    if frames[0].format.is_planar:
        # PyAV 18.1 looks for a null pointer behind the planes, which eight and more do not have: it gives planes that
        # are none, and to read one may end the process.
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
    """The samples of one plane of each frame."""
    return np.concatenate(
        [
            np.frombuffer(memoryview(plane), dtype, frame.samples * num_channels)
            for plane, frame in zip(planes, frames, strict=True)
        ]
    )


def _resample(resampler: AudioResampler | None, mono: np.ndarray | None, rate: int = 0) -> Iterator[np.ndarray]:
    """Resamples a piece of mono sound; `None` instead of a piece draws out what the resampler still holds."""
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
