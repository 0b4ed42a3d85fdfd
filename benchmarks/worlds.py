"""Further synthetic worlds, unlike the toy world, to test whether a recipe works where nobody tuned it.

python benchmarks/worlds.py WORLD FOLDER [--num_train_clips 1500] [--num_validation_clips 256] [--seed 0]

- `polygons`: one of eight shapes in five colours moves in one of five ways to one of four melodies. 3 seconds.
- `textures`: a pattern in a colour fills the frame and scrolls at one of three speeds; the audio is a hiss, a rumble
  or a hum that pulses and swells. 2 to 8 seconds.
- `counts`: one to four discs grow, shrink, blink or stay; a drum beats one of four rhythms at two pitches and with two
  timbres. 6 seconds.

Properties that captions do not mention (place, start, speed, tint, loudness, noise) are sampled per clip. No
combination of attributes of a validation clip occurs in training. The manifests have a column for each attribute, from
which `attribute_scores` computes how often the top result has the correct value.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simple_multimodal.prepare.toy import make_toy_world
from simple_multimodal.prepare.toy.media import FRAME_SIZE, FRAMES_PER_SECOND, SAMPLING_RATE, toy_generator, write_clip

Values = Mapping[str, str]
Generator = np.random.Generator
CAPTIONS_PER_CLIP = 3

HUES = {
    "red": (225, 40, 35),
    "green": (40, 190, 60),
    "blue": (50, 70, 235),
    "yellow": (245, 220, 20),
    "violet": (160, 60, 220),
    "white": (240, 240, 240),
}


class World(NamedTuple):
    """
    A synthetic world.

    Args:
        seconds (`tuple[float, float]`): Length of the shortest and of the longest clip.
        attributes (`dict[str, dict[str, tuple[str, ...]]]`): Words for each value of each attribute.
        captions (`tuple[str, ...]`): Templates that mention every attribute.
        draw (`Callable`): Maps values, number of frames and generator to float pixels `(num_frames, size, size, 3)`.
        play (`Callable`): Maps values, times in seconds and generator to a waveform with the shape of the times.
    """

    seconds: tuple[float, float]
    attributes: dict[str, dict[str, tuple[str, ...]]]
    captions: tuple[str, ...]
    draw: Callable[[Values, int, Generator], np.ndarray]
    play: Callable[[Values, np.ndarray, Generator], np.ndarray]


# ---- Frames ----
def pixel_grid() -> tuple[np.ndarray, np.ndarray]:
    """Return horizontal and vertical coordinates of all pixels, `(1, 1, size)` and `(1, size, 1)`."""
    places = np.arange(FRAME_SIZE) + 0.5
    return places[None, None, :], places[None, :, None]


def paint(coverage: np.ndarray, colour: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Blend a colour over a backdrop, with a coverage from 0 to 1 of shape `(frames, size, size)`."""
    return backdrop * (1 - coverage[..., None]) + colour * coverage[..., None]


def tint(name: str, generator: Generator) -> np.ndarray:
    return np.array(HUES[name]) + generator.uniform(-12, 12, 3)


def backdrop(generator: Generator) -> np.ndarray:
    """Make a backdrop of a dark colour with constant grain."""
    return generator.uniform(5, 60, 3) + generator.normal(0, 4, (1, FRAME_SIZE, FRAME_SIZE, 1))


