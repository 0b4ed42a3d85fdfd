"""Video and audio of the toy world: their attributes, how they are rendered, and how they are written to files."""

import math
import os
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from simple_multimodal.data.randomness import sample_generator
from simple_multimodal.output_folder import write_atomically

FRAME_SIZE = 64  # pixels, height and width
FRAMES_PER_SECOND = 10
SAMPLING_RATE = 16000  # Hz
BEEP_FREQUENCY = 6000.0  # Hz; the melody stays below MELODY_LIMIT, so the beep has its own band
BEEP_SECONDS = 0.12
MELODY_LIMIT = 4600.0  # Hz
COLOURS = {
    "red": (230, 25, 25),
    "green": (20, 200, 40),
    "blue": (30, 50, 240),
    "yellow": (250, 225, 10),
    "magenta": (235, 30, 215),
    "cyan": (20, 215, 230),
}
BACKGROUNDS = {"black": (8, 8, 8), "grey": (88, 88, 88), "brown": (92, 48, 12)}  # all darker than the outline
DIAMETERS = {"small": 18.0, "large": 30.0}  # pixels of the longer side, without the outline
OUTLINE = 1.5  # pixels of white around the object
# Two strokes behind the object, in pixels, so that a single frame shows its direction.
WAKE_GAP, WAKE_LENGTH, WAKE_WIDTH = 3.0, 9.0, 2.5
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x to the right, y downwards
PITCHES = {"low": 180.0, "middle": 430.0, "high": 1030.0}  # Hz of the lowest note
RHYTHMS = {"slow": 2.0, "steady": 4.0, "fast": 8.0}  # notes per second
VIDEO_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(DIAMETERS),
    "colour": tuple(COLOURS),
    "shape": ("circle", "cross", "bar", "pillar"),
    "motion": tuple(DIRECTIONS),
}
AUDIO_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "pitch": tuple(PITCHES),
    "rhythm": tuple(RHYTHMS),
    "timbre": ("pure", "buzzing", "noisy"),
}


@dataclass(frozen=True)
class ToyVideo:
    """
    The content of a video stream. Two clips with equal content have the same encoded video stream, byte for byte.

    Args:
        name (`str`): Name that seeds the nuisance factors: start, speed, tints, noise.
        values (`tuple[str, ...]`): Value of each of `VIDEO_ATTRIBUTES`.
        asked (`str`): The attribute that the video question asks for.
        backgrounds (`tuple[str, ...]`): Background of each segment; neighbours differ, and each of the three is shown
            equally long.
        switches (`tuple[int, ...]`): First frame of each segment, beginning with 0.
    """

    name: str
    values: tuple[str, ...]
    asked: str
    backgrounds: tuple[str, ...]
    switches: tuple[int, ...]

    def background_at(self, seconds: float) -> str:
        """Return the background at a time in seconds; segments are half-open, `[start, end)`."""
        frame = math.floor(seconds * FRAMES_PER_SECOND + 1e-6)
        return self.backgrounds[sum(switch <= frame for switch in self.switches) - 1]


@dataclass(frozen=True)
class ToyAudio:
    """
    The content of an audio track. Two clips with equal content have the same encoded audio track, byte for byte.

    Args:
        name (`str`): Name that seeds the nuisance factors: notes, tempo, phase, loudness, noise.
        values (`tuple[str, ...]`): Value of each of `AUDIO_ATTRIBUTES`.
        asked (`str`): The attribute that the audio question asks for.
        beep_seconds (`float`): Middle of the beep, in seconds.
    """

    name: str
    values: tuple[str, ...]
    asked: str
    beep_seconds: float


