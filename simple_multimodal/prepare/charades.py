"""Read the published annotation files of Charades: any number of actions in a clip, with their times."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from simple_multimodal.errors import InputError
from simple_multimodal.prepare.annotations import AnnotationFiles, Entry, Rows, value_of
from simple_multimodal.prepare.labels import check_labels, count_labels

CLASSES_FILE = "Charades_v1_classes.txt"

Action = tuple[str, float, float]  # class, start and end in seconds


def read_charades(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """
    Read a row per clip with all its `labels`, and its `actions` with their times.

    Intervals are cut to the length of the clip. One that begins after the end of its clip, or ends before it begins,
    is left out of `actions`; its label stays, as in the authors' evaluation. Notes count all of these. There is no
    list of validation clips.

    Args:
        files ([`AnnotationFiles`]): The files.
        protocol (`str`): `charades+script` adds each clip's script as its `caption`.
        splits (`Sequence[str]`): Splits to read, of train and test.

    Raises:
        ValueError: A file is missing, **or** contains an invalid entry.
    """
    classes = _read_classes(files)
    files.labels = list(classes.values())
    rows: Rows = {}
    for split in (split for split in splits if split != "validation"):
        path = files.find(f"Charades_v1_{split}.csv")
        entries = files.once(((_clip(entry), entry) for entry in files.entries(path)), path)
        counts: Counter[str] = Counter()
        rows[split] = [_row(entry, classes, counts, has_script=protocol == "charades+script") for entry in entries]
        subjects = {value_of(entry, "subject") for entry in entries}
        files.notes += _notes(split, rows[split], len(subjects), counts, classes)
    return rows


def _read_classes(files: AnnotationFiles) -> dict[str, str]:
    """Return the names of the classes by their ids, in the order of the ids."""
    path = files.find(CLASSES_FILE)
    classes: dict[str, str] = {}
    for number, line in files.lines(path):
        key, _, name = line.partition(" ")
        if not name.strip():
            raise InputError(
                f"{path}, line {number}: must be a class and its name, such as 'c000 Holding', got {line!r}."
            )
        if key in classes:
            raise InputError(f"{path}, line {number}: the class {key!r} occurred before.")
        classes[key] = name.strip()
    check_labels(list(classes.values()), str(path))
    return dict(sorted(classes.items()))


def _clip(entry: Entry) -> str:
    clip = value_of(entry, "id")
    if not clip:
        raise InputError(f"{entry[0]}: 'id' is empty.")
    return clip


def _row(entry: Entry, classes: dict[str, str], counts: Counter[str], *, has_script: bool) -> dict[str, Any]:
    """Return the row of a clip, and count its intervals and what is odd about them."""
    where, _ = entry
    length = _seconds(value_of(entry, "length"), f"{where}: 'length'")
    if length <= 0:
        raise InputError(f"{where}: 'length' must be more than 0 seconds, got {length:g}.")
    actions = [_action(part, classes, where) for part in value_of(entry, "actions").split(";") if part.strip()]
    kept = []
    for name, start, end in actions:
        is_inside = start <= length and end >= max(start, 0)
        counts["intervals"] += 1
        counts["beyond"] += start < 0 or end > length
        counts["late"] += start > length
        counts["reversed"] += end < start
        counts["left out"] += not is_inside
        if is_inside:
            kept.append({"label": name, "start_seconds": max(start, 0.0), "end_seconds": min(end, length)})
    present = {name for name, _, _ in actions}
    row = {
        "id": value_of(entry, "id"),
        "clip": value_of(entry, "id"),
        "labels": [name for name in classes.values() if name in present],
        "actions": kept,
        "length_seconds": length,
    }
    if has_script and (script := value_of(entry, "script")):
        row["caption"] = script
    return row


def _action(part: str, classes: dict[str, str], where: str) -> Action:
    words = part.split()
    if len(words) != 3:
        raise InputError(
            f"{where}: an action must be a class, a start and an end, such as 'c092 1.90 2.20', got {part.strip()!r}."
        )
    if words[0] not in classes:
        raise InputError(f"{where}: the class {words[0]!r} is not in {CLASSES_FILE}.")
    start, end = (_seconds(word, f"{where}: a time of the action {part.strip()!r}") for word in words[1:])
    return classes[words[0]], start, end


def _seconds(text: str, what: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{what} must be a number of seconds, got {text!r}.")
    return seconds


def _notes(
    split: str, rows: list[dict[str, Any]], num_subjects: int, counts: Counter[str], classes: dict[str, str]
) -> list[str]:
    """Return the counts of a split, and those of its odd actions."""
    lengths = [row["length_seconds"] for row in rows]
    shown = {name: f"{key} {name}" for key, name in classes.items()}
    notes = [
        f"{split}, as annotated: {len(rows)} rows, {num_subjects} subjects, {counts['intervals']} intervals, "
        f"{sum(len(row['labels']) for row in rows)} positives (row and label), "
        f"{sum(not row['labels'] for row in rows)} rows without actions; {count_labels(rows, shown)}"
        + (f"; length in seconds: median {median(lengths):.2f}, longest {max(lengths):.2f}" if lengths else "")
    ]
    if counts["beyond"]:
        notes.append(f"{split}: {counts['beyond']} intervals reach beyond their clip, and are cut to it")
    if counts["left out"]:
        notes.append(
            f"{split}: {counts['left out']} intervals are left out of `actions`, but not of `labels`: "
            f"{counts['late']} begin after the end of their clip, {counts['reversed']} end before they begin"
        )
    return notes
