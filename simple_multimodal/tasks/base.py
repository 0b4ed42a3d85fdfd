"""What a task is: the models that do it, the rows that they learn from, and how they are measured."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import datasets

from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.protocols import Protocol
from simple_multimodal.evaluation.report import Example
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import BUILT_IN_MODALITIES, Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.options import TaskOptions

Rows: TypeAlias = RowDataset | datasets.Dataset | str | os.PathLike[str] | Any
"""What [`Task.open_rows`] makes rows of."""

PARTIAL_FOLDER = "partial"
"""What a measurement keeps finished parts in, beside its results, until these are written."""


@dataclass
class Evaluation:
    """
    What a measurement found.

    Args:
        metrics (`dict[str, float]`): losses, accuracies and ranks by name, without prefix.
        intervals (`dict[str, tuple[float, float]]`): bootstrap interval of each metric that has one.
        counts (`dict[str, int]`): what the numbers are over.
        protocol (`str`): how the numbers were made: a protocol's name, or one phrase.
        primary_metric (`str`, *optional*): the metric that models are compared by; `None` where the set does not allow
            it.
        num_rows (`int`): rows that were measured, from which the trainer computes its speed.
        bad_samples (`list[BadSample]`): rows that could not be read, and count as wrong.
        config_settings (`dict`): what the model's configuration is to remember of it, where the rows are not test
            clips.
        chance (`dict[str, float]`): what guessing scores, where that does not follow from the metrics, such as a
            cross-entropy over a known number of candidates.
        rows (`Iterable[dict]`): one result for each pair or question, for `results.json`; to be read once.
        printed (`dict`): the numbers as the benchmark's reference implementation prints them.
        details (`Any`): whatever else the task keeps, say for the examples of the report.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]
    protocol: str
    primary_metric: str | None
    num_rows: int
    bad_samples: list[BadSample] = field(default_factory=list)
    config_settings: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    rows: Iterable[dict] = field(default=(), repr=False)
    printed: dict[str, Any] = field(default_factory=dict)
    details: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Measuring:
    """
    The circumstances of a measurement.

    Args:
        benchmark ([`Protocol`], *optional*): of the rows, where they are those of a prepared benchmark.
        protocol (`str`, *optional*): name to publish the numbers under; by default one phrase that describes them.
        with_losses (`bool`, *optional*, defaults to `False`): measure what training minimises, too.
        is_final (`bool`, *optional*, defaults to `True`): not one of many during training: take the time for what is
            measured once.
        alpro (`bool`, *optional*, defaults to `False`): print the numbers as ALPRO's evaluation counts them.
        train_set ([`RowDataset`], *optional*): rows of training, for baselines that look at nothing else.
        output_dir (`Path`, *optional*): folder for what is finished, from which an interrupted measurement goes on.
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
        """Folder of finished parts, which is removed when the results are written."""
        return None if self.output_dir is None else self.output_dir / PARTIAL_FOLDER


class Task:
    """
    One task. Put a subclass into a folder beside this file and into `TASKS`, or hand it to [`register_task`].

    A task wraps no model: it says which class to build, what a row needs besides clips, and how a model is measured,
    in training and on its own alike.

    Args:
        options ([`TaskOptions`]): of the class's `options_class`.
    """

    name: ClassVar[str]
    """What `--task` and a saved configuration call it."""

    summary: ClassVar[str]
    """One phrase for the help of `--task`."""

    model_classes: ClassVar[Mapping[str, type[TowerModel]]]
    """The model that is trained, by the `model_type` of its configuration."""

    options_class: ClassVar[type[TaskOptions]] = TaskOptions
    row_settings: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of [`RowDataset`]: which column is the text, and which others are read by their type."""

    pipeline_class: ClassVar[type[Pipeline]]
    reads_embeddings: ClassVar[bool] = True
    """Whether anything reads the towers' embeddings, and not their tokens alone."""
    compares_with_training: ClassVar[bool] = False
    """Whether a measurement takes the rows of training, for a baseline."""

    def __init__(self, options: TaskOptions | None = None):
        self.options: Any = options or self.options_class()

    def open_files(self, find: Callable[[str], Path], open_rows: Callable[[Path], RowDataset]) -> None:
        """
        Read the files that options name, before a run that evaluates begins; by default there are none.

        Args:
            find: Returns the path of a file that may lie in `--data_root`.
            open_rows: Opens a manifest with the settings of the run.

        Raises:
            ValueError: If a file cannot be read.
        """

    @classmethod
    def open_rows(cls, rows: Rows, **settings) -> RowDataset:
        """
        The rows of a run. No media file is opened, but where links lead is checked before the run begins.

        Args:
            rows: the path of a manifest or of a folder of media files, a list of dictionaries, a pandas table, a
                `datasets.Dataset`, or a [`RowDataset`], which is returned as it is.
            settings: arguments of the constructor of [`RowDataset`] that fits.

        Raises:
            ValueError: If the manifest or a row is wrong, **or** links lead out of the roots.
        """
        if isinstance(rows, RowDataset):
            return rows
        settings = {**cls.row_settings, **settings}
        cache_dir = settings.pop("cache_dir", None)
        pandas = sys.modules.get("pandas")  # it is loaded if the rows are a table of it
        if isinstance(rows, (str, os.PathLike)) and os.path.isdir(rows):
            if "text" in settings.get("modalities", BUILT_IN_MODALITIES):
                raise InputError(
                    f"{rows}: is a folder, and its files have no captions. Give a manifest (CSV, TSV or JSONL), or "
                    "--modalities without text."
                )
            dataset = RowDataset.from_files(rows, **settings)
        elif isinstance(rows, (str, os.PathLike)):
            dataset = RowDataset.from_manifest(rows, cache_dir=cache_dir, **settings)
        elif isinstance(rows, datasets.Dataset):
            dataset = RowDataset.from_dataset(rows, cache_dir=cache_dir, **settings)
        elif pandas is not None and isinstance(rows, pandas.DataFrame):
            dataset = RowDataset.from_dataframe(rows, **settings)
        else:
            dataset = RowDataset(rows, **settings)
        dataset.check_links()
        return dataset

    def config_settings(self, source: str | os.PathLike[str] | None, train_set: RowDataset | None) -> dict[str, Any]:
        """
        Settings of the model's configuration that the task finds out from the data, such as the names of classes.

        Args:
            source (`str`, *optional*): saved model that the run starts from.
            train_set ([`RowDataset`], *optional*): rows to train on.
        """
        return {}

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets | None:
        """What the collator adds to a batch for the objectives of a model, such as labels; by default nothing."""
        return None

    def protocol_suffixes(self, pipeline: Pipeline, measuring: Measuring) -> dict[str, Any]:
        """Arguments of [`protocol_name`] for those options that change what the numbers of a benchmark mean."""
        return {}

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """
        Measure a model on rows, each of which counts once.

        Args:
            pipeline ([`Pipeline`]): the model in use, of `pipeline_class`; several processes share the work.
            dataset ([`RowDataset`]): the rows.
            measuring ([`Measuring`]): under which circumstances.
        """
        raise NotImplementedError

    def examples(self, evaluation: Evaluation, collator: MultimodalCollator) -> list[Example]:
        """Examples for the report, by default none.

        Args:
            evaluation ([`Evaluation`]): what [`evaluate`] returned.
            collator ([`MultimodalCollator`]): what reads the rows.
        """
        return []

    def usage(self, modalities: Sequence[Modality]) -> str | None:
        """Python lines for the model card that use a model of these modalities, `{model}` in the place of its name."""
        return None

    def next_command(self, modalities: Sequence[Modality]) -> str:
        """What to type next to use a model of these modalities, `{model}` in the place of its folder."""
        return "python train.py --do_eval --model_name_or_path {model}"
