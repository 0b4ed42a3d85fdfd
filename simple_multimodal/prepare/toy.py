"""The toy world: small H.264/AAC clips whose pictures, sounds, captions and answers are known exactly."""

import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from simple_multimodal.defaults import (
    TOY_PAIRS,
    TOY_QUESTION_CLIPS,
    TOY_TRAIN_CLIPS,
    TOY_VALIDATION_PICTURES,
    TOY_VALIDATION_SOUNDS,
)
from simple_multimodal.output_folder import LOCK_FILE
from simple_multimodal.prepare.toy_media import (
    BACKGROUNDS,
    FRAMES_PER_SECOND,
    PICTURE_ATTRIBUTES,
    SAMPLING_RATE,
    SOUND_ATTRIBUTES,
    Picture,
    Sound,
    render_picture,
    render_sound,
    toy_generator,
    write_clip,
)

TOY_VERSION = 2  # raise it whenever the same parameters would write other files
SECONDS_PER_SEGMENT = 0.6  # mean time that one background stays
BEEP_MARGIN = 0.25  # seconds from the middle of an asked beep to the nearest switch of the background

WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "red": ("red", "scarlet"),
    "green": ("green", "lime"),
    "blue": ("blue", "cobalt"),
    "yellow": ("yellow", "golden"),
    "magenta": ("magenta", "pink"),
    "cyan": ("cyan", "turquoise"),
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus sign"),
    "bar": ("bar", "beam"),
    "pillar": ("pillar", "column"),
    "left": ("moves left", "drifts leftwards", "goes to the left"),
    "right": ("moves right", "drifts rightwards", "goes to the right"),
    "up": ("moves up", "rises", "goes upwards"),
    "down": ("moves down", "sinks", "goes downwards"),
    "low": ("low", "deep"),
    "middle": ("middle", "medium"),
    "high": ("high", "shrill"),
    "slow": ("slow", "leisurely"),
    "steady": ("steady", "moderate"),
    "fast": ("fast", "rapid"),
    "pure": ("pure", "smooth"),
    "buzzing": ("buzzing", "rasping"),
    "noisy": ("noisy", "hissing"),
}
CAPTIONS = (
    "a {size} {colour} {shape} {motion} while {rhythm} {pitch} {timbre} notes play",
    "{rhythm} {timbre} notes, {pitch} in pitch, as a {size} {colour} {shape} {motion}",
    "a {colour} {shape}, {size}, {motion} to a {rhythm} melody of {pitch} {timbre} tones",
    "we hear {pitch} {timbre} tones at a {rhythm} pace and see a {size} {colour} {shape} that {motion}",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "size": ("how big is the moving object?", "what size is the shape?"),
    "colour": ("what colour is the shape?", "which colour has the moving object?"),
    "shape": ("what shape is moving?", "which shape is to be seen?"),
    "motion": ("which way does the shape move?", "in what direction does the object go?"),
    "pitch": ("how high are the notes?", "what is the pitch of the melody?"),
    "rhythm": ("how fast are the notes?", "what is the pace of the melody?"),
    "timbre": ("what do the notes sound like?", "which timbre have the tones?"),
    "background": ("what is the background when the beep sounds?", "which background goes with the beep?"),
}


@dataclass(frozen=True)
class Clip:
    """One file: its id, the set it belongs to ("train", "validation" or "questions"), its picture and its sound."""

    id: str
    split: str
    picture: Picture
    sound: Sound

    @property
    def path(self) -> str:
        """Path of the file relative to the toy folder."""
        return f"{self.split}/{self.id}.mp4"

    @property
    def attributes(self) -> dict[str, str]:
        """The values of all picture and sound attributes by name."""
        seen = dict(zip(PICTURE_ATTRIBUTES, self.picture.values, strict=True))
        return seen | dict(zip(SOUND_ATTRIBUTES, self.sound.values, strict=True))

    @property
    def combination(self) -> tuple[str, ...]:
        """The values of all attributes; clips with equal combinations have captions that mean the same."""
        return self.picture.values + self.sound.values

    @property
    def background_at_beep(self) -> str:
        """The background that is seen in the middle of the beep."""
        return self.picture.background_at(self.sound.beep_seconds)

    @property
    def answers(self) -> dict[str, tuple[str, str]]:
        """For each kind of question, the attribute that is asked for and the answer."""
        return {
            "picture": (self.picture.asked, self.attributes[self.picture.asked]),
            "sound": (self.sound.asked, self.attributes[self.sound.asked]),
            "joint": ("background", self.background_at_beep),
        }


