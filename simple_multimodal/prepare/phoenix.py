"""Read the tables of RWTH-PHOENIX-Weather 2014 T: sentences of German Sign Language with glosses and translation."""

from collections.abc import Sequence
from typing import Any

from simple_multimodal.data.tables import decoded_lines
from simple_multimodal.errors import InputError
from simple_multimodal.prepare.annotations import SOURCES, AnnotationFiles, Rows

COLUMNS = ("name", "video", "start", "end", "speaker", "orth", "translation")
"""Columns of the tables, which not all copies name in a first line."""

FRAME_RATE = 25.0
"""Frames per second of the broadcasts."""

_NAMES = {"train": "train", "validation": "dev", "test": "test"}


def read_phoenix2014t(files: AnnotationFiles, protocol: str, splits: Sequence[str]) -> Rows:
    """
    Read a row for each line: the translation is its `caption`, and `signer` and `gloss` are kept. Notes count the
    signers, and the sentences that also stand in the training split.

    Args:
        files ([`AnnotationFiles`]): Folder with `PHOENIX-2014-T.{train,dev,test}.corpus.csv`; a table directly in it
            is preferred to one in a sub-folder.
        protocol (`str`): Not used.
        splits (`Sequence[str]`): Splits to read.

    Raises:
        ValueError: A table is missing, has no rows, is not UTF-8, **or** contains an invalid line.
    """
    files.frame_rate = FRAME_RATE
    rows = {split: _read_table(files, split) for split in splits}
    for split, own in rows.items():
        signers = {row["signer"] for row in own}
        files.notes.append(f"{split}, as listed: {len(own)} sentences of {len(signers)} signers")
    files.notes += repeated_sentences(rows)
    return rows


def _read_table(files: AnnotationFiles, split: str) -> list[dict[str, Any]]:
    name = f"PHOENIX-2014-T.{_NAMES[split]}.corpus.csv"
    direct = files.folder / name
    path = files.use(direct) if direct.is_file() else files.find(name)
    rows = []
    for number, line in decoded_lines(path):
        cells = [cell.strip() for cell in line.split("|")]
        where = f"{path}, line {number}"
        if not line.strip() or (number == 1 and tuple(cells) == COLUMNS):
            continue
        if len(cells) != len(COLUMNS):
            raise InputError(f"{where}: {len(cells)} cells, but there must be {len(COLUMNS)}: {'|'.join(COLUMNS)}.")
        entry = dict(zip(COLUMNS, cells, strict=True))
        if not entry["name"] or "/" in entry["name"]:
            raise InputError(f"{where}: the name must be that of a clip, got {entry['name']!r}.")
        if (entry["start"], entry["end"]) != ("-1", "-1"):
            raise InputError(
                f"{where}: start and end must be -1, for a whole clip, got {entry['start']!r} and {entry['end']!r}."
            )
        if not entry["translation"]:
            raise InputError(f"{where}: the translation is empty.")
        row = {"id": entry["name"], "clip": entry["name"], "caption": entry["translation"]}
        rows.append(row | {"signer": entry["speaker"], "gloss": entry["orth"]})
    if not rows:
        raise InputError(f"{path}: has no rows. {SOURCES[files.benchmark]}")
    return files.once(((row["id"], row) for row in rows), path)


def repeated_sentences(rows: Rows) -> list[str]:
    """Return notes that count the sentences of other splits that stand, word for word, in the training split."""
    known = {row.get("caption") for row in rows.get("train", [])} - {None}
    counts = {
        split: sum(row.get("caption") in known for row in own) for split, own in rows.items() if split != "train"
    }
    return [
        f"{split}: {count} of {len(rows[split])} sentences stand word for word in train; unseen_BLEU leaves them out"
        for split, count in counts.items()
        if count
    ]