def render_video(video: ToyVideo, *, num_frames: int, seed: int) -> np.ndarray:
    """
    Draw the frames of a video.

    Args:
        video (`ToyVideo`): The content of the video.
        num_frames (`int`): Number of frames, 10 per second.
        seed (`int`): Seed of the world; with the video's name it determines start, speed, tints and noise.

    Returns:
        `np.ndarray` of dtype uint8 and shape `(num_frames, 64, 64, 3)`: RGB frames.
    """
    size, colour, shape, motion = video.values
    generator = toy_generator(seed, f"picture {video.name}")
    radius = DIAMETERS[size] / 2 * generator.uniform(0.95, 1.05)
    margin = radius + OUTLINE + 1  # pixels from the centre to the edge of the frame, at least
    room = FRAME_SIZE - 2 * margin  # pixels that the centre can travel with the object inside the frame
    travel = room * generator.uniform(0.8, 1.0)
    start = generator.uniform(0, room - travel)
    across = room / 2 + generator.uniform(-4, 4)
    along = start + travel * (np.arange(num_frames) / max(num_frames - 1, 1))
    horizontal, vertical = DIRECTIONS[motion]
    if horizontal + vertical < 0:
        along = room - along
    x, y = (along, np.full(num_frames, across)) if horizontal else (np.full(num_frames, across), along)
    grid = np.arange(FRAME_SIZE, dtype=np.float32) + 0.5
    dx = grid[None, None, :] - (x + margin).astype(np.float32)[:, None, None]
    dy = grid[None, :, None] - (y + margin).astype(np.float32)[:, None, None]
    distance = _signed_distance(shape, dx, dy, radius)[..., None]  # (frames, 64, 64, 1)
    wake = _wake_distance(dx * horizontal + dy * vertical, dx * vertical + dy * horizontal, radius)[..., None]
    inside, covered = np.clip(0.5 - distance, 0, 1), np.clip(0.5 + OUTLINE - distance, 0, 1)

    tints = {
        name: (np.array(rgb) + generator.uniform(-5, 5, 3)).astype(np.float32) for name, rgb in BACKGROUNDS.items()
    }
    backdrop = np.stack([tints[video.background_at(n / FRAMES_PER_SECOND)] for n in range(num_frames)])
    paint = (np.array(COLOURS[colour]) + generator.uniform(-8, 8, 3)).astype(np.float32)
    texture = generator.normal(0, 3, (FRAME_SIZE, FRAME_SIZE, 1)).astype(np.float32)
    covered = np.maximum(covered, np.clip(0.5 - wake, 0, 1))
    frames = backdrop[:, None, None, :] * (1 - covered) + 250 * (covered - inside) + paint * inside + texture
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def render_audio(audio: ToyAudio, *, num_samples: int, seed: int) -> np.ndarray:
    """
    Synthesise the waveform of an audio track.

    Args:
        audio (`ToyAudio`): The content of the audio track.
        num_samples (`int`): Number of samples at 16 kHz.
        seed (`int`): Seed of the world; with the track's name it determines notes, tempo, phase, loudness and noise.

    Returns:
        `np.ndarray` of dtype float32 and shape `(num_samples,)`: Waveform in [-1, 1].
    """
    pitch, rhythm, timbre = audio.values
    generator = toy_generator(seed, f"sound {audio.name}")
    times = np.arange(num_samples) / SAMPLING_RATE
    rate = RHYTHMS[rhythm] * generator.uniform(0.94, 1.06)  # notes per second
    beats = times * rate + generator.uniform(0, 1)
    note, within = beats.astype(np.int64), (beats % 1) / rate  # number of the note, seconds since it began
    steps = generator.choice([1.0, 9 / 8, 5 / 4], size=int(note.max()) + 1)
    frequency = PITCHES[pitch] * 2 ** generator.uniform(-0.1, 0.1) * steps[note]
    envelope = np.clip(np.minimum(within / 0.01, (0.55 / rate - within) / 0.015), 0, 1)

    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE
    tone = np.sin(phase)
    if timbre == "buzzing":  # a sawtooth without the harmonics above MELODY_LIMIT
        for harmonic in range(2, int(MELODY_LIMIT / frequency.min()) + 1):
            tone += np.sin(harmonic * phase) / harmonic * (harmonic * frequency < MELODY_LIMIT)
    noise = generator.normal(0, 1, num_samples)
    if timbre == "noisy":
        spectrum = np.fft.rfft(noise)
        spectrum[np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE) > MELODY_LIMIT] = 0
        tone += 0.7 * np.fft.irfft(spectrum, num_samples)
    melody = tone * envelope
    melody *= 0.12 * generator.uniform(0.8, 1.2) / np.sqrt(np.mean(melody**2))

    from_beep = np.abs(times - audio.beep_seconds)
    beep = np.sin(2 * np.pi * BEEP_FREQUENCY * times) * np.clip((BEEP_SECONDS / 2 - from_beep) / 0.01, 0, 1)
    waveform = melody + 0.3 * beep + generator.normal(0, 0.002, num_samples)
    return np.clip(waveform, -1, 1).astype(np.float32)


def write_clip(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    waveform: np.ndarray | None = None,
    *,
    frames_per_second: int = FRAMES_PER_SECOND,
) -> None:
    """
    Write frames and waveform to an H.264/AAC `.mp4` file; the same arrays give the same bytes.

    Args:
        path (`str` or `os.PathLike`): File to write, atomically.
        frames (`np.ndarray` of dtype uint8 and shape `(num_frames, height, width, 3)`): RGB frames.
        waveform (`np.ndarray` of dtype float32 and shape `(num_samples,)`, *optional*): Mono waveform at 16 kHz; the
            file has no audio track without it.
        frames_per_second (`int`, *optional*, defaults to 10): Frame rate.
    """
    # "bitexact" omits library versions and dates.
    with (
        write_atomically(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        options = {"preset": "veryfast", "crf": "20", "g": "12", "bf": "0", "threads": "1"}
        video = container.add_stream("libx264", rate=frames_per_second, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        if waveform is not None:
            audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 48000
            audio.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        if waveform is not None:
            samples = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            samples.sample_rate = SAMPLING_RATE
            # Without time stamps players would play AAC's 64 ms of priming.
            samples.pts, samples.time_base = 0, Fraction(1, SAMPLING_RATE)
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))


def toy_generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a separate random generator for each (seed, purpose), independent of the use of others."""
    return sample_generator(seed, 0, purpose, "toy world")


def _wake_distance(ahead: np.ndarray, aside: np.ndarray, radius: float) -> np.ndarray:
    """Return the distance in pixels from the wake: two diverging strokes behind an object, as behind a boat."""
    behind = -ahead - radius - WAKE_GAP
    clamped = np.clip(behind, 0, WAKE_LENGTH)
    return np.hypot(behind - clamped, np.abs(aside) - clamped) - WAKE_WIDTH / 2


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Return the distance in pixels of each point from a shape's outline, negative inside: (frames, height, width)."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    arm = 0.3 * radius
    bar = np.maximum(np.abs(dx) - radius, np.abs(dy) - arm)
    pillar = np.maximum(np.abs(dx) - arm, np.abs(dy) - radius)
    if shape == "cross":
        return np.minimum(bar, pillar)
    return bar if shape == "bar" else pillar