def make_toy_world(
    output_dir: str | os.PathLike[str],
    *,
    num_train_clips: int = TOY_TRAIN_CLIPS,
    num_validation_pictures: int = TOY_VALIDATION_PICTURES,
    num_validation_sounds: int = TOY_VALIDATION_SOUNDS,
    num_question_clips: int = TOY_QUESTION_CLIPS,
    num_pairs: int = TOY_PAIRS,
    num_segments: int = 6,
    seconds: float | None = None,
    seed: int = 0,
    num_processes: int | None = None,
) -> Path:
    """
    Write a toy world of real `.mp4` files (H.264, 64 x 64, 10 frames per second; AAC, mono, 16 kHz) and its manifests.

    The picture: one object with a shape (4), colour (6), size (2) and motion (4) on a background that switches between
    black, grey and brown at random times. The sound: a melody with a pitch (3), rhythm (3) and timbre (3), and one
    beep at 6 kHz. Captions name every attribute of picture and sound, but neither background nor beep.

    Clips lie in `train/`, `validation/` and `questions/`. Manifests, JSON Lines with paths relative to `output_dir`:

    - `train.jsonl` (`id`, `video`, `captions`, `group`): training clips with 3 captions each; each combination of
      attributes occurs at most once while there are enough.
    - `validation.jsonl` (`id`, `video`, `caption`, `group`): every one of P pictures with every one of S sounds.
    - `sound_pairs.jsonl` (`a`, `b`, `a_swapped`, `b_swapped`, `num_different_attributes`): pairs of validation clips
      with the same picture and different sounds. `video_pairs.jsonl`: the same sound and different pictures.
    - `validation_sound_swapped.jsonl` (`id`, `video`, `audio`, `caption`, `group`): for each sound pair, `a_swapped`
      has the picture of `a` and the sound of `b`, and `b_swapped` the picture of `b` and the sound of `a`.
      `validation_video_swapped.jsonl`: for each video pair, `a_swapped` has the sound of `a` and the picture of `b`.
      `caption` and `group` name what is then truly seen and heard.
    - `train_questions.jsonl`, `validation_questions.jsonl` (`id`, `video`, `question`, `answer`, `answer_type`,
      `group`): a picture, a sound and a joint question for each clip of `train/` and of `questions/`.
    - `clips.jsonl` (`id`, `split`, `video`, one column per attribute, `backgrounds`, `switch_seconds`,
      `beep_seconds`): the truth about every file.

    No combination of attributes of `validation` or `validation_questions` occurs in training. Validation clips with
    the same picture (sound) hold the same encoded stream, so that whoever ignores the sound cannot do better than
    R@1 = 1/S, and whoever ignores the picture than 1/P.

    Measuring with embeddings of clips and captions, `s(x, y)` being the similarity of the caption of `x` to the clip
    `y`: `sound_pair_accuracy` (`video_pair_accuracy`) is the share of pairs with `s(a, a) > s(a, b)`; ties are wrong,
    chance is 0.5. With the two sounds (pictures) swapped the candidates are the rows `a_swapped` and `b_swapped` of
    the swapped manifest, and the choice flips where `s(a, a) > s(a, b)` and `s(a, b_swapped) > s(a, a_swapped)`, or
    both the other way round.

    The joint question asks for the background at the beep. Its answer is uniform given either modality alone. In
    `validation_questions` exactly so: clips come in families of 3 pictures x 3 sounds whose answers form a Latin
    square (pictures of a family switch at the same times, with the three backgrounds rotated), so every picture and
    every sound occurs with each answer once. In training the answers are balanced and drawn independently of the
    picture, and backgrounds are exchangeable, so that the beep's time tells nothing; a chi-square bound on features of
    each modality checks it. The middle of an asked beep is at least 0.25 seconds from a switch: with at least 8
    frames per 6 segments, uniformly sampled, the frame nearest the beep shows the answer.

    Files depend on the arguments alone, not on `num_processes`. A finished folder with the same arguments is left as
    it is, missing files are added, and an interrupted run is completed.

    Args:
        output_dir (`str` or `os.PathLike`): Folder to write; new, empty, or made earlier with the same arguments.
        num_train_clips (`int`, *optional*, defaults to 2000): Number of training clips.
        num_validation_pictures (`int`, *optional*, defaults to 16): P, 2 to 192.
        num_validation_sounds (`int`, *optional*, defaults to 16): S, 2 to 27.
        num_question_clips (`int`, *optional*, defaults to 243): Held-out clips for questions, a multiple of 9.
        num_pairs (`int`, *optional*, defaults to 512): Pairs of either kind, or all there are if fewer. Pairs that
            differ in a single attribute come first and make up at most half, as far as the other pairs suffice.
        num_segments (`int`, *optional*, defaults to 6): Background segments per clip, a multiple of 3 from 6 up.
        seconds (`float`, *optional*, defaults to 0.6 * `num_segments`): Length of a clip, a multiple of 0.3 seconds,
            at least 0.6 seconds per segment.
        seed (`int`, *optional*, defaults to 0): Decides everything that is random.
        num_processes (`int`, *optional*): Number of writing processes, by default one per available core.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: if an argument is out of range, or the folder holds something else.
    """
    output_dir = Path(output_dir)
    seconds = SECONDS_PER_SEGMENT * num_segments if seconds is None else seconds
    if num_processes is None:
        num_processes = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    num_frames = round(seconds * FRAMES_PER_SECOND)
    _check_at_least(1, num_train_clips=num_train_clips, num_pairs=num_pairs, num_processes=num_processes)
    _check_at_least(0, seed=seed)
    _check_range("num_validation_pictures", num_validation_pictures, 2, _num_combinations(PICTURE_ATTRIBUTES))
    _check_range("num_validation_sounds", num_validation_sounds, 2, _num_combinations(SOUND_ATTRIBUTES))
    if num_question_clips < 9 or num_question_clips % 9:
        raise ValueError(f"num_question_clips must be a multiple of 9 from 9 up, got {num_question_clips}.")
    if num_segments < 6 or num_segments % 3:
        raise ValueError(f"num_segments must be a multiple of 3 from 6 up, got {num_segments}.")
    if num_frames % 3 or abs(num_frames - seconds * FRAMES_PER_SECOND) > 1e-6 or num_frames < 6 * num_segments:
        raise ValueError(
            f"seconds must be a multiple of 0.3 and at least {SECONDS_PER_SEGMENT * num_segments:g} for "
            f"{num_segments} segments, got {seconds}."
        )
    parameters = {
        "num_train_clips": num_train_clips,
        "num_validation_pictures": num_validation_pictures,
        "num_validation_sounds": num_validation_sounds,
        "num_question_clips": num_question_clips,
        "num_pairs": num_pairs,
        "num_segments": num_segments,
        "seconds": num_frames / FRAMES_PER_SECOND,
        "seed": seed,
    }
    description = json.dumps({"version": TOY_VERSION, "parameters": parameters}, indent=2) + "\n"
    finished, unfinished = output_dir / "toy.json", output_dir / "toy.unfinished.json"
    is_finished = _check_folder(output_dir, description, finished, unfinished)

    validation = _validation_clips(num_validation_pictures, num_validation_sounds, num_segments, num_frames, seed)
    questions = _question_clips(num_question_clips, num_segments, num_frames, seed)
    held_out = {clip.combination for clip in validation + questions}
    train = _train_clips(num_train_clips, held_out, num_segments, num_frames, seed)
    clips = train + validation + questions
    missing = [clip for clip in clips if not (output_dir / clip.path).is_file()]
    if is_finished and not missing:
        return output_dir

    check_held_out(train, validation + questions)
    check_answers(train, num_frames=num_frames, is_exact=False)
    check_answers(questions, num_frames=num_frames, is_exact=True)
    if not is_finished:
        output_dir.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(description, encoding="utf-8")
    for split in ("train", "validation", "questions"):
        (output_dir / split).mkdir(exist_ok=True)
    _write_clips(output_dir, missing, num_frames, seed, num_processes)
    if not is_finished:
        _write_manifests(output_dir, train, validation, questions, num_pairs, seed)
        os.replace(unfinished, finished)
    return output_dir


