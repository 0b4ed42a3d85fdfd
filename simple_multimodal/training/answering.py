"""Evaluation of question answering inside the main job: every question once, and the vocabulary of answers."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import question_pairs
from simple_multimodal.evaluation.question_answering import answer_result
from simple_multimodal.models.modeling import Batch
from simple_multimodal.training.evaluation import Evaluation

HEADLINE = "accuracy"


def answer_vocabulary(answers: Iterable[str]) -> list[str]:
    """
    The answers that a model is to know, the most frequent first, equally frequent ones in alphabetical order.

    Args:
        answers (`Iterable[str]`): of the training questions.

    Raises:
        ValueError: If there are fewer than two different answers.
    """
    counts = Counter(answers)
    if len(counts) < 2:
        raise ValueError(
            f"The training questions have {len(counts)} different answers; a choice needs two. Is the column `answer` "
            "there?"
        )
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


class Prediction(NamedTuple):
    """What a model said to one question.

    Args:
        row_id (`int`): number of the row.
        label (`int`): number of the answer that it chose, the first one among equals; -1 where the row was not read.
        loss (`float`, *optional*): cross-entropy of the right answer; `None` where the model does not know that.
    """

    row_id: int
    label: int
    loss: float | None


@torch.no_grad()
def predict_answers(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Any]],
    *,
    to_device: Callable[[Batch], Batch],
    autocast: Callable[[], AbstractContextManager],
    on_step: Callable[[], None],
) -> list[Prediction]:
    """Answer this process's questions, then share the predictions with all processes.

    Args:
        model (`PreTrainedModel`): with `encode_text`, `encode_clip` and `answer_logits`, in evaluation mode.
        batches (`Iterable[Batch]`): this process's share of the questions, none twice.
        to_device, autocast, on_step: how to move a batch, under which precision to run, what to call after each batch.

    Returns:
        `list[Prediction]`: of all processes' rows, in the order of the data set.
    """
    predictions: list[Prediction] = []
    for batch in batches:
        bad_rows = {sample.row for sample in batch.pop("bad_samples", ())}
        inputs = to_device(batch)
        with autocast():
            logits = model.answer_logits(model.encode_text(inputs)[1], model.encode_clip(inputs)[1])
        labels = batch["labels"].to(logits.device)
        losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none").tolist()
        # The answer of a row that could not be read is not known here, so that it has no loss.
        predictions += [
            Prediction(row_id, -1 if row_id in bad_rows else chosen, None if label < 0 else loss)
            for row_id, chosen, label, loss in zip(
                batch["row_ids"].tolist(), logits.argmax(dim=-1).tolist(), labels.tolist(), losses, strict=True
            )
        ]
        on_step()
    return sorted(gather_object(predictions), key=lambda prediction: prediction.row_id)


def evaluate_answers(
    predictions: Sequence[Prediction],
    dataset: RowDataset,
    id2label: Mapping[int, str],
    train_dataset: RowDataset | None = None,
) -> Evaluation:
    """
    Accuracy over all questions, and over those of each `answer_type` if the manifest has that column.

    Args:
        predictions (`Sequence[Prediction]`): one for each row.
        dataset (`RowDataset`): the rows.
        id2label (`Mapping[int, str]`): the answers that the model knows.
        train_dataset (`RowDataset`, *optional*): training questions; then the accuracies that can be had without
            seeing a clip stand beside.

    Returns:
        [`Evaluation`]: the metrics of [`answer_result`], and `answer_loss` over the questions whose answer the model
        knows.
    """
    rows = [dataset.row(prediction.row_id, files="none") for prediction in predictions]
    result = answer_result(
        [prediction.label for prediction in predictions],
        rows,
        id2label=id2label,
        train_pairs=() if train_dataset is None else question_pairs(train_dataset),
    )
    losses = [prediction.loss for prediction in predictions if prediction.loss is not None]
    loss = float(np.mean(losses)) if losses else 0.0
    return Evaluation(
        metrics={"loss": loss, "answer_loss": loss, **result.metrics},
        intervals=result.intervals,
        counts={"questions": len(rows), "clips": len({row["group"] for row in rows}), "known_answers": len(losses)},
        protocol="the highest scoring answer of the model's list; right if it is the annotated one, letter by letter",
        headline=HEADLINE,
    )
