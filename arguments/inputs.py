"""Make the task, rows and model of a run from its arguments. The parser does not import this module."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from simple_multimodal.assembly import check_inputs
from simple_multimodal.data.bad_samples import check_files
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.defaults import DEFAULT_TASK
from simple_multimodal.errors import InputError, as_input_errors
from simple_multimodal.missing import check_found
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.lora import prepare_trainable
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks import models
from simple_multimodal.tasks.registry import Rows, Task, TaskOptions, get_task
from simple_multimodal.tasks.training_clips import TrainingClips
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.run_record import check_test_set, make_run_record, selection_split

from .data_arguments import DataArguments
from .model_arguments import ModelArguments, find_config


class Splits(NamedTuple):
    """
    The rows of a run; `None` for a split that the run does not read.

    Args:
        training, evaluation, test ([`RowDataset`], *optional*): Rows of the split.
    """

    training: RowDataset | None
    evaluation: RowDataset | None
    test: RowDataset | None

    @property
    def captions(self) -> Callable[[], Iterable[str]]:
        """Function that yields the texts to train a tokenizer on: the captions of the first split that is read."""
        return next(split.captions for split in self if split is not None)


def make_task(
    model_args: ModelArguments, data_args: DataArguments, options: TaskOptions, args: MultimodalTrainingArguments
) -> Task:
    """
    Make the task of a run from its options.

    Raises:
        ValueError: If the task does not exist, **or** a file of an option cannot be read.
    """
    kind = get_task(model_args.task or DEFAULT_TASK)
    if not kind.reads_text:
        model_args.leave_out_text(kind.name)
    configs = {name: value for name, value in vars(options).items() if name.endswith("_config_name") and value}
    task = kind(replace(options, **{name: find_config(value) for name, value in configs.items()}))
    if args.do_eval:
        task.open_files(data_args.find_manifest, lambda path: _open_rows(type(task), path, model_args, data_args))
    return task


def open_splits(
    task: Task, model_args: ModelArguments, data_args: DataArguments, args: MultimodalTrainingArguments
) -> Splits:
    """
    Open the rows that a run reads. No media file is opened.

    Raises:
        ValueError: If a manifest or dataset cannot be read, rows are invalid, **or** their files do not exist, see
            [`check_files`].
    """

    def open_split(name: str, file: str, max_samples: int | None, is_read: bool) -> RowDataset | None:
        if not is_read:
            return None
        from_manifest = data_args.dataset_name is None
        rows: Rows = data_args.find_manifest(file) if from_manifest else load_split(name, model_args, data_args)
        return _open_rows(type(task), rows, model_args, data_args, max_samples)

    return Splits(
        open_split("train", data_args.train_file, data_args.max_train_samples, bool(args.do_train)),
        open_split("validation", data_args.validation_file, data_args.max_eval_samples, args.evaluates),
        open_split("test", data_args.test_file, data_args.max_predict_samples, args.do_predict),
    )


def load_split(name: str, model_args: ModelArguments, data_args: DataArguments) -> datasets.Dataset:
    """
    Load a split of the dataset that `--dataset_name` names, and rename its columns.

    Args:
        name (`str`): Which of the flags `--*_split` to follow: `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: If the dataset, the split or a column does not exist.
    """
    source = str(data_args.dataset_name)
    split = vars(data_args)[f"{name}_split"] or name
    check_found(source, "--dataset_name", kind="dataset")
    is_one_split = Path(source, datasets.config.DATASET_STATE_JSON_FILENAME).is_file()
    try:
        if is_one_split or Path(source, datasets.config.DATASETDICT_JSON_FILENAME).is_file():  # by `save_to_disk`
            saved = datasets.load_from_disk(source)
            dataset = _select(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, split)
        else:
            dataset = datasets.load_dataset(
                source, data_args.dataset_config_name, split=split, cache_dir=model_args.cache_dir
            )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"--dataset_name {source} cannot be loaded: {error}") from error
    except ValueError as error:  # unknown configuration or split
        hint = f"--{name}_split is {split!r}, --dataset_config_name {data_args.dataset_config_name!r}."
        if is_one_split:
            hint = (
                "A folder written by `Dataset.save_to_disk` holds one split, which is called 'train', but "
                f"--{name}_split is {split!r}. Give a part of it, such as 'train[90%:]', or save a `DatasetDict`."
            )
        raise InputError(f"--dataset_name {source}: {str(error).rstrip('.')}. {hint}") from error
    names = data_args.renamed_columns
    if missing := [column for column in names if column not in dataset.column_names]:
        raise InputError(
            f"--rename_columns names {', '.join(missing)}; the columns of {source} are "
            f"{', '.join(dataset.column_names)}."
        )
    return dataset.rename_columns(names)


def _select(splits: Mapping[str, datasets.Dataset], instruction: str) -> datasets.Dataset:
    """Select the rows that `instruction`, such as `train[:1000]`, names in saved splits, as `load_dataset` does."""
    sizes = {name: len(split) for name, split in splits.items()}
    parts = datasets.ReadInstruction.from_spec(instruction).to_absolute(sizes)
    return datasets.concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def describe_run(
    task: Task,
    splits: Splits,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: MultimodalTrainingArguments,
) -> dict[str, Any]:
    """
    Describe a run for `run.json`, see [`make_run_record`].

    Raises:
        ValueError: If the test split would select the checkpoint without `--select_on_test`, **or** `--select_on_test`
            is given in vain.
    """
    selected_on = selection_split(
        splits.evaluation,
        selects=args.selects,
        on_test=data_args.select_on_test,
        source=model_args.model_name_or_path,
    )
    return make_run_record(
        {**vars(model_args), **vars(data_args), **vars(task.options), **args.to_sanitized_dict()},
        data=splits._asdict(),
        selection_split=selected_on,
        precision=args.precision,
    )


def make_model(
    task: Task,
    splits: Splits,
    checkpoint: Path | None,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: MultimodalTrainingArguments,
) -> tuple[TowerModel, MultimodalProcessor]:
    """
    Load the model and the processor of a checkpoint or saved model, or make new ones from pretrained towers and
    configs. Then freeze towers and add adapters.

    Raises:
        ValueError: If the arguments do not fit the model, **or** the model was trained on clips of the test split.
        OSError: If a saved model has no safetensors weights.
    """
    source = checkpoint or model_args.model_name_or_path
    if checkpoint is None:
        for name, place in model_args.named_places.items():
            check_found(place, f"--{name}", cache_dir=model_args.cache_dir)
    if splits.test is not None:
        check_test_set(splits.test, splits.training, source)
    if splits.evaluation is not None and not args.do_train:
        TrainingClips.read(source).warn_about(splits.evaluation)
    shared: dict[str, Any] = {
        "task": task,
        "train_dataset": splits.training,
        "is_trained": args.do_train,
        "processor_settings": data_args.processor_settings,
    }
    with as_input_errors():  # transformers refuses some settings of towers
        if source is None:
            model, processor = models.build(**shared, **model_args.building_settings, captions=splits.captions)
        else:
            model, processor = models.load(source, **shared, **model_args.loading_settings)
    check_inputs(model, processor, data_args.max_seq_length, model_args.changed_config_settings, model_args.modalities)
    prepare_trainable(model, model_args.freeze, model_args.lora, resumes=checkpoint is not None)
    return model, processor


def _open_rows(
    task: type[Task], rows: Rows, model_args: ModelArguments, data_args: DataArguments, max_samples: int | None = None
) -> RowDataset:
    opened = task.open_rows(
        rows,
        modalities=model_args.modalities,
        cache_dir=model_args.cache_dir,
        roots=data_args.roots,
        follow_links=data_args.follow_links,
        max_samples=max_samples,
    )
    check_files(opened)
    return opened