def check_held_out(train: Sequence[Clip], held_out: Sequence[Clip]) -> None:
    """Raise `ValueError` if a held-out combination of attributes occurs in training."""
    shared = {clip.combination for clip in train} & {clip.combination for clip in held_out}
    if shared:
        raise ValueError(f"{len(shared)} held-out combinations occur in training, among them {min(shared)}.")


def check_answers(clips: Sequence[Clip], *, num_frames: int, is_exact: bool) -> None:
    """
    Check that the answer to no question can be told from the wrong modality, or from the question alone.

    Always: each joint answer is equally frequent, up to one clip; the chi-square statistic of each answer against
    uniformity, and against features of the modality that was not asked (for joint questions of each modality), stays
    under its bound at a false alarm rate of 1e-7 per table. Features are the attributes; for the picture also the
    backgrounds at six times of the clip and the background of the longest segment; for the sound the beep's time in
    twelve bins. Tables with an expected count under 5 carry no such test and are left out.

    Args:
        clips (`Sequence[Clip]`): Clips with joint questions.
        num_frames (`int`): Number of frames of every clip.
        is_exact (`bool`): Also require that each picture and each sound occurs with each joint answer equally often.

    Raises:
        ValueError: if an answer is not uniform.
    """
    counts = Counter(clip.background_at_beep for clip in clips)
    if max(counts.values()) - min(counts[name] for name in BACKGROUNDS) > 1:
        raise ValueError(f"The answers to the joint questions are not balanced: {dict(counts)}.")
    if is_exact:
        for modality in ("picture", "sound"):
            tables: dict[str, Counter[str]] = {}
            for clip in clips:
                name = clip.picture.name if modality == "picture" else clip.sound.name
                tables.setdefault(name, Counter())[clip.background_at_beep] += 1
            for name, table in tables.items():
                if len({table[background] for background in BACKGROUNDS}) > 1:
                    raise ValueError(f"The {modality} {name!r} tells the answer to joint questions: {dict(table)}.")

    seconds = num_frames / FRAMES_PER_SECOND
    answers: dict[tuple[str, str], list[tuple[Clip, str]]] = {}
    for clip in clips:
        for kind, (attribute, answer) in clip.answers.items():
            answers.setdefault((kind, attribute), []).append((clip, answer))
    for (kind, attribute), rows in answers.items():
        columns: dict[str, list[str]] = {}
        if kind in ("sound", "joint"):
            columns |= {name: [clip.attributes[name] for clip, _ in rows] for name in PICTURE_ATTRIBUTES}
            for part in range(6):
                shown = [clip.picture.background_at((part + 0.5) / 6 * seconds) for clip, _ in rows]
                columns[f"background of part {part + 1} of 6"] = shown
            columns["background of the longest segment"] = [
                clip.picture.backgrounds[int(np.diff([*clip.picture.switches, num_frames]).argmax())]
                for clip, _ in rows
            ]
        if kind in ("picture", "joint"):
            columns |= {name: [clip.attributes[name] for clip, _ in rows] for name in SOUND_ATTRIBUTES}
            columns["time of the beep"] = [str(int(12 * clip.sound.beep_seconds / seconds)) for clip, _ in rows]
        given = [answer for _, answer in rows]
        _check_uniform(given, _values_of(attribute), f"{kind} question about {attribute}")
        for name, column in columns.items():
            _check_independent(given, column, f"{kind} question about {attribute}", name)


