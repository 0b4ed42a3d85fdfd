"""Recognise which labels apply to a clip: one of them, or any number."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.report import Example
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Evaluation, Measuring, Task
from simple_multimodal.tasks.labels import label_settings, read_labels
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier
from simple_multimodal.tasks.video_classification.evaluate import evaluate_classes
from simple_multimodal.tasks.video_classification.examples import class_examples
from simple_multimodal.tasks.video_classification.modeling import (
    MULTI_LABEL,
    SINGLE_LABEL,
    MultimodalForVideoClassification,
)
from simple_multimodal.tasks.video_classification.options import LOSSES, VideoClassificationOptions
from simple_multimodal.tasks.video_classification.targets import (
    LABEL_COLUMNS,
    Labels,
    check_labels,
    has_many_labels,
    row_labels,
)
from simple_multimodal.tasks.video_classification.views import Views

PROTOCOL = "every labelled row once; labels from all modalities of a row"

CLASSIFY = """\
from simple_multimodal import VideoClassifier

classifier = VideoClassifier.from_pretrained({model})
for label in classifier("my_clips/0001.mp4", top_k=3)[0]:
    print(label["label"], label["score"])"""


class VideoClassification(Task):
    """Classify clips among the labels of the configuration's `id2label`."""

    name = "video_classification"
    summary = "recognise labels of clips (column label or labels)"
    model_classes = {"simple_multimodal": MultimodalForVideoClassification}
    options_class = VideoClassificationOptions
    row_settings = LABEL_COLUMNS
    pipeline_class = VideoClassifier
    reads_embeddings = False
    compares_with_training = True

    @staticmethod
    def needed_modalities(pipeline: Pipeline) -> Sequence[Modality] | None:
        """Return `None`, because rows may lack any modality; only a model of text alone needs a text."""
        modalities = pipeline.processor.modalities
        return modalities if tuple(modalities) == ("text",) else None

    def config_settings(self, source: str | os.PathLike[str] | None, train_set: RowDataset | None) -> dict[str, Any]:
        """
        Return the labels that the model should know, how many of them a row has, how frequent each is in training, and
        the form of the loss. A saved model of this task keeps all but the last.

        Raises:
            ValueError: If there is no source of labels, `labels_file` is invalid, **or** the training rows have other
                labels.
        """
        file = self.options.labels_file
        labels = None if file is None else read_labels(file, "labels_file")

        def from_rows() -> list[str]:
            if train_set is None:
                raise InputError(
                    "A model for video classification takes its labels from the training rows: train it (--do_train), "
                    "or load a trained one (--model_name_or_path)."
                )
            found = sorted({label for own in row_labels(train_set) for label in own or ()})
            if len(found) < 2:
                raise InputError(
                    f"{train_set.name} has {len(found)} different labels; at least two are needed. Check the column "
                    "`label` or `labels`."
                )
            return found

        settings = label_settings(self.model_classes, source, labels, f"labels_file={file!r}", from_rows)
        if settings and train_set is not None:
            many = has_many_labels(train_set)
            check_labels(train_set, settings["label2id"], many=many)
            settings["problem_type"] = MULTI_LABEL if many else SINGLE_LABEL
            settings["label_frequencies"] = label_frequencies(train_set, list(settings["label2id"]))
        return settings | self._loss_settings()

    def _loss_settings(self) -> dict[str, float]:
        names = ("positive_focus", "negative_focus", "negative_margin")
        return dict(zip(names, LOSSES[self.options.multi_label_loss], strict=True))

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets:
        """Return the labels of each row."""
        return Labels(model.config.label2id, many=model.has_many_labels)

    def check_rows(self, model: TowerModel, dataset: RowDataset) -> None:
        """Check that the model knows the labels, see [`check_labels`]."""
        check_labels(dataset, model.config.label2id, many=model.has_many_labels)

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """Measure a model with [`evaluate_classes`]."""
        assert isinstance(pipeline, VideoClassifier)
        options = self.options
        return evaluate_classes(
            pipeline.with_views(options.eval_views, options.eval_crops, options.view_pooling),
            dataset,
            protocol=self.protocol(PROTOCOL, pipeline, measuring),
            charades=measuring.benchmark is not None and measuring.benchmark.benchmark == "charades",
            train_set=measuring.train_set if measuring.is_final else None,
            localization_window=options.localization_window,
            with_losses=measuring.with_losses,
            partial=measuring.partial,
        )

    def protocol_suffixes(self, pipeline: Pipeline, measuring: Measuring) -> dict[str, Any]:
        """Return the views."""
        return {"views": Views(self.options.eval_views, self.options.eval_crops, self.options.view_pooling).name}

    def examples(self, evaluation: Evaluation, collator: MultimodalCollator) -> list[Example]:
        """Return clips with their labels, see [`class_examples`]."""
        return class_examples(evaluation.details, collator)

    def usage(self, modalities: Sequence[Modality]) -> str:
        """Return code that classifies a clip."""
        return CLASSIFY

    def next_command(self, modalities: Sequence[Modality], text: str | None, file: str | None) -> str:
        """Return a command that classifies the clip."""
        return f"simple-multimodal classify {{model}} {shlex.quote(file or 'my_clips/0001.mp4')}"


def label_frequencies(dataset: RowDataset, labels: Sequence[str]) -> list[float]:
    """Return the share of rows with each label among those whose labels are known, with one more row that has each of
    them in equal parts, so that no share is 0.
    """
    known = [own for own in row_labels(dataset) if own is not None]
    counts = Counter(label for own in known for label in own)
    return [(counts[label] + 1 / len(labels)) / (len(known) + 1) for label in labels]
