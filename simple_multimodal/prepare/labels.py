"""Lists of labels: checks, and counts of the rows that have them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simple_multimodal.errors import InputError


def check_labels(labels: Sequence[str], where: str) -> None:
    """
    Check that labels can be the classes of a model, one per line of a file.

    Args:
        labels (`Sequence[str]`): The labels, without spaces around them.
        where (`str`): Their source, for messages.

    Raises:
        ValueError: There are fewer than two, **or** one is blank, is not one line of text, or occurs twice.
    """
    for label in labels:
        if len(label.splitlines()) != 1 or label != label.encode(errors="replace").decode():
            raise InputError(
                f"{where}: the class {label!r} is blank, has a line break, or is not UTF-8 text; rename it."
            )
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise InputError(f"{where}: the class {twice[0]!r} is listed twice; rename one, or remove it.")
    if len(labels) < 2:
        raise InputError(f"{where}: {len(labels)} classes; at least two are needed.")


def labels_of(row: Mapping[str, Any]) -> list[str]:
    """Return the labels of a row with `label` or `labels`."""
    return row["labels"] if "labels" in row else [row["label"]]


def count_labels(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> str:
    """
    Return in words how many rows the rarest and the most frequent label have.

    Args:
        rows (`Sequence[Mapping]`): Rows with `label` or `labels`.
        shown (`Mapping[str, str]`): All labels, each with its form in messages.
    """
    counts = Counter(dict.fromkeys(shown, 0))
    counts.update(label for row in rows for label in labels_of(row))
    ordered = counts.most_common()
    (most, highest), (fewest, lowest) = ordered[0], ordered[-1]
    return f"rows per label: fewest {lowest} ({shown[fewest]}), most {highest} ({shown[most]})"