def _num_combinations(attributes: dict[str, tuple[str, ...]]) -> int:
    return math.prod(len(values) for values in attributes.values())


def _combination(number: int, attributes: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The combination of attribute values with a number, in mixed radix."""
    chosen = {}
    for name, values in attributes.items():
        number, digit = divmod(number, len(values))
        chosen[name] = values[digit]
    return chosen


def _draw_timeline(num_segments: int, num_frames: int, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """
    Draw a timeline of backgrounds: the number 0, 1 or 2 of each segment's background, and each segment's first frame.

    Neighbours differ; each background has the same number of segments and of frames; the three are exchangeable.
    """
    per_background = num_segments // 3
    order: list[int] = []
    while len(order) < num_segments:
        left = np.array([per_background - order.count(number) for number in range(3)], dtype=float)
        if order:
            left[order[-1]] = 0
        if left.sum() == 0:
            order = []  # a dead end: only the last background is left
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


def _draw_beep(
    order: list[int], switches: list[int], background: int, num_frames: int, generator: np.random.Generator
) -> float:
    """Draw the middle of a beep, in seconds on a grid of 10 ms, inside a segment that has the given background."""
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
) -> list[Clip]:
    """Draw training clips from the combinations that are not held out; joint answers balanced and independent."""
    generator = toy_generator(seed, "train")
    backgrounds = list(BACKGROUNDS)
    everything = PICTURE_ATTRIBUTES | SOUND_ATTRIBUTES
    combinations = [_combination(number, everything) for number in range(_num_combinations(everything))]
    allowed = [chosen for chosen in combinations if tuple(chosen.values()) not in held_out]
    if not allowed:
        raise ValueError(
            f"All {len(combinations)} combinations of attributes are held out; ask for fewer validation pictures, "
            "validation sounds or question clips."
        )
    order = np.concatenate([generator.permutation(len(allowed)) for _ in range(-(-count // len(allowed)))])
    answers = generator.permutation(np.arange(count) % 3)
    clips = []
    for n in range(count):
        chosen = allowed[order[n]]
        timeline, switches = _draw_timeline(num_segments, num_frames, generator)
        beep_seconds = _draw_beep(timeline, switches, int(answers[n]), num_frames, generator)
        name = f"train_{n:06d}"
        shown = tuple(backgrounds[number] for number in timeline)
        picture_asked, sound_asked = (str(generator.choice(list(a))) for a in (PICTURE_ATTRIBUTES, SOUND_ATTRIBUTES))
        seen = tuple(chosen[key] for key in PICTURE_ATTRIBUTES)
        heard = tuple(chosen[key] for key in SOUND_ATTRIBUTES)
        picture = Picture(name, seen, picture_asked, shown, tuple(switches))
        sound = Sound(name, heard, sound_asked, beep_seconds)
        clips.append(Clip(name, "train", picture, sound))
    return clips


def _validation_clips(num_pictures: int, num_sounds: int, num_segments: int, num_frames: int, seed: int) -> list[Clip]:
    """Every picture with every sound; beeps at any time, since no question is asked about these clips."""
    generator = toy_generator(seed, "validation")
    backgrounds = list(BACKGROUNDS)
    pictures, sounds = [], []
    for n, values in enumerate(_neighbours(PICTURE_ATTRIBUTES, num_pictures, generator)):
        timeline, switches = _draw_timeline(num_segments, num_frames, generator)
        shown = tuple(backgrounds[number] for number in timeline)
        pictures.append(Picture(f"validation_p{n:03d}", values, "", shown, tuple(switches)))
    for n, values in enumerate(_neighbours(SOUND_ATTRIBUTES, num_sounds, generator)):
        latest = num_frames / FRAMES_PER_SECOND - BEEP_MARGIN
        beep_seconds = round(float(generator.uniform(BEEP_MARGIN, latest)), 2)
        sounds.append(Sound(f"validation_s{n:03d}", values, "", beep_seconds))
    return [
        Clip(f"validation_p{p:03d}_s{s:03d}", "validation", picture, sound)
        for p, picture in enumerate(pictures)
        for s, sound in enumerate(sounds)
    ]


def _neighbours(
    attributes: dict[str, tuple[str, ...]], count: int, generator: np.random.Generator
) -> list[tuple[str, ...]]:
    """Draw different combinations, each one attribute away from an earlier one, with the values spread evenly."""
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


def _question_clips(count: int, num_segments: int, num_frames: int, seed: int) -> list[Clip]:
    """Families of 3 pictures x 3 sounds whose joint answers form a Latin square, all attribute values balanced."""
    generator = toy_generator(seed, "questions")
    backgrounds = list(BACKGROUNDS)
    num_families = count // 9
    seen = _balanced(PICTURE_ATTRIBUTES, 3 * num_families, generator)
    heard = _balanced(SOUND_ATTRIBUTES, 3 * num_families, generator)
    clips = []
    for family in range(num_families):
        timeline, switches = _draw_timeline(num_segments, num_frames, generator)
        pictures, sounds = [], []
        for n in range(3):
            shown = tuple(backgrounds[(number + n) % 3] for number in timeline)
            name = f"questions_{family:03d}_p{n}"
            pictures.append(Picture(name, *seen[3 * family + n], shown, tuple(switches)))
            beep_seconds = _draw_beep(timeline, switches, n, num_frames, generator)
            sounds.append(Sound(f"questions_{family:03d}_s{n}", *heard[3 * family + n], beep_seconds))
        clips += [
            Clip(f"questions_{family:03d}_p{p}_s{s}", "questions", picture, sound)
            for p, picture in enumerate(pictures)
            for s, sound in enumerate(sounds)
        ]
    return clips


def _balanced(
    attributes: dict[str, tuple[str, ...]], count: int, generator: np.random.Generator
) -> list[tuple[tuple[str, ...], str]]:
    """
    Draw combinations, each with the attribute to ask for.

    Each attribute is asked for equally often, and among the combinations of which the same is asked each value of each
    attribute occurs equally often, up to one.
    """
    drawn: list[tuple[tuple[str, ...], str]] = []
    for n, asked in enumerate(attributes):
        share = len(range(n, count, len(attributes)))
        columns = []
        for values in attributes.values():
            first = int(generator.integers(len(values)))  # else the remainder always favours the first values
            numbers = generator.permutation((first + np.arange(share)) % len(values))
            columns.append([values[number] for number in numbers])
        drawn += [(combination, asked) for combination in zip(*columns, strict=True)]
    return [drawn[number] for number in generator.permutation(count)]


def _values_of(attribute: str) -> tuple[str, ...]:
    return tuple(BACKGROUNDS) if attribute == "background" else (PICTURE_ATTRIBUTES | SOUND_ATTRIBUTES)[attribute]


def _chi_square_bound(degrees: int) -> float:
    """What a chi-square variable exceeds once in ten million draws (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 5.2 * math.sqrt(2 / (9 * degrees))) ** 3


def _check_uniform(answers: Sequence[str], values: Sequence[str], question: str) -> None:
    expected = len(answers) / len(values)
    counts = Counter(answers)
    statistic = sum((counts[value] - expected) ** 2 / expected for value in values)
    if expected >= 5 and statistic > _chi_square_bound(len(values) - 1):
        raise ValueError(f"The answers to the {question} are not uniform: {dict(counts)}.")


def _check_independent(answers: Sequence[str], column: Sequence[str], question: str, feature: str) -> None:
    rows, columns = Counter(answers), Counter(column)
    table = Counter(zip(answers, column, strict=True))
    if len(columns) < 2 or min(rows.values()) * min(columns.values()) < 5 * len(answers):
        return
    expected = {(a, c): rows[a] * columns[c] / len(answers) for a in rows for c in columns}
    statistic = sum((table[cell] - value) ** 2 / value for cell, value in expected.items())
    bound = _chi_square_bound((len(rows) - 1) * (len(columns) - 1))
    if statistic > bound:
        raise ValueError(
            f"The {feature} tells the answer to the {question}: chi-square {statistic:.1f}, allowed {bound:.1f}."
        )


def _write_clips(output_dir: Path, clips: list[Clip], num_frames: int, seed: int, num_processes: int) -> None:
    tasks = [(output_dir / clip.path, clip.picture, clip.sound, num_frames, seed) for clip in clips]
    num_processes = min(num_processes, len(tasks))
    with tqdm(total=len(tasks), desc="toy clips", unit="clip") as progress:
        if num_processes <= 1:
            for task in tasks:
                progress.update(_render_and_write(task))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            for written in pool.map(_render_and_write, tasks, chunksize=8):
                progress.update(written)


def _render_and_write(task: tuple[Path, Picture, Sound, int, int]) -> int:
    path, picture, sound, num_frames, seed = task
    num_samples = num_frames * SAMPLING_RATE // FRAMES_PER_SECOND
    frames = render_picture(picture, num_frames=num_frames, seed=seed)
    write_clip(path, frames, render_sound(sound, num_samples=num_samples, seed=seed))
    return 1


def _write_manifests(
    output_dir: Path, train: list[Clip], validation: list[Clip], questions: list[Clip], num_pairs: int, seed: int
) -> None:
    _write_rows(output_dir / "train.jsonl", [_row(clip, _captions(clip, 3, seed)) for clip in train])
    captions = {clip.id: _captions(clip, 1, seed) for clip in validation}
    _write_rows(output_dir / "validation.jsonl", [_row(clip, captions[clip.id]) for clip in validation])
    for modality in ("sound", "video"):
        pairs = _pairs(validation, modality, num_pairs, seed)
        _write_rows(
            output_dir / f"{modality}_pairs.jsonl",
            [
                {
                    "a": a.id,
                    "b": b.id,
                    "a_swapped": _swapped(a, b, modality)["id"],
                    "b_swapped": _swapped(b, a, modality)["id"],
                    "num_different_attributes": _num_different(a, b),
                }
                for a, b in pairs
            ],
        )
        both_ways = [clips for a, b in pairs for clips in ((a, b), (b, a))]
        _write_rows(
            output_dir / f"validation_{modality}_swapped.jsonl",
            # the caption of b is true of a with the sound (picture) of b, since the rest is the same in both
            [_swapped(a, b, modality) | {"caption": captions[b.id][0]} for a, b in both_ways],
        )
    _write_rows(output_dir / "train_questions.jsonl", _question_rows(train, seed))
    _write_rows(output_dir / "validation_questions.jsonl", _question_rows(questions, seed))
    _write_rows(output_dir / "clips.jsonl", [_truth(clip) for clip in train + validation + questions])


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _captions(clip: Clip, count: int, seed: int) -> list[str]:
    generator = toy_generator(seed, f"captions {clip.id}")
    captions = []
    for template in generator.permutation(CAPTIONS)[:count]:
        words = {name: str(generator.choice(WORDS[value])) for name, value in clip.attributes.items()}
        captions.append(str(template).format(**words))
    return captions


def _row(clip: Clip, captions: list[str]) -> dict[str, object]:
    text = {"captions": captions} if clip.split == "train" else {"caption": captions[0]}
    return {"id": clip.id, "video": clip.path, **text, "group": "-".join(clip.combination)}


def _num_different(a: Clip, b: Clip) -> int:
    return sum(first != second for first, second in zip(a.combination, b.combination, strict=True))


def _pairs(clips: list[Clip], modality: str, count: int, seed: int) -> list[tuple[Clip, Clip]]:
    """Pairs of clips that differ in the sound alone, or in the picture alone."""
    generator = toy_generator(seed, f"{modality} pairs")
    near: list[tuple[Clip, Clip]] = []
    far: list[tuple[Clip, Clip]] = []
    for n in generator.permutation(len(clips) ** 2):
        first, second = divmod(int(n), len(clips))
        if first < second:
            a, b = clips[first], clips[second]
            if a.picture == b.picture if modality == "sound" else a.sound == b.sound:
                pair = (a, b) if generator.random() < 0.5 else (b, a)
                (near if _num_different(a, b) == 1 else far).append(pair)
    num_near = max(count // 2, count - len(far))
    return [*near[:num_near], *far[: count - min(num_near, len(near))]]


def _swapped(clip: Clip, other: Clip, modality: str) -> dict[str, object]:
    """The manifest row of a clip with the sound (or the picture) of another."""
    seen, heard = (clip, other) if modality == "sound" else (other, clip)
    combination = Clip("", "", seen.picture, heard.sound).combination
    return {
        "id": f"{clip.id}+{modality}+{other.id}",
        "video": seen.path,
        "audio": heard.path,
        "group": "-".join(combination),
    }


def _question_rows(clips: list[Clip], seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for clip in clips:
        for kind, (attribute, answer) in clip.answers.items():
            question = str(toy_generator(seed, f"{kind} question {clip.id}").choice(QUESTIONS[attribute]))
            rows.append(
                {
                    "id": f"{clip.id}_{kind}",
                    "video": clip.path,
                    "question": question,
                    "answer": answer,
                    "answer_type": kind,
                    "group": clip.id,
                }
            )
    return rows


def _truth(clip: Clip) -> dict[str, object]:
    return {
        "id": clip.id,
        "split": clip.split,
        "video": clip.path,
        **clip.attributes,
        "backgrounds": list(clip.picture.backgrounds),
        "switch_seconds": [frame / FRAMES_PER_SECOND for frame in clip.picture.switches],
        "beep_seconds": clip.sound.beep_seconds,
    }


def _check_at_least(smallest: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}.")


def _check_range(name: str, value: int, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        raise ValueError(f"{name} must be from {smallest} to {largest}, got {value}.")


def _check_folder(output_dir: Path, description: str, finished: Path, unfinished: Path) -> bool:
    """Whether the folder holds this world already; raises if it holds anything else."""
    for marker in (finished, unfinished):
        if marker.is_file():
            if marker.read_text(encoding="utf-8") != description:
                raise ValueError(
                    f"{output_dir} holds a toy world made with other arguments or by another version "
                    f"(see {marker.name}). Give the same arguments or another folder, or delete it."
                )
            return marker == finished
    if output_dir.exists() and (not output_dir.is_dir() or any(p.name != LOCK_FILE for p in output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not a toy world. Give a new or an empty folder.")
    return False
