"""The columns of labels, and the labels of rows as tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.errors import InputError

LABEL_COLUMNS: dict[str, Any] = {"typed_columns": {"label": "name", "labels": "names"}}
"""Settings of a [`RowDataset`] with labels: `label` is the only one of a row, `labels` a list of any number."""

NUM_SHOWN = 3


def has_many_labels(dataset: RowDataset) -> bool:
    """
    Return whether rows have a list of labels each, instead of one label.

    Raises:
        ValueError: If there is neither a column `label` nor `labels`, or both.
    """
    found = [name for name in ("label", "labels") if name in dataset.columns]
    if len(found) != 1:
        has = "both `label` and `labels`" if found else "neither a column `label` nor `labels`"
        raise InputError(
            f"{dataset.name} has {has}. Give each row one `label`, or a list of `labels`, which may be empty."
        )
    return found == ["labels"]


def row_labels(dataset: RowDataset) -> list[list[str] | None]:
    """Return the labels of each row: a list, or `None` where they are unknown."""
    if has_many_labels(dataset):
        return dataset.column("labels")
    return [None if label is None else [label] for label in dataset.column("label")]


def check_labels(dataset: RowDataset, label2id: Mapping[str, int], *, many: bool) -> None:
    """
    Check that a model knows the labels of rows.

    Args:
        dataset ([`RowDataset`]): The rows.
        label2id (`Mapping[str, int]`): Number of each label that the model knows.
        many (`bool`): Whether the model takes any number of labels per row.

    Raises:
        ValueError: If rows have the other column, none has a label, **or** a label is unknown.
    """
    if has_many_labels(dataset) != many:
        columns = ("labels", "label") if many else ("label", "labels")
        raise InputError(
            f"The model was made for the column `{columns[0]}`, but {dataset.name} has `{columns[1]}`. Convert the "
            "column, or train a new model."
        )
    labels = row_labels(dataset)
    if all(own is None for own in labels):
        raise InputError(f"{dataset.name}: no row has a label. Check the column `{'labels' if many else 'label'}`.")
    unknown = list(dict.fromkeys(label for own in labels for label in own or () if label not in label2id))
    if unknown:
        shown = ", ".join(map(repr, unknown[:NUM_SHOWN])) + (" …" if len(unknown) > NUM_SHOWN else "")
        raise InputError(
            f"{dataset.name} has {len(unknown)} labels that the model does not know: {shown}. Correct them, leave "
            "these rows out, or name all labels in --labels_file when you train a new model."
        )


class Labels:
    """
    Add the labels of rows to a batch.

    Args:
        label2id (`Mapping[str, int]`): Number of each label that the model knows.
        many (`bool`): Whether rows have any number of labels instead of one.
    """

    def __init__(self, label2id: Mapping[str, int], *, many: bool):
        self.label2id = dict(label2id)
        self.many = many

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """
        Return `labels`: int64 of shape `(batch_size,)`, -1 where unknown; or for any number of labels float32 of shape
        `(batch_size, num_labels)`, 1 for labels that apply, 0 for others, and NaN where unknown. Those of a skipped
        row are unknown.
        """
        own = [None if row.get("is_skipped") else _labels(row) for row in rows]
        return {"labels": encode_labels(own, self.label2id, many=self.many)}


def _labels(row: Mapping[str, Any]) -> list[str] | None:
    if row.get("labels") is not None:
        return row["labels"]
    return None if row.get("label") is None else [row["label"]]


def encode_labels(labels: Sequence[Sequence[str] | None], label2id: Mapping[str, int], *, many: bool) -> torch.Tensor:
    """Return labels of rows as a tensor, see [`Labels`]."""
    if not many:
        return torch.tensor([-1 if not own else label2id[own[0]] for own in labels])
    encoded = torch.zeros(len(labels), len(label2id))
    for row, own in zip(encoded, labels, strict=True):
        if own is None:
            row.fill_(torch.nan)
        else:
            row[[label2id[label] for label in own]] = 1.0
    return encoded
