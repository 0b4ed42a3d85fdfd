"""Recognise which labels apply to clips."""

import copy
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from transformers import PreTrainedModel

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.rows import Row
from simple_multimodal.defaults import TOP_K_LABELS
from simple_multimodal.errors import InputError
from simple_multimodal.inference.encoded import EncodedBatch
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.inference.requests import (
    Clip,
    ClipKey,
    Clips,
    Request,
    as_requests,
    rows_of_clips,
    rows_of_source,
)
from simple_multimodal.models.pairs import Encoded
from simple_multimodal.tasks.video_classification.modeling import MultimodalForVideoClassification
from simple_multimodal.tasks.video_classification.views import (
    SINGLE_VIEW,
    ViewPooling,
    Views,
    each_view,
    pool_views,
    with_views,
)


class LabelScores(NamedTuple):
    """
    Scores of all labels for rows.

    Args:
        logits (`torch.FloatTensor` of shape `(num_rows, num_labels)`): NaN where the clip could not be read.
        is_read (`torch.BoolTensor` of shape `(num_rows,)`): Whether the clip could be read.
        bad_samples (`list[BadSample]`): Clips that could not be read.
    """

    logits: torch.Tensor
    is_read: torch.Tensor
    bad_samples: list[BadSample]


class VideoClassifier(Pipeline):
    """
    Recognises which of the model's labels apply to clips, from their audio, video and text. Takes the arguments of
    [`Pipeline`].

    Example:

    ```python
    >>> classifier = VideoClassifier.from_pretrained("outputs/toy_actions")
    >>> classifier("clip.mp4", top_k=2)
    [[{'label': 'circle', 'score': 0.98}, {'label': 'red', 'score': 0.95}]]
    ```
    """

    views = SINGLE_VIEW
    model_classes = {"MultimodalForVideoClassification": MultimodalForVideoClassification}
    remedy = "It recognises labels, which only models of --task video_classification know."

    def __call__(  # type: ignore[override]  # each pipeline has settings of its own
        self,
        inputs: Clip | Request | Sequence[Clip | Request],
        *,
        top_k: int = TOP_K_LABELS,
        threshold: float | None = None,
    ) -> list[list[dict[str, Any]]]:
        """
        Recognise the labels of clips, see [`Pipeline.__call__`].

        Args:
            inputs: A clip (a media file, or a row as a dictionary), a request `{"clip": clip, "text": str}` whose text
                may be left out, or a list of them.
            top_k (`int`, *optional*, defaults to 5): Largest number of labels per clip.
            threshold (`float`, *optional*): Smallest score of a label, from 0 to 1; a clip may then have no label.

        Returns:
            `list[list[dict]]`: Labels of each clip, the most probable first: `{"label": str, "score": float}`. The
            score is the probability of the label, among all labels if a clip has one of them.

        Raises:
            MediaError: If a file cannot be read.
            ValueError: If a request is invalid, a setting is out of range, **or** a file has no modality of the model.
        """
        single = isinstance(inputs, (str, os.PathLike, Mapping))
        items = [inputs] if single else list(cast(Sequence, inputs))
        is_request = [isinstance(item, Mapping) and "clip" in item for item in items]
        requests = as_requests(
            [item if given else {"clip": item} for item, given in zip(items, is_request, strict=True)],  # type: ignore
            clips="clip",
            optional=("text",),
        )
        _check(top_k, threshold)
        if not requests:
            return []
        rows: dict[tuple, Row] = {}
        keys = []
        for request in requests:
            ((row,), _) = rows_of_clips([request["clip"]])
            if text := request.get("text", "").strip():
                row = cast(Row, {**row, "text": None, "captions": [text]})
            keys.append((ClipKey.of(row), row["text"], *row["captions"]))
            rows.setdefault(keys[-1], cast(Row, {**row, "index": len(rows)}))
        found = dict(zip(rows, self._label(list(rows.values()), top_k, threshold, "fail"), strict=True))
        return [cast(list, found[key]) for key in keys]

    def classify_each(
        self, clips: Clips, *, top_k: int = TOP_K_LABELS, threshold: float | None = None, recursive: bool = False
    ) -> dict[str, list[dict[str, Any]]]:
        """
        Recognise the labels of each of several clips.

        Args:
            clips: Rows (a data set, its manifest, dictionaries, a pandas DataFrame), or a media file, a folder, or a
                list of files. Clips of rows or of a folder that cannot be read are left out, with a warning.
            top_k, threshold (*optional*): As for [`__call__`].
            recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a
                folder.

        Returns:
            `dict[str, list[dict]]`: Labels of each clip as from [`__call__`], by the row's id or the name of the file,
            which is relative to a folder.

        Raises:
            MediaError: If a file that is given by name cannot be read.
            ValueError: If a setting is out of range, a file has no modality of the model, **or** more than
                `max_bad_fraction` of the clips, or all of them, cannot be read.
        """
        _check(top_k, threshold)
        rows, policy = rows_of_source(clips, recursive=recursive)
        found = self._label(rows, top_k, threshold, policy)
        return {row["id"]: labels for row, labels in zip(rows, found, strict=True) if labels is not None}

    def with_views(self, views: int = 1, crops: int = 1, pooling: ViewPooling = "mean") -> Self:
        """
        Return a classifier that predicts from several views of each clip, see [`Views`].

        Raises:
            ValueError: If a value is out of range, **or** the model takes no frames.
        """
        chosen = Views(views, crops, pooling)
        chosen.check()
        classifier = copy.copy(self)
        if chosen.name is not None:
            classifier.views, classifier.collator = chosen, with_views(self.collator, chosen)
        return classifier

    def classify_rows(
        self,
        rows: Sequence[Row],
        *,
        partial: str | os.PathLike[str] | None = None,
        on_bad_sample: Literal["skip", "fail"] | None = None,
    ) -> LabelScores:
        """
        Score all labels for every row.

        Args:
            rows (`Sequence[Row]`): The rows, whose files may be missing. A warning lists clips that cannot be read.
            partial (`str`, *optional*): Folder for finished parts, from which the same call resumes if it was
                interrupted. It is not removed.
            on_bad_sample (`str`, *optional*): As for the class, whose value is the default.

        Returns:
            [`LabelScores`]: Scores, the same on all processes.

        Raises:
            ValueError: If more than `max_bad_fraction` of the clips, or all of them, cannot be read.
        """
        folder, key = None if partial is None else Path(partial), ""
        if folder is not None:
            texts = json.dumps([[row["text"], *row["captions"]] for row in rows])
            key = hashlib.sha256(f"{self.key(rows)} {self.views} {texts}".encode()).hexdigest()
        encoded = self.encode_rows(
            rows,
            on_bad_sample=on_bad_sample,
            partial=folder,
            key=key,
            encode=functools.partial(score_labels, views=self.views),
            with_text=True,
        )
        logits = torch.full((len(rows), self.model.config.num_labels), torch.nan)
        place = {row["index"]: number for number, row in enumerate(rows)}
        read = [place[row["index"]] for row in encoded.rows]
        logits[read] = encoded.values["logits"]
        is_read = torch.zeros(len(rows), dtype=torch.bool)
        is_read[read] = True
        return LabelScores(logits, is_read, encoded.bad_samples)

    def _label(
        self, rows: Sequence[Row], top_k: int, threshold: float | None, on_bad_sample: Literal["skip", "fail"]
    ) -> list[list[dict[str, Any]] | None]:
        """Return the best labels of rows; `None` for a row that could not be read."""
        for row in rows:
            if not any(self.collator.has(row, modality) for modality in self.processor.modalities):
                raise InputError(
                    f"{row['id']} has none of the modalities of this model ({', '.join(self.processor.modalities)})."
                )
        scores = self.classify_rows(rows, on_bad_sample=on_bad_sample)
        values, chosen = self.probabilities(scores.logits).topk(min(top_k, scores.logits.shape[1]))
        id2label = self.model.config.id2label
        return [
            [
                {"label": id2label[label], "score": value}
                for label, value in zip(labels, own, strict=True)
                if threshold is None or value >= threshold
            ]
            if is_read
            else None
            for labels, own, is_read in zip(chosen.tolist(), values.tolist(), scores.is_read.tolist(), strict=True)
        ]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities that the model gives labels, from logits `(num_rows, num_labels)`."""
        return logits.sigmoid() if self.model.has_many_labels else logits.softmax(dim=1)


def _check(top_k: int, threshold: float | None) -> None:
    if top_k < 1:
        raise InputError(f"`top_k` must be 1 or more, got {top_k}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"`threshold` must be from 0 to 1, got {threshold}.")


def score_labels(model: PreTrainedModel, batch: dict[str, torch.Tensor], *, views: Views) -> EncodedBatch:
    """Score the labels of a batch of clips in these views."""
    nothing = [Encoded(None, {}) for _ in batch["row_ids"]]
    logits = torch.stack([model.class_logits(view) for view in each_view(batch, views)])
    return EncodedBatch(nothing, {"logits": pool_views(logits, views, many=model.has_many_labels).cpu()})
