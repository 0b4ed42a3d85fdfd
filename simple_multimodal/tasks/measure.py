"""Measure a trained model on any rows, or on a split of a benchmark under a named protocol with result files."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from simple_multimodal.data.bad_samples import as_json
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import (
    BENCHMARKS,
    get_protocol,
    prepared_protocol,
    protocol_name,
)
from simple_multimodal.evaluation.result_files import write_metrics, write_rows
from simple_multimodal.inference.pipeline import Pipeline, from_main
from simple_multimodal.missing import no_such_folder
from simple_multimodal.models.base import TowerModel
from simple_multimodal.prepare.manifests import prepare_benchmark
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor
from simple_multimodal.tasks.base import PARTIAL_FOLDER, Evaluation, Measuring, Task
from simple_multimodal.tasks.models import saved_task
from simple_multimodal.tasks.registry import Rows, task_of
from simple_multimodal.tasks.training_clips import TrainingClips

logger = logging.get_logger(__name__)


def evaluate(
    model: str | os.PathLike[str] | TowerModel,
    data: Rows,
    *,
    processor: MultimodalProcessor | None = None,
    task: Task | None = None,
    train_dataset: Rows | None = None,
    roots: Any = None,
    follow_links: bool = False,
    **settings,
) -> Evaluation:
    """
    Measure a model on rows, counting each row once. Several processes of a launcher share the work.

    Args:
        model (`str` or [`TowerModel`]): Folder or hub name of a trained model, or a model.
        data: Path of a manifest or of a folder, a list of dictionaries, a pandas DataFrame, a `datasets.Dataset`, or a
            [`RowDataset`].
        processor ([`MultimodalProcessor`], *optional*): Processor of the model; required if `model` is not a path.
        task ([`Task`], *optional*): The task; by default that of the model, with default options.
        train_dataset (*optional*): Training rows, as `data`, for the baselines of question answering.
        roots (*optional*): Folders that the files of `data` lie in, see [`RowDataset`]; ignored if `data` is one.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead outside the roots,
            see [`RowDataset`]; ignored if `data` is one.
        settings: Options of the task, such as `rerank_top_k`, and arguments of [`Pipeline`], such as `batch_size` and
            `drop_modalities`.

    Returns:
        [`Evaluation`]: The `metrics`, their `intervals`, and the `counts` that they are computed over.

    Example:

    ```python
    >>> evaluate("outputs/mine", "test.csv").metrics["text_to_video_R@1"]
    0.42
    ```
    """
    if isinstance(model, (str, os.PathLike)):
        task = task or _with_options(saved_task(model, cache_dir=settings.get("cache_dir")), settings)
        pipeline: Pipeline = task.pipeline_class.from_pretrained(model, **settings)
    else:
        if processor is None:
            raise InputError("Pass the `processor` of the model, or the model's folder instead.")
        task = task or _with_options(task_of(model.config.task, type(model).__name__), settings)
        pipeline = task.pipeline_class(model, processor, **settings)
    places: dict[str, Any] = {"roots": roots, "follow_links": follow_links}
    rows = task.open_rows(data, modalities=task.needed_modalities(pipeline), **places)
    train_set = None
    if train_dataset is not None:
        train_set = task.open_rows(train_dataset, modalities=task.needed_modalities(pipeline), **places)
    if isinstance(model, (str, os.PathLike)):
        TrainingClips.read(model).warn_about(rows)
    task.check_rows(pipeline.model, rows)
    return task.evaluate(pipeline, rows, Measuring(prepared_protocol(rows.manifest_file), train_set=train_set))


def _with_options(kind: type[Task], settings: dict[str, Any]) -> Task:
    """Return a task with its options, which are taken out of `settings`."""
    names = [option.name for option in fields(kind.options_class) if option.name in settings]
    return kind(kind.options_class(**{name: settings.pop(name) for name in names}))


def measure_benchmark(
    task: Task,
    pipeline: Pipeline,
    folder: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    model_folder: str | os.PathLike[str] | None = None,
    split: str = "test",
    roots: Mapping[str, str | os.PathLike[str] | None] | None = None,
    follow_links: bool = False,
    alpro: bool = False,
) -> Evaluation:
    """
    Measure a model on manifests that `simple-multimodal prepare` wrote, and write `metrics.json` and `results.json`.

    Finished parts are kept in `partial/` of the output folder until the results are written: an interrupted call
    resumes from there when it is repeated, with any number of processes.

    Args:
        task ([`Task`]): Task of the protocol, with its options.
        pipeline ([`Pipeline`]): Pipeline of the model, of the task's `pipeline_class`.
        folder (`str`): Folder with `{split}.jsonl`, `protocol.json` and, if there is a training split, `train.jsonl`.
        output_dir (`str`): Folder for the results.
        model_folder (`str`, *optional*): The model's folder, whose `training_clips.json` is compared with the tested
            clips, and whose `run.json` names the split that the checkpoint was selected on.
        split (`str`, *optional*, defaults to `"test"`): Split to measure.
        roots (`Mapping`, *optional*): Folders of the files by modality, see [`RowDataset`].
        follow_links (`bool`, *optional*, defaults to `False`): See [`RowDataset`].
        alpro (`bool`, *optional*, defaults to `False`): See [`Measuring`].

    Raises:
        ValueError: If `prepare` did not write the folder, **or** the model was trained on test clips.
    """
    folder, output_dir = Path(folder), Path(output_dir)
    try:
        prepared = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} has no readable protocol.json, which `simple-multimodal prepare` writes: {error}"
        ) from error
    protocol = get_protocol(prepared["protocol"])
    if protocol.task != task.name:
        raise InputError(f"{folder} is for {protocol.task}; {type(pipeline).__name__} is for another task.")
    if split not in prepared["splits"]:
        raise InputError(f"{folder} has no {split} split; it has {', '.join(prepared['splits'])}.")
    settings: dict[str, Any] = {"modalities": task.needed_modalities(pipeline)}
    settings |= {"roots": roots, "follow_links": follow_links}
    rows = task.open_rows(folder / f"{split}.jsonl", **settings)
    task.check_rows(pipeline.model, rows)
    if split == "test":
        TrainingClips.read(model_folder).check(rows, protocol.name)
    output_dir.mkdir(parents=True, exist_ok=True)
    train_file, train_set = folder / "train.jsonl", None
    if task.compares_with_training and train_file.exists():
        train_set = task.open_rows(train_file, **settings)
    measuring = Measuring(benchmark=protocol, alpro=alpro, train_set=train_set, output_dir=output_dir)
    deviations = [line for line in prepared["deviations"] if line.startswith(f"{split}: ")]
    name = "alpro"
    if not alpro:
        name = protocol_name(
            protocol.name,
            num_missing=len(prepared["splits"][split]["missing"]),
            deviates=bool(deviations),
            decodes_on_gpu=pipeline.collator.decode_device != "cpu",
            split=split,
            drop_modalities=pipeline.collator.drop_modalities,
            **task.protocol_suffixes(pipeline, measuring),
        )
    measured = task.evaluate(pipeline, rows, replace(measuring, protocol=name))
    audio: AudioFeatureExtractor | None = pipeline.processor.feature_extractor
    if pipeline.state.is_main_process:
        write_rows(output_dir / "results.json", measured.rows)
        for file, write in measured.files.items():
            write(output_dir / file)
        write_metrics(
            output_dir / "metrics.json",
            metrics=measured.metrics,
            protocol=measured.protocol,
            counts=measured.counts,
            intervals=measured.intervals,
            primary_metric=measured.primary_metric,
            selection_split=_read(model_folder or "", "run.json").get("selection_split"),
            audio_crop=None if audio is None else audio.crop_rule,
            precision=pipeline.precision,
            decoder=pipeline.collator.decoder,
            bad_samples=as_json(measured.bad_samples),
            deviations=deviations,
            signatures=measured.signatures,
        )
    if pipeline.state.is_local_main_process:
        shutil.rmtree(output_dir / PARTIAL_FOLDER, ignore_errors=True)
    return measured


def prepared_folder(
    data: str | os.PathLike[str], output_dir: str | os.PathLike[str], *, follow_links: bool = False
) -> tuple[Path, Path | None, str]:
    """
    Return the folder of a benchmark's manifests; for ALPRO's layout (`txt/`, `videos/`), write them first.

    Args:
        data (`str`): A folder that `simple-multimodal prepare` wrote, or ALPRO's `data/<task>`.
        output_dir (`str`): Folder in which `manifests/` is written if necessary.
        follow_links (`bool`, *optional*, defaults to `False`): See [`prepare_benchmark`].

    Returns:
        The folder, the folder of the videos if it is known, and the name of the protocol.

    Raises:
        ValueError: If `data` is neither.
    """
    data = Path(data)
    if not data.exists():
        raise InputError(f"{data}: {no_such_folder(data)}")
    if data.is_file():
        raise InputError(
            f"{data} is a file; `infer` takes the folder of a prepared benchmark. To measure on your own manifest: "
            f"python train.py --do_eval --model_name_or_path MODEL --validation_file {data} "
            "--output_dir OUT"
        )
    folder, videos = data, data / "videos"
    if not (data / "protocol.json").is_file():
        folder = Path(output_dir, "manifests")
        benchmark = data.name.removesuffix("_ret")
        if benchmark not in BENCHMARKS or not (data / "txt").is_dir():
            raise InputError(
                f"{data} was not written by `simple-multimodal prepare` (no protocol.json) and is not in ALPRO's "
                f"layout (a folder such as msrvtt_ret with txt/ and videos/)."
            )
        splits = _listed_splits(data / "txt")
        preparation = from_main(
            lambda: prepare_benchmark(
                benchmark, data / "txt", folder, videos=videos, splits=splits, follow_links=follow_links
            )
        )
        if preparation.deviations:
            logger.warning(preparation.to_text())
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))["protocol"]
    return folder, videos if videos.is_dir() else None, protocol


def _listed_splits(folder: Path) -> list[str]:
    names = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
    return [split for split, name in names.items() if (folder / name).is_file()]


def _read(folder: str | os.PathLike[str], name: str) -> dict:
    path = Path(folder, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
