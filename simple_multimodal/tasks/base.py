"""The base class of tasks: which models perform a task, which rows they learn from, and how they are measured."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import datasets

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sources import open_rows
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation import glossary
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.protocols import Protocol
from simple_multimodal.evaluation.report import Example
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import DEFAULT_MODALITIES, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.options import TaskOptions

Rows: TypeAlias = RowDataset | datasets.Dataset | str | os.PathLike[str] | Any
"""Inputs that [`Task.open_rows`] accepts."""

PARTIAL_FOLDER = "partial"
"""Folder beside the results that keeps finished parts of a measurement until the results are written."""


@dataclass(repr=False)
class Evaluation:
    """
    Results of a measurement.

    Args:
        metrics (`dict[str, float]`): Losses, accuracies and ranks by name, without prefix.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that has one.
        counts (`dict[str, int]`): Numbers of rows, queries or clips that the metrics are computed over.
        protocol (`str`): How the numbers were computed: the name of a protocol, or a short phrase.
        primary_metric (`str`, *optional*): The metric that models are compared by; `None` if the rows do not allow it.
        num_rows (`int`): Number of rows that were measured, from which the trainer computes its speed.
        bad_samples (`list[BadSample]`): Rows that could not be read, which count as wrong.
        config_settings (`dict`): Settings to save in the model's configuration, if the rows are not test clips. The
            `measured_settings` of the configuration's class, if any, return to their values when training begins.
        further_chance (`dict[str, float]`): Chance levels that do not follow from the metrics, such as a cross-entropy
            over a known number of candidates; see [`chance`] for all.
        rows (`Iterable[dict]`): One result for each pair, question or class, for `results.json`; can be iterated once.
        files (`dict[str, Callable]`): Functions that write further files of results at a path, by name.
        printed (`dict`): The numbers as the benchmark's reference implementation prints them.
        tables (`dict[str, Sequence[dict]]`): Tables for the report by title: rows with the same columns.
        signatures (`dict[str, str]`): How metrics were computed, by metric name, where a library defines that.
        details (`Any`): Anything else that the task keeps, e.g. for the examples in the report.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]
    protocol: str
    primary_metric: str | None
    num_rows: int
    bad_samples: list[BadSample] = field(default_factory=list)
    config_settings: dict[str, Any] = field(default_factory=dict)
    further_chance: dict[str, float] = field(default_factory=dict)
    rows: Iterable[dict] = ()
    files: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    printed: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    details: Any = None

    def __repr__(self) -> str:
        primary = (
            "" if self.primary_metric is None else f"{self.primary_metric}={self.metrics[self.primary_metric]:.4g}, "
        )
        return f"Evaluation({primary}{len(self.metrics)} metrics, {self.counts})"

    @property
    def chance(self) -> dict[str, float]:
        """Chance level of each metric that has one."""
        return glossary.chance_levels(self.metrics) | self.further_chance


@dataclass(frozen=True)
class Measuring:
    """
    Settings of a measurement.

    Args:
        benchmark ([`Protocol`], *optional*): Protocol of the rows, if they belong to a prepared benchmark.
        protocol (`str`, *optional*): Name to publish the numbers under; by default a phrase that describes them.
        with_losses (`bool`, *optional*, defaults to `False`): Whether to measure the training losses, too.
        is_final (`bool`, *optional*, defaults to `True`): Whether this is a final evaluation, which includes the
            measurements that are too slow to repeat during training.
        alpro (`bool`, *optional*, defaults to `False`): Whether to print the numbers as ALPRO's evaluation counts
            them.
        train_set ([`RowDataset`], *optional*): Training rows, for baselines that use nothing else.
        output_dir (`Path`, *optional*): Folder for finished parts, from which an interrupted measurement resumes.
    """

    benchmark: Protocol | None = None
    protocol: str | None = None
    with_losses: bool = False
    is_final: bool = True
    alpro: bool = False
    train_set: RowDataset | None = None
    output_dir: Path | None = None

    @property
    def partial(self) -> Path | None:
        """Folder of finished parts, removed once the results are written."""
        return None if self.output_dir is None else self.output_dir / PARTIAL_FOLDER


