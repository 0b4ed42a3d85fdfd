"""The annotations of Charades, read without the code under test."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUM_CLASSES = 157


class Annotations(NamedTuple):
    """A split: ids and scripts, actions as (class, start, end), lengths in seconds, labels (rows, 157), bool."""

    ids: list[str]
    scripts: list[str]
    actions: list[list[tuple[int, float, float]]]
    lengths: list[float]
    labels: np.ndarray


def read_split(shared_dir: Path, split: str) -> Annotations:
    path = shared_dir / f"data/annotations/charades/Charades_v1_{split}.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = [[part.split(" ") for part in row["actions"].split(";") if part] for row in rows]
    actions = [[(int(name[1:]), float(start), float(end)) for name, start, end in own] for own in parts]
    labels = np.zeros((len(rows), NUM_CLASSES), dtype=bool)
    for row, own in enumerate(actions):
        labels[row, [label for label, _, _ in own]] = True
    return Annotations(
        [row["id"] for row in rows],
        [row["script"] for row in rows],
        actions,
        [float(row["length"]) for row in rows],
        labels,
    )


def read_golden(shared_dir: Path) -> dict:
    return json.loads((shared_dir / "data/charades/charades_golden.json").read_text(encoding="utf-8"))
