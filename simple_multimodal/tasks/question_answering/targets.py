"""The columns of questions, and the labels of their answers."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row, RowDataset

QUESTION_COLUMNS: dict[str, Any] = {
    "text_column": "question",
    "typed_columns": {"answer": "name", "answer_type": "name"},
}
"""Settings of a [`RowDataset`] of questions: a row's text is its `question`, and `answer` is the right answer."""


def question_pairs(dataset: RowDataset) -> list[tuple[str, str]]:
    """Return the question and answer of each row that has an answer."""
    pairs = zip(dataset.column("question"), dataset.column("answer"), strict=True)
    return [(question, answer) for question, answer in pairs if answer is not None]


class AnswerLabels:
    """Label rows with the number of their answer.

    Args:
        label2id (`Mapping[str, int]`):
            Number of each answer that the model knows.
    """

    def __init__(self, label2id: Mapping[str, int]):
        self.label2id = dict(label2id)

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """Return `labels` (`int64`) of shape `(batch_size,)`: -1 without a known answer and for a skipped row."""
        answers = [None if row.get("is_skipped") else row.get("answer") for row in rows]
        return {"labels": torch.tensor([self.label2id.get(cast(str, answer), -1) for answer in answers])}
