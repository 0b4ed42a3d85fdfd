"""The clips of the toy world: their video, their audio, and the questions about them."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.prepare.toy.media import (
    AUDIO_ATTRIBUTES,
    BACKGROUNDS,
    FRAMES_PER_SECOND,
    VIDEO_ATTRIBUTES,
    ToyAudio,
    ToyVideo,
    toy_generator,
)

BEEP_MARGIN = 0.25  # seconds between the middle of a beep in a question and the nearest switch of the background


@dataclass(frozen=True)
class ToyClip:
    """One file: its id, its split ("train", "validation" or "questions"), its video and its audio."""

    id: str
    split: str
    video: ToyVideo
    audio: ToyAudio

    @property
    def path(self) -> str:
        """Path of the file relative to the toy folder."""
        return f"{self.split}/{self.id}.mp4"

    @property
    def attributes(self) -> dict[str, str]:
        """The values of all video and audio attributes by name."""
        seen = dict(zip(VIDEO_ATTRIBUTES, self.video.values, strict=True))
        return seen | dict(zip(AUDIO_ATTRIBUTES, self.audio.values, strict=True))

    @property
    def combination(self) -> tuple[str, ...]:
        """The values of all attributes; clips with equal combinations have captions that mean the same."""
        return self.video.values + self.audio.values

    @property
    def background_at_beep(self) -> str:
        """The background in the middle of the beep."""
        return self.video.background_at(self.audio.beep_seconds)

    @property
    def answers(self) -> dict[str, tuple[str, str]]:
        """The attribute asked for and the answer, by kind of question."""
        return {
            "video": (self.video.asked, self.attributes[self.video.asked]),
            "audio": (self.audio.asked, self.attributes[self.audio.asked]),
            "joint": ("background", self.background_at_beep),
        }


def draw_clips(
    *,
    num_train_clips: int,
    num_validation_videos: int,
    num_validation_audio: int,
    num_question_clips: int,
    num_segments: int,
    num_frames: int,
    seed: int,
) -> dict[str, list[ToyClip]]:
    """
    Sample all clips of a world, without rendering them.

    Args:
        num_frames (`int`): Number of frames of every clip.
        num_train_clips, num_validation_videos, num_validation_audio, num_question_clips, num_segments and seed:
            As in [`make_toy_world`].

    Returns:
        `dict[str, list[ToyClip]]`: The clips of `"train"`, `"validation"` and `"questions"`.

    Raises:
        ValueError: Every combination of attributes is held out.
    """
    validation = _validation_clips(num_validation_videos, num_validation_audio, num_segments, num_frames, seed)
    questions = _question_clips(num_question_clips, num_segments, num_frames, seed)
    held_out = {clip.combination for clip in validation + questions}
    train = _train_clips(num_train_clips, held_out, num_segments, num_frames, seed)
    return {"train": train, "validation": validation, "questions": questions}


def num_combinations(attributes: dict[str, tuple[str, ...]]) -> int:
    return math.prod(len(values) for values in attributes.values())


def _combination(number: int, attributes: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the combination of attribute values that a number encodes in mixed radix."""
    chosen = {}
    for name, values in attributes.items():
        number, digit = divmod(number, len(values))
        chosen[name] = values[digit]
    return chosen