def outline(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Return the approximate distance of points from the outline of a shape in pixels, negative inside."""
    r, angle = np.hypot(dx, dy), np.arctan2(dx, -dy)
    if shape == "disc":
        return r - radius
    if shape == "ring":
        return np.abs(r - 0.75 * radius) - 0.25 * radius
    if shape == "cross":
        across, along = np.minimum(np.abs(dx), np.abs(dy)), np.maximum(np.abs(dx), np.abs(dy))
        return np.maximum(along - radius, across - 0.3 * radius)
    if shape == "crescent":
        return np.maximum(r - radius, 0.8 * radius - np.hypot(dx - 0.5 * radius, dy))
    if shape == "star":
        phase = np.abs((angle * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at the points
        return r - radius * (0.45 + 0.55 * phase**1.5)
    sides = {"triangle": 3, "square": 4, "hexagon": 6}[shape]
    within = (angle + np.pi / sides) % (2 * np.pi / sides) - np.pi / sides
    return r * np.cos(within) - radius * np.cos(np.pi / sides) * {3: 1.3, 4: 1.15, 6: 1.05}[sides]


def draw_polygon(values: Values, num_frames: int, generator: Generator) -> np.ndarray:
    radius = generator.uniform(8, 12)
    room = FRAME_SIZE - 2 * (radius + 2)
    progress = np.linspace(0, generator.uniform(0.7, 1.0), num_frames)
    centre, aside = room / 2, generator.uniform(-8, 8)
    if values["motion"] == "circling":
        turn = 2 * np.pi * (generator.uniform(0, 1) + generator.uniform(0.9, 1.4) * progress)
        x, y = centre + 0.4 * room * np.cos(turn), centre + 0.4 * room * np.sin(turn)
    else:
        along = room * (progress if values["motion"] in ("right", "down") else 1 - progress)
        other = np.full(num_frames, centre + aside)
        x, y = (along, other) if values["motion"] in ("left", "right") else (other, along)
    columns, rows = pixel_grid()
    dx, dy = columns - (x + radius + 2)[:, None, None], rows - (y + radius + 2)[:, None, None]
    distance = outline(values["shape"], dx, dy, radius)
    inside = np.clip(0.5 - distance, 0, 1)
    return paint(inside, tint(values["colour"], generator), backdrop(generator))


def draw_texture(values: Values, num_frames: int, generator: Generator) -> np.ndarray:
    period = generator.uniform(9, 14)
    speed = {"still": 0.0, "slow": 1.5, "fast": 6.0}[values["scrolling"]] * generator.uniform(0.85, 1.15)
    direction, start = generator.uniform(0, 2 * np.pi), generator.uniform(0, period, 2)
    moved = speed * np.arange(num_frames)[:, None, None] / FRAMES_PER_SECOND
    if values["pattern"] == "horizontal stripes":  # only motion across stripes is visible
        direction = np.pi / 2 * generator.choice([-1, 1])
    elif values["pattern"] == "vertical stripes":
        direction = np.pi * generator.choice([0, 1])
    columns, rows = pixel_grid()
    u = (columns + start[0] + moved * np.cos(direction)) * 2 * np.pi / period
    v = (rows + start[1] + moved * np.sin(direction)) * 2 * np.pi / period
    waves = {
        "horizontal stripes": np.sin(v + 0 * u),
        "vertical stripes": np.sin(u + 0 * v),
        "checks": np.sign(np.sin(u / 1.5) * np.sin(v / 1.5)),
        "dots": np.cos(u) + np.cos(v) - 0.7,
        "waves": np.sin(v + 1.5 * np.sin(u / 1.5)),
    }
    coverage = np.clip(waves[values["pattern"]] * 2 + 0.5, 0, 1)
    return paint(coverage, tint(values["colour"], generator), backdrop(generator))


def draw_discs(values: Values, num_frames: int, generator: Generator) -> np.ndarray:
    number = ("one", "two", "three", "four").index(values["number"]) + 1
    corners = generator.permutation([(17, 17), (47, 17), (17, 47), (47, 47)])[:number]
    progress = np.linspace(0, 1, num_frames)
    size = {
        "growing": 4 + 7 * progress,
        "shrinking": 11 - 7 * progress,
        "blinking": np.full(num_frames, generator.uniform(6, 10)),
        "still": np.full(num_frames, generator.uniform(6, 10)),
    }[values["change"]]
    if values["change"] == "blinking":
        seconds = np.arange(num_frames) / FRAMES_PER_SECOND
        size = size * ((seconds * generator.uniform(0.8, 1.2) + generator.uniform(0, 1)) % 1 < 0.5)
    columns, rows = pixel_grid()
    distance = np.full((num_frames, FRAME_SIZE, FRAME_SIZE), np.inf)
    for x, y in corners + generator.uniform(-4, 4, (number, 2)):
        distance = np.minimum(distance, np.hypot(columns - x, rows - y) - size[:, None, None])
    shown = np.clip(0.5 - distance, 0, 1) * (size > 0)[:, None, None]
    return paint(shown, tint(values["colour"], generator), backdrop(generator))


# ---- Audio ----
def notes(pitches: np.ndarray, times: np.ndarray, rate: float, length: float) -> np.ndarray:
    """Return pure tones of the given pitches in Hz, one after the other in a loop, each for a share of its time."""
    beats = times * rate
    within = (beats % 1) / rate
    frequency = pitches[beats.astype(int) % len(pitches)]
    envelope = np.clip(np.minimum(within / 0.01, (length / rate - within) / 0.02), 0, 1)
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLING_RATE) * envelope


def play_melody(values: Values, times: np.ndarray, generator: Generator) -> np.ndarray:
    steps = {"rising": [0, 2, 4, 7, 9], "falling": [9, 7, 4, 2, 0], "trilling": [0, 4], "repeating": [0]}
    pitches = generator.uniform(250, 600) * 2 ** (np.array(steps[values["melody"]]) / 12)
    return notes(pitches, times, generator.uniform(3, 6), 0.8)


def filtered_noise(times: np.ndarray, low: float, high: float, generator: Generator) -> np.ndarray:
    spectrum = np.fft.rfft(generator.normal(0, 1, len(times)))
    frequencies = np.fft.rfftfreq(len(times), 1 / SAMPLING_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return np.fft.irfft(spectrum, len(times))


def play_pulses(values: Values, times: np.ndarray, generator: Generator) -> np.ndarray:
    if values["source"] == "hum":
        phase = 2 * np.pi * generator.uniform(90, 180) * times
        waveform = sum(np.sin(n * phase) / n for n in range(1, 6))
    else:
        limits = (2000.0, 6000.0) if values["source"] == "hiss" else (40.0, 300.0)
        waveform = filtered_noise(times, *limits, generator)
    waveform = waveform / np.sqrt(np.mean(waveform**2))
    rate = {"even": 0.0, "slowly pulsing": 1.5, "quickly pulsing": 6.0}[values["pulse"]] * generator.uniform(0.9, 1.1)
    if rate > 0:
        waveform = waveform * np.clip(0.5 + 2 * np.sin(2 * np.pi * (rate * times + generator.uniform(0, 1))), 0, 1)
    progress = times / times[-1]
    decibels = {"swelling": 18 * (progress - 1), "fading": -18 * progress, "constant": -6 + 0 * progress}
    return waveform * 10 ** (decibels[values["loudness"]] / 20)


def play_drum(values: Values, times: np.ndarray, generator: Generator) -> np.ndarray:
    patterns = {
        "marching": (0, 0.25, 0.5, 0.75),
        "galloping": (0, 0.25, 0.375, 0.5, 0.75, 0.875),
        "waltzing": (0, 1 / 3, 2 / 3),
        "knocking": (0, 0.125),
    }
    bar, start = generator.uniform(0.9, 1.2), generator.uniform(0, 1)  # seconds
    place = (times / bar + start) % 1
    since = np.min([(place - beat) % 1 for beat in patterns[values["rhythm"]]], axis=0) * bar
    frequency = {"low": 160.0, "high": 900.0}[values["pitch"]] * generator.uniform(0.9, 1.1)
    phase = 2 * np.pi * frequency * since
    beat = np.sin(phase) if values["timbre"] == "clear" else np.sign(np.sin(phase)) * 0.6
    return beat * np.exp(-since / 0.05)


WORLDS: dict[str, World] = {
    "polygons": World(
        (3.0, 3.0),
        {
            "shape": {
                "disc": ("disc", "circle"),
                "ring": ("ring", "hoop"),
                "cross": ("cross", "plus sign"),
                "crescent": ("crescent", "sickle"),
                "star": ("star", "asterisk"),
                "triangle": ("triangle", "wedge"),
                "square": ("square", "box"),
                "hexagon": ("hexagon", "honeycomb cell"),
            },
            "colour": {name: (name,) for name in ("red", "green", "blue", "yellow", "violet")},
            "motion": {
                "left": ("moves left", "drifts leftwards"),
                "right": ("moves right", "drifts rightwards"),
                "up": ("moves up", "rises"),
                "down": ("moves down", "sinks"),
                "circling": ("goes in circles", "runs around"),
            },
            "melody": {
                "rising": ("rising", "climbing"),
                "falling": ("falling", "descending"),
                "trilling": ("trilling", "warbling"),
                "repeating": ("monotonous", "repeated"),
            },
        },
        (
            "a {colour} {shape} {motion} to {melody} notes",
            "{melody} notes while a {colour} {shape} {motion}",
            "we see a {shape} in {colour} that {motion}, and hear {melody} tones",
        ),
        draw_polygon,
        play_melody,
    ),
    "textures": World(
        (2.0, 8.0),
        {
            "pattern": {
                "horizontal stripes": ("horizontal stripes", "level lines"),
                "vertical stripes": ("vertical stripes", "upright lines"),
                "checks": ("checks", "a chessboard"),
                "dots": ("dots", "spots"),
                "waves": ("waves", "ripples"),
            },
            "colour": {name: (name,) for name in ("red", "green", "blue", "yellow", "white")},
            "scrolling": {
                "still": ("standing still", "at rest"),
                "slow": ("creeping along", "moving slowly"),
                "fast": ("rushing past", "moving quickly"),
            },
            "source": {"hiss": ("hiss", "rustle"), "rumble": ("rumble", "growl"), "hum": ("hum", "drone")},
            "pulse": {
                "even": ("even", "unbroken"),
                "slowly pulsing": ("slowly pulsing", "heaving"),
                "quickly pulsing": ("quickly pulsing", "fluttering"),
            },
            "loudness": {
                "swelling": ("grows louder", "swells"),
                "fading": ("fades away", "dies down"),
                "constant": ("stays as loud", "keeps its level"),
            },
        },
        (
            "{pattern} in {colour}, {scrolling}, and a {source}, {pulse}, that {loudness}",
            "a {source} {loudness}, {pulse}, over {colour} {pattern} {scrolling}",
            "we hear a {source}, {pulse}, that {loudness}, and see {pattern}, {colour}, {scrolling}",
        ),
        draw_texture,
        play_pulses,
    ),
    "counts": World(
        (6.0, 6.0),
        {
            "number": {
                "one": ("one", "just one"),
                "two": ("two", "a pair"),
                "three": ("three",),
                "four": ("four",),
            },
            "colour": {name: (name,) for name in ("red", "green", "blue", "white")},
            "change": {
                "growing": ("growing", "swelling"),
                "shrinking": ("shrinking", "dwindling"),
                "blinking": ("blinking", "flashing"),
                "still": ("unchanging", "constant"),
            },
            "rhythm": {
                "marching": ("marching", "steady"),
                "galloping": ("galloping", "cantering"),
                "waltzing": ("waltzing", "threefold"),
                "knocking": ("knocking", "double"),
            },
            "pitch": {"low": ("low", "deep"), "high": ("high", "shrill")},
            "timbre": {"clear": ("clear", "pure"), "harsh": ("harsh", "buzzing")},
        },
        (
            "{change} {colour} spots, {number} of them, and {rhythm} beats, {pitch} and {timbre}",
            "a {pitch}, {timbre} drum in {rhythm} time; {colour} spots, {number}, {change}",
            "{rhythm} drumming, {timbre} and {pitch}, with {colour} {change} spots: {number}",
        ),
        draw_discs,
        play_drum,
    ),
}


def make_world(
    folder: Path, name: str, *, num_train_clips: int = 1500, num_validation_clips: int = 256, seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """
    Write a world's clips, `train.jsonl` and `validation.jsonl`, unless the folder holds them already.

    Args:
        folder (`Path`): Output folder.
        name (`str`): A key of `WORLDS`, or `toy` for the toy world with its own manifests.
        num_train_clips, num_validation_clips (`int`, *optional*): Numbers of clips; the toy world's validation clips
            combine each of 16 videos with each of 16 audio tracks.
        seed (`int`, *optional*): Seed of all random choices.

    Returns:
        `dict[str, tuple[str, ...]]`: The values of each attribute.

    Raises:
        ValueError: If there is no such world, or too few combinations for `num_validation_clips`.
    """
    if name == "toy":
        make_toy_world(folder, num_train_clips=num_train_clips, seed=seed, num_processes=1)
        return _describe_toy_world(folder)
    if name not in WORLDS:
        raise ValueError(f"There is no world {name!r}; there are toy, {', '.join(WORLDS)}.")
    world = WORLDS[name]
    values = {attribute: tuple(words) for attribute, words in world.attributes.items()}
    finished = folder / "world.json"
    description = {"name": name, "clips": [num_train_clips, num_validation_clips], "seed": seed}
    if finished.is_file() and json.loads(finished.read_text(encoding="utf-8")) == description:
        return values
    every = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
    if num_validation_clips >= len(every):
        raise ValueError(f"{name} has {len(every)} combinations; leave some of them to training.")
    order = toy_generator(seed, name).permutation(len(every))
    held_out, others = order[:num_validation_clips], order[num_validation_clips:]
    splits = {"train": np.resize(others, num_train_clips), "validation": held_out}
    for split, numbers in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for place, number in enumerate(numbers):
            clip, chosen = f"{split}_{place:05d}", every[number]
            _write(folder / split / f"{clip}.mp4", world, chosen, toy_generator(seed, f"{name} {clip}"))
            captions = _captions(world, chosen, toy_generator(seed, f"{name} captions {clip}"))
            text = {"captions": captions} if split == "train" else {"caption": captions[0]}
            row = {"id": clip, "video": f"{split}/{clip}.mp4", **text, "group": "-".join(chosen.values()), **chosen}
            rows.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    finished.write_text(json.dumps(description), encoding="utf-8")
    return values


def _describe_toy_world(folder: Path) -> dict[str, tuple[str, ...]]:
    """Give the toy world's validation rows a column for each attribute."""
    names = ("size", "colour", "shape", "motion", "pitch", "rhythm", "timbre")
    truth = {}
    for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        clip = json.loads(line)
        truth[clip["id"]] = {name: clip[name] for name in names}
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | truth[row["id"]]) + "\n" for row in rows]
    (folder / "validation.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: tuple(sorted({values[name] for values in truth.values()})) for name in names}


def _write(path: Path, world: World, values: Values, generator: Generator) -> None:
    num_frames = round(generator.uniform(*world.seconds) * FRAMES_PER_SECOND)
    frames = world.draw(values, num_frames, generator)
    times = np.arange(num_frames * SAMPLING_RATE // FRAMES_PER_SECOND) / SAMPLING_RATE
    waveform = world.play(values, times, generator)
    waveform = waveform * 0.12 * generator.uniform(0.8, 1.2) / np.sqrt(np.mean(waveform**2))
    waveform = np.clip(waveform + generator.normal(0, 0.002, len(times)), -1, 1).astype(np.float32)
    write_clip(path, np.clip(np.rint(frames), 0, 255).astype(np.uint8), waveform)


def _captions(world: World, values: Values, generator: Generator) -> list[str]:
    templates = generator.permutation(np.array(world.captions, dtype=object))[:CAPTIONS_PER_CLIP]
    return [
        str(template).format(
            **{name: generator.choice(world.attributes[name][value]) for name, value in values.items()}
        )
        for template in templates
    ]


def attribute_scores(
    scores: np.ndarray, asked: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, float]:
    """
    Compute how often the best clip for a caption has the correct value of each attribute.

    Args:
        scores (`np.ndarray` of shape `(num_captions, num_clips)`): Scores; higher is better.
        asked, found (`Sequence[Mapping]`): Rows of the captions and of the clips, with a column for each attribute.
        names (`Sequence[str]`): Names of the attributes.

    Returns:
        `dict[str, float]`: A share for each attribute.
    """
    best = np.asarray(scores).argmax(axis=1)
    return {
        name: float(np.mean([asked[n][name] == found[clip][name] for n, clip in enumerate(best)])) for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=("toy", *WORLDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num_train_clips", type=int, default=1500)
    parser.add_argument("--num_validation_clips", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_world(
        options.folder,
        options.world,
        num_train_clips=options.num_train_clips,
        num_validation_clips=options.num_validation_clips,
        seed=options.seed,
    )
    print(f"{os.fspath(options.folder)}: the world {options.world}")


if __name__ == "__main__":
    main()