class Task:
    """
    Base class of tasks. Add a subclass in a folder beside this file and in `TASKS`, or pass it to [`register_task`].

    A task does not wrap a model: it defines which class to build, what a row needs in addition to clips, and how a
    model is measured, during training and on its own.

    Args:
        options ([`TaskOptions`]): An instance of `options_class`.
    """

    name: ClassVar[str]
    """Name of the task in `--task` and in saved configurations."""

    summary: ClassVar[str]
    """Short description for the help of `--task`."""

    model_classes: ClassVar[Mapping[str, type[TowerModel]]]
    """Class of the model to train, by the `model_type` of its configuration."""

    options_class: ClassVar[type[TaskOptions]] = TaskOptions
    row_settings: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of [`RowDataset`]: the text column, and typed columns to read."""

    pipeline_class: ClassVar[type[Pipeline]]
    reads_embeddings: ClassVar[bool] = True
    """Whether the task uses the towers' embeddings and not only their tokens."""
    reads_text: ClassVar[bool] = True
    """Whether a model may have a tower for the text of a row, which a task that writes it must not see."""
    compares_with_training: ClassVar[bool] = False
    """Whether a measurement needs the training rows, for a baseline."""

    def __init__(self, options: TaskOptions | None = None):
        self.options: Any = options or self.options_class()

    def open_files(self, find: Callable[[str], Path], open_rows: Callable[[Path], RowDataset]) -> None:
        """
        Read the files named in the options before a run that evaluates begins. By default there are none.

        Args:
            find: Function that returns the path of a file, which may lie in `--data_root`.
            open_rows: Function that opens a manifest with the settings of the run.

        Raises:
            ValueError: If a file cannot be read.
        """

    @classmethod
    def open_rows(cls, rows: Rows, **settings) -> RowDataset:
        """
        Open the rows of a run. Media files are not opened, but the targets of links are checked.

        Args:
            rows: Path of a manifest or of a folder of media files, a list of dictionaries, a pandas DataFrame, a
                `datasets.Dataset`, or a [`RowDataset`], which is returned unchanged.
            settings: Arguments of the matching constructor of [`RowDataset`].

        Raises:
            ValueError: If the manifest or a row is invalid, **or** links lead outside the roots.
        """
        if isinstance(rows, RowDataset):
            return rows
        settings = {**cls.row_settings, **settings}
        if isinstance(rows, (str, os.PathLike)) and os.path.isdir(rows):
            if "text" in settings.get("modalities", DEFAULT_MODALITIES):
                raise InputError(
                    f"{rows} is a folder, whose files have no captions. Pass a manifest (CSV, TSV or JSONL), or "
                    "modalities without text."
                )
            settings.pop("cache_dir", None)
            dataset = RowDataset.from_files(rows, **settings)
        else:
            dataset = open_rows(rows, **settings)
        dataset.check_links()
        return dataset

    @staticmethod
    def needed_modalities(pipeline: Pipeline) -> Sequence[Modality] | None:
        """
        Return the modalities that rows must have a column for in order to be measured, by default those of the model.
        `None`: any column of media is enough.
        """
        return pipeline.processor.modalities

    def config_settings(self, source: str | os.PathLike[str] | None, train_set: RowDataset | None) -> dict[str, Any]:
        """
        Return settings of the model's configuration that the task derives from the data, such as class names.

        Args:
            source (`str`, *optional*): Saved model that the run starts from.
            train_set ([`RowDataset`], *optional*): Rows to train on.
        """
        return {}

    def prepare(
        self,
        processor: MultimodalProcessor,
        source: str | os.PathLike[str] | None,
        train_set: RowDataset | None,
        *,
        cache_dir: str | None = None,
    ) -> None:
        """
        Prepare what a model of the task needs before it is made, such as a tokenizer in the processor; by default
        nothing.

        Args:
            processor ([`MultimodalProcessor`]): Processor of the model, changed in place.
            source (`str`, *optional*): Saved model that the run starts from.
            train_set ([`RowDataset`], *optional*): Rows to train on.
            cache_dir (`str`, *optional*): Cache folder for files from the hub.
        """

    def finish(self, model: TowerModel, source: str | os.PathLike[str] | None) -> None:
        """
        Load or set what a new head of a model starts from; by default nothing.

        Args:
            model ([`TowerModel`]): The model, changed in place.
            source (`str`, *optional*): Saved model that it was loaded from.
        """

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets | None:
        """Return the targets that the collator adds to a batch, such as labels; by default none."""
        return None

    def check_rows(self, model: TowerModel, dataset: RowDataset) -> None:
        """
        Check that a model can be trained or measured on rows, before any clip is read; by default nothing is checked.

        Raises:
            ValueError: If it cannot.
        """

    def warning_about(self, model: TowerModel, dataset: RowDataset) -> str | None:
        """
        Return a warning about rows that a model can hardly learn from or be measured on, which a run shows when it
        starts; by default none.
        """
        return None

    def protocol_suffixes(self, pipeline: Pipeline, measuring: Measuring) -> dict[str, Any]:
        """Return arguments of [`protocol_name`] for options that change what the numbers of a benchmark mean."""
        return {}

    @staticmethod
    def protocol(default: str, pipeline: Pipeline, measuring: Measuring) -> str:
        """Return the name of a measurement's protocol, or else a phrase that says which modalities are left out."""
        dropped = pipeline.collator.drop_modalities
        return measuring.protocol or default + (f"; without {' and '.join(dropped)}" if dropped else "")

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """
        Measure a model on rows, counting each row once.

        Args:
            pipeline ([`Pipeline`]): Pipeline of the model, of `pipeline_class`; several processes share the work.
            dataset ([`RowDataset`]): The rows.
            measuring ([`Measuring`]): Settings of the measurement.
        """
        raise NotImplementedError

    def examples(self, evaluation: Evaluation, collator: MultimodalCollator) -> list[Example]:
        """Return examples for the report, by default none.

        Args:
            evaluation ([`Evaluation`]): Result of [`evaluate`].
            collator ([`MultimodalCollator`]): Collator that reads the rows.
        """
        return []

    def usage(self, modalities: Sequence[Modality]) -> str | None:
        """Return Python code for the model card that uses a model of these modalities, with `{model}` for its name."""
        return None

    def next_command(self, modalities: Sequence[Modality], text: str | None, file: str | None) -> str:
        """
        Return a command that uses a trained model of these modalities.

        Args:
            modalities (`Sequence[str]`): Modalities of the model.
            text (`str`, *optional*): First text of the run's data.
            file (`str`, *optional*): First clip of the run's data.

        Returns:
            `str`: The command, with `{model}` for the model's folder and `{clips}` for the run's clips.
        """
        return "python train.py --do_eval --model_name_or_path {model} --validation_file {clips}"
