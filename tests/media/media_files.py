"""Write small media files whose content identifies each frame and sample."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, CELL = 64, 48, 16


def numbered_frame(number: int) -> np.ndarray:
    """Return an image of 4 x 3 black or white cells of 16 pixels: the bits of `number`, lowest first, row by row."""
    bits = np.array([number >> bit & 1 for bit in range(12)], dtype=np.uint8).reshape(3, 4) * 255
    return np.repeat(bits.repeat(CELL, axis=0).repeat(CELL, axis=1)[..., None], 3, axis=2)  # (48, 64, 3)


def read_number(frame: np.ndarray) -> int:
    """Read the number of a decoded `numbered_frame`, `(3, 48, 64)`, from the middle of each cell."""
    assert frame.shape == (3, HEIGHT, WIDTH)
    bits = frame[1, CELL // 2 :: CELL, CELL // 2 :: CELL].ravel() > 127
    return int((bits << np.arange(12)).sum())


def write_media(
    path: Path,
    *,
    num_frames: int = 0,
    first_number: int = 0,
    rate: int = 25,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    ticks: list[int] | None = None,
    waveform: Callable[[np.ndarray], np.ndarray] | None = None,
    audio_codec: str = "pcm_s16le",
    audio_rate: int = 16000,
    audio_start: float = 0.0,
    audio_seconds: float = 0.0,
    layout: str = "mono",
    audio_options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """
    Write a file with frames numbered from `first_number`, at `ticks / rate` seconds, with audio, or with both.

    `waveform` gets the times of the samples, counted from the file's zero, and returns `(samples,)` or
    `(channels, samples)`; the audio track covers `audio_seconds` from `audio_start` on.
    """
    with av.open(str(path), "w", options=container or {}) as output:
        if num_frames:
            options = codec_options or {"g": "12", "bf": "2", "crf": "10"}
            video = output.add_stream(codec, rate=rate, options=options)
            video.width, video.height = WIDTH, HEIGHT
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            video.codec_context.thread_count = 1
        if waveform:
            audio = output.add_stream(audio_codec, rate=audio_rate, layout=layout, options=audio_options or {})
        for number in range(num_frames):
            image = av.VideoFrame.from_ndarray(numbered_frame(first_number + number), format="rgb24")
            image.pts, image.time_base = (ticks or range(num_frames))[number], Fraction(1, rate)
            output.mux(video.encode(image))
        if num_frames:
            output.mux(video.encode(None))
        if waveform:
            times = audio_start + np.arange(round(audio_seconds * audio_rate)) / audio_rate
            samples = np.atleast_2d(waveform(times)).astype(np.float32)  # (channels, samples)
            for begin in range(0, samples.shape[1], 1024):
                piece = np.ascontiguousarray(samples[:, begin : begin + 1024])
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
                frame.sample_rate = audio_rate
                frame.pts, frame.time_base = round(audio_start * audio_rate) + begin, Fraction(1, audio_rate)
                resampler = av.AudioResampler(audio.codec_context.format.name, layout, audio_rate)
                for converted in resampler.resample(frame):
                    converted.pts, converted.time_base = frame.pts, frame.time_base
                    output.mux(audio.encode(converted))
            output.mux(audio.encode(None))
    return path


def write_two_tracks(path: Path, rates: tuple[int, int], codec: str, seconds: float = 3.0) -> Path:
    """Write a file with two video tracks of these rates; the frames of the second are numbered from 1000."""
    with av.open(str(path), "w") as output:
        streams = []
        for rate in rates:
            stream = output.add_stream(codec, rate=rate, options={"g": "10", "qscale": "2"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.thread_count = 1
            streams.append(stream)
        times = [
            (number / rate, track, number)
            for track, rate in enumerate(rates)
            for number in range(round(rate * seconds))
        ]
        for _, track, number in sorted(times):
            image = av.VideoFrame.from_ndarray(numbered_frame(1000 * track + number), format="rgb24")
            image.pts, image.time_base = number, Fraction(1, rates[track])
            output.mux(streams[track].encode(image))
        for stream in streams:
            output.mux(stream.encode(None))
    return path
