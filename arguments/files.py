"""Check that the named files exist, before the models are imported, which takes seconds."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from simple_multimodal.errors import InputError
from simple_multimodal.missing import Named, no_such_folder
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.training.arguments import MultimodalTrainingArguments

from .data_arguments import DataArguments
from .model_arguments import ModelArguments

TOY_DATA = (
    "make some with `simple-multimodal toy datasets/small --num_train_clips 24`, and pass --data_root datasets/small "
    "--train_file train.jsonl --validation_file validation.jsonl."
)


def check_files(
    model_args: ModelArguments,
    data_args: DataArguments,
    task_options: TaskOptions,
    args: MultimodalTrainingArguments,
) -> None:
    """
    Check that the files and folders that a run reads exist. Names that may be on the hub are not checked.

    Raises:
        ValueError: If one does not exist; the message names the flag and similar names.
    """
    reads_manifests = data_args.dataset_name is None
    is_read = {
        "train_file": reads_manifests and args.do_train,
        "validation_file": reads_manifests and args.evaluates,
        "test_file": reads_manifests and args.do_predict,
    }
    for part in (model_args, data_args, task_options):
        for field in fields(part):
            kind, value = field.metadata.get("names"), vars(part)[field.name]
            if kind is None or not value:
                continue
            if kind is Named.MANIFEST and not is_read.get(field.name, args.do_eval):
                continue
            names: Sequence[str] = [value] if isinstance(value, str) else value
            for name in names:
                path = data_args.find_manifest(name) if kind is Named.MANIFEST else name
                if value == field.default and not Path(path).exists():
                    raise InputError(
                        f"{path} (the default of --{field.name}): {no_such_folder(path)} Pass --{field.name}; without "
                        f"data of your own, {TOY_DATA}"
                    )
                kind.check(path, f"--{field.name}")
    for column, root in data_args.roots.items():
        if root is not None:
            Named.PATH.check(root, f"--{column}_root")
