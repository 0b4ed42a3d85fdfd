"""Checks of the toy world's clips: held-out combinations, and answers that cannot be guessed from other features."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from simple_multimodal.prepare.toy.clips import ToyClip
from simple_multimodal.prepare.toy.media import (
    AUDIO_ATTRIBUTES,
    BACKGROUNDS,
    FRAMES_PER_SECOND,
    VIDEO_ATTRIBUTES,
)


def check_held_out(train: Sequence[ToyClip], held_out: Sequence[ToyClip]) -> None:
    """Raise `ValueError` if a held-out combination of attributes occurs in training."""
    shared = {clip.combination for clip in train} & {clip.combination for clip in held_out}
    if shared:
        raise ValueError(f"{len(shared)} held-out combinations occur in training, among them {min(shared)}.")


def check_answers(clips: Sequence[ToyClip], *, num_frames: int, is_exact: bool) -> None:
    """
    Check that no question can be answered from the wrong modality, or from the question alone.

    In all cases: joint answers are equally frequent, to within one clip; the chi-square statistic of each answer
    against uniformity, and against features of the modality that was not asked about (for joint questions, of each
    modality), stays below its bound at a false alarm rate of 1e-7 per table. Features are the attributes; for the
    video also the backgrounds at six times of the clip and the background of the longest segment; for the audio the
    beep's time in twelve bins. Tables with an expected count under 5 are skipped.

    Args:
        clips (`Sequence[ToyClip]`): Clips with joint questions.
        num_frames (`int`): Number of frames of every clip.
        is_exact (`bool`): Whether to also require that each video and each audio track occurs equally often with each
            joint answer.

    Raises:
        ValueError: If an answer is not uniform.
    """
    counts = Counter(clip.background_at_beep for clip in clips)
    if max(counts.values()) - min(counts[name] for name in BACKGROUNDS) > 1:
        raise ValueError(f"The answers to the joint questions are not balanced: {dict(counts)}.")
    if is_exact:
        for modality in ("video", "audio"):
            tables: dict[str, Counter[str]] = {}
            for clip in clips:
                name = clip.video.name if modality == "video" else clip.audio.name
                tables.setdefault(name, Counter())[clip.background_at_beep] += 1
            for name, table in tables.items():
                if len({table[background] for background in BACKGROUNDS}) > 1:
                    raise ValueError(f"The {modality} {name!r} reveals the answer to joint questions: {dict(table)}.")

    seconds = num_frames / FRAMES_PER_SECOND
    answers: dict[tuple[str, str], list[tuple[ToyClip, str]]] = {}
    for clip in clips:
        for kind, (attribute, answer) in clip.answers.items():
            answers.setdefault((kind, attribute), []).append((clip, answer))
    for (kind, attribute), rows in answers.items():
        columns: dict[str, list[str]] = {}
        if kind in ("audio", "joint"):
            columns |= {name: [clip.attributes[name] for clip, _ in rows] for name in VIDEO_ATTRIBUTES}
            for part in range(6):
                shown = [clip.video.background_at((part + 0.5) / 6 * seconds) for clip, _ in rows]
                columns[f"background of part {part + 1} of 6"] = shown
            columns["background of the longest segment"] = [
                clip.video.backgrounds[int(np.diff([*clip.video.switches, num_frames]).argmax())] for clip, _ in rows
            ]
        if kind in ("video", "joint"):
            columns |= {name: [clip.attributes[name] for clip, _ in rows] for name in AUDIO_ATTRIBUTES}
            columns["time of the beep"] = [str(int(12 * clip.audio.beep_seconds / seconds)) for clip, _ in rows]
        given = [answer for _, answer in rows]
        _check_uniform(given, _values_of(attribute), f"{kind} question about {attribute}")
        for name, column in columns.items():
            _check_independent(given, column, f"{kind} question about {attribute}", name)


def _values_of(attribute: str) -> tuple[str, ...]:
    return tuple(BACKGROUNDS) if attribute == "background" else (VIDEO_ATTRIBUTES | AUDIO_ATTRIBUTES)[attribute]


def _chi_square_bound(degrees: int) -> float:
    """Return the value that a chi-square variable exceeds once in ten million samples (Wilson and Hilferty)."""
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
            f"The {feature} reveals the answer to the {question}: chi-square {statistic:.1f}, allowed {bound:.1f}."
        )