def _sample_timeline(
    num_segments: int, num_frames: int, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """
    Sample a timeline: the number 0, 1 or 2 of each segment's background, and each segment's first frame.

    Neighbours differ; each background has the same number of segments and frames; the three are exchangeable.
    """
    per_background = num_segments // 3
    order: list[int] = []
    while len(order) < num_segments:
        left = np.array([per_background - order.count(number) for number in range(3)], dtype=float)
        if order:
            left[order[-1]] = 0
        if left.sum() == 0:
            order = []  # a dead end: only the background of the last segment is left
            continue
        order.append(int(generator.choice(3, p=left / left.sum())))
    shortest = 2 * num_frames // (3 * num_segments)
    spare = num_frames // 3 - shortest * per_background
    durations = [0] * num_segments
    for number in range(3):
        cuts = np.sort(generator.integers(0, spare + 1, per_background - 1))
        extra = np.diff(np.concatenate([[0], cuts, [spare]]))
        positions = [n for n in range(num_segments) if order[n] == number]
        for position, more in zip(positions, extra, strict=True):
            durations[position] = shortest + int(more)
    return order, [sum(durations[:n]) for n in range(num_segments)]


def _sample_beep(
    order: list[int], switches: list[int], background: int, num_frames: int, generator: np.random.Generator
) -> float:
    """Sample the middle of a beep, in seconds on a grid of 10 ms, inside a segment that has the given background."""
    ends = [*switches[1:], num_frames]
    times = [
        round(hundredth / 100, 2)
        for number, first, end in zip(order, switches, ends, strict=True)
        if number == background
        for hundredth in range(10 * first + round(100 * BEEP_MARGIN), 10 * end - round(100 * BEEP_MARGIN) + 1)
    ]
    return float(generator.choice(times))


def _train_clips(
    count: int, held_out: set[tuple[str, ...]], num_segments: int, num_frames: int, seed: int
) -> list[ToyClip]:
    """Sample training clips from combinations that are not held out, with balanced, independent joint answers."""
    generator = toy_generator(seed, "train")
    backgrounds = list(BACKGROUNDS)
    everything = VIDEO_ATTRIBUTES | AUDIO_ATTRIBUTES
    combinations = [_combination(number, everything) for number in range(num_combinations(everything))]
    allowed = [chosen for chosen in combinations if tuple(chosen.values()) not in held_out]
    if not allowed:
        raise InputError(
            f"All {len(combinations)} combinations of attributes are held out; lower `num_validation_videos`, "
            "`num_validation_audio` or `num_question_clips`."
        )
    order = np.concatenate([generator.permutation(len(allowed)) for _ in range(-(-count // len(allowed)))])
    answers = generator.permutation(np.arange(count) % 3)
    clips = []
    for n in range(count):
        chosen = allowed[order[n]]
        timeline, switches = _sample_timeline(num_segments, num_frames, generator)
        beep_seconds = _sample_beep(timeline, switches, int(answers[n]), num_frames, generator)
        name = f"train_{n:06d}"
        shown = tuple(backgrounds[number] for number in timeline)
        video_asked, audio_asked = (str(generator.choice(list(a))) for a in (VIDEO_ATTRIBUTES, AUDIO_ATTRIBUTES))
        seen = tuple(chosen[key] for key in VIDEO_ATTRIBUTES)
        heard = tuple(chosen[key] for key in AUDIO_ATTRIBUTES)
        video = ToyVideo(name, seen, video_asked, shown, tuple(switches))
        audio = ToyAudio(name, heard, audio_asked, beep_seconds)
        clips.append(ToyClip(name, "train", video, audio))
    return clips


def _validation_clips(
    num_videos: int, num_tracks: int, num_segments: int, num_frames: int, seed: int
) -> list[ToyClip]:
    """Combine every video with every audio track; beeps occur at any time, as these clips have no questions."""
    generator = toy_generator(seed, "validation")
    backgrounds = list(BACKGROUNDS)
    videos, tracks = [], []
    for n, values in enumerate(_neighbours(VIDEO_ATTRIBUTES, num_videos, generator)):
        timeline, switches = _sample_timeline(num_segments, num_frames, generator)
        shown = tuple(backgrounds[number] for number in timeline)
        videos.append(ToyVideo(f"validation_p{n:03d}", values, "", shown, tuple(switches)))
    for n, values in enumerate(_neighbours(AUDIO_ATTRIBUTES, num_tracks, generator)):
        latest = num_frames / FRAMES_PER_SECOND - BEEP_MARGIN
        beep_seconds = round(float(generator.uniform(BEEP_MARGIN, latest)), 2)
        tracks.append(ToyAudio(f"validation_s{n:03d}", values, "", beep_seconds))
    return [
        ToyClip(f"validation_p{p:03d}_s{s:03d}", "validation", video, audio)
        for p, video in enumerate(videos)
        for s, audio in enumerate(tracks)
    ]


def _neighbours(
    attributes: dict[str, tuple[str, ...]], count: int, generator: np.random.Generator
) -> list[tuple[str, ...]]:
    """Sample distinct combinations, each one attribute away from an earlier one, with evenly spread values."""
    names = list(attributes)
    chosen = [tuple(str(generator.choice(attributes[name])) for name in names)]
    while len(chosen) < count:
        candidates = {
            (*base[:place], value, *base[place + 1 :])
            for base in chosen
            for place, name in enumerate(names)
            for value in attributes[name]
        } - set(chosen)
        used = [Counter(values[place] for values in chosen) for place in range(len(names))]
        crowding = {
            values: sum(used[place][value] * len(attributes[names[place]]) for place, value in enumerate(values))
            for values in candidates
        }
        fewest = min(crowding.values())
        best = sorted(values for values in candidates if crowding[values] == fewest)
        chosen.append(best[int(generator.integers(len(best)))])
    return chosen


def _question_clips(count: int, num_segments: int, num_frames: int, seed: int) -> list[ToyClip]:
    """Make families of 3 videos x 3 audio tracks with balanced values, whose joint answers form a Latin square."""
    generator = toy_generator(seed, "questions")
    backgrounds = list(BACKGROUNDS)
    num_families = count // 9
    seen = _balanced(VIDEO_ATTRIBUTES, 3 * num_families, generator)
    heard = _balanced(AUDIO_ATTRIBUTES, 3 * num_families, generator)
    clips = []
    for family in range(num_families):
        timeline, switches = _sample_timeline(num_segments, num_frames, generator)
        videos, tracks = [], []
        for n in range(3):
            shown = tuple(backgrounds[(number + n) % 3] for number in timeline)
            name = f"questions_{family:03d}_p{n}"
            videos.append(ToyVideo(name, *seen[3 * family + n], shown, tuple(switches)))
            beep_seconds = _sample_beep(timeline, switches, n, num_frames, generator)
            tracks.append(ToyAudio(f"questions_{family:03d}_s{n}", *heard[3 * family + n], beep_seconds))
        clips += [
            ToyClip(f"questions_{family:03d}_p{p}_s{s}", "questions", video, audio)
            for p, video in enumerate(videos)
            for s, audio in enumerate(tracks)
        ]
    return clips


def _balanced(
    attributes: dict[str, tuple[str, ...]], count: int, generator: np.random.Generator
) -> list[tuple[tuple[str, ...], str]]:
    """
    Sample combinations, each with the attribute to ask for.

    Each attribute is asked for equally often. Among the combinations with the same attribute to ask for, the values of
    each attribute occur equally often, to within one.
    """
    chosen: list[tuple[tuple[str, ...], str]] = []
    for n, asked in enumerate(attributes):
        share = len(range(n, count, len(attributes)))
        columns = []
        for values in attributes.values():
            first = int(generator.integers(len(values)))  # otherwise the remainder always favours the first values
            numbers = generator.permutation((first + np.arange(share)) % len(values))
            columns.append([values[number] for number in numbers])
        chosen += [(combination, asked) for combination in zip(*columns, strict=True)]
    return [chosen[number] for number in generator.permutation(count)]
