"""Description of a run, written as `run.json`, and its comparison with another run."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import Precision
from simple_multimodal.evaluation.protocols import prepared_protocol, prepared_split
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.tasks.training_clips import TrainingClips
from simple_multimodal.training.arguments import MultimodalTrainingArguments

RUN_FILE = "run.json"

PACKAGES = ("simple_multimodal", "torch", "transformers", "accelerate", "datasets", "av", "torchcodec", "numpy")

# Arguments that may change when a run is resumed: they do not change what it computes.
INCIDENTAL_ARGUMENTS = frozenset(
    {
        "config", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "cache_dir", "collator_threads",
        "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
        "dataloader_prefetch_factor", "local_rank", "disable_tqdm", "log_level", "log_level_replica", "report_to",
        "run_name", "logging_dir", "logging_steps", "logging_strategy", "logging_first_step", "save_steps",
        "save_strategy", "save_total_limit", "max_nan_steps", "max_bad_fraction", "sample_timeout_seconds",
        "loader_memory_gigabytes", "do_train", "do_eval", "do_predict", "push_to_hub", "hub_model_id", "hub_token",
        "follow_links", "test_file", "max_predict_samples",
    }
)  # fmt: skip


def make_run_record(
    arguments: Mapping[str, Any],
    *,
    data: Mapping[str, RowDataset | None],
    command: Sequence[str] | None = None,
    selection_split: str | None = None,
    precision: Precision | None = None,
) -> dict:
    """
    Describe a run.

    Args:
        arguments (`Mapping`): All resolved arguments, as JSON values.
        command (`Sequence[str]`, *optional*): Words of the command line; by default those of the process, and none
            in a notebook.
        data (`Mapping[str, RowDataset | None]`): Datasets that the run uses, by name.
        selection_split (`str`, *optional*): Split that selects the weights, see [`selection_split`].
        precision (`str`, *optional*): Precision that the model computes in, in training and evaluation.

    Returns:
        `dict`: Content of `run.json`.
    """
    if command is None:  # a notebook has none
        command = sys.argv if "__file__" in vars(sys.modules["__main__"]) else []
    shown = re.sub(r"(--hub[_-]token(?: |=))\S+", r"\1<HUB_TOKEN>", shlex.join(command))  # hide the secret
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    fingerprints = {name: dataset.fingerprint for name, dataset in data.items() if dataset is not None}
    return {
        "command": shown,
        "arguments": arguments,
        "data": fingerprints,
        "selection_split": selection_split,
        "precision": precision,
        "versions": versions,
    }


def describe_training(
    model: PreTrainedModel,
    args: MultimodalTrainingArguments,
    train_set: RowDataset | None,
    eval_sets: RowDataset | Mapping[str, RowDataset] | None,
) -> dict[str, Any]:
    """
    Describe a run that is started from Python, see [`make_run_record`].

    Args:
        model ([`TowerModel`]): Model to train; the run starts from the path it was loaded from.
        args ([`MultimodalTrainingArguments`]): Arguments of the run.
        train_set ([`RowDataset`], *optional*): Rows to train on.
        eval_sets ([`RowDataset`] or `Mapping[str, RowDataset]`, *optional*): Rows to evaluate on, in one
            set or several.
    """
    source = model.name_or_path or None
    sets = eval_sets if isinstance(eval_sets, Mapping) else {"evaluation": eval_sets}
    chosen = [selection_split(rows, selects=args.selects, on_test=None, source=source) for rows in sets.values()]
    return make_run_record(
        {**args.to_sanitized_dict(), "model_name_or_path": source},
        data={"training": train_set, **sets},
        selection_split="test" if "test" in chosen else next(filter(None, chosen), None),
        precision=args.precision,
    )


def selection_split(
    eval_set: RowDataset | None, *, selects: bool, on_test: bool | None, source: str | os.PathLike | None
) -> str | None:
    """
    Return the split that selects the final weights of a run, or selected its initial ones; `None` without selection.

    Args:
        eval_set ([`RowDataset`], *optional*): Evaluation rows. Their split is known if their manifest is next to a
            `protocol.json` that `simple-multimodal prepare` wrote; otherwise it counts as validation.
        selects (`bool`): Whether evaluations determine the final weights.
        on_test (`bool`, *optional*): Whether the test split selects the weights; `None` allows both.
        source (`str`, *optional*): Saved model that the run starts from, with its own `run.json`.

    Raises:
        ValueError: If the test split would select the weights without `on_test`, or `on_test` is given in vain.
    """
    split = None
    if selects and eval_set is not None:
        split = prepared_split(eval_set.manifest_file, eval_set.clip_names()) or "validation"
        if split == "test" and on_test is False:
            raise InputError(
                f"{eval_set.manifest_file} holds test clips, which would select the checkpoint "
                "(--load_best_model_at_end, --early_stopping_patience, or --lr_scheduler_type reduce_lr_on_plateau). "
                "Use the validation split, or pass --select_on_test True, which is recorded in every result."
            )
    if on_test and split != "test":
        raise InputError(
            "--select_on_test has no effect: no test split of a prepared benchmark selects a checkpoint here. Leave "
            "it out."
        )
    path = Path(source or "", RUN_FILE)
    earlier = (
        json.loads(path.read_text(encoding="utf-8")).get("selection_split") if source and path.is_file() else None
    )
    return earlier if split is None or earlier == "test" else split


def write_run_record(folder: str | os.PathLike, record: dict) -> None:
    """Write `run.json` atomically into a folder, which is created if necessary."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with write_atomically(Path(folder, RUN_FILE)) as temporary:
        temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_test_set(test_set: RowDataset, train_set: RowDataset | None, source: str | os.PathLike[str] | None) -> None:
    """
    Check that a model was not trained on clips of the test split of a benchmark.

    Args:
        test_set ([`RowDataset`]): Rows to test with.
        train_set ([`RowDataset`], *optional*): Rows to train with before that.
        source (`str`, *optional*): Saved model that the run starts from.

    Raises:
        ValueError: If it was; see [`TrainingClips.check`].
    """
    if (protocol := prepared_protocol(test_set.manifest_file)) is not None:
        TrainingClips.read(source).with_rows(train_set).check(test_set, protocol.name)


def differences_from(record: dict, folder: str | os.PathLike) -> list[str]:
    """Return the names of the arguments and datasets in which a record differs from the `run.json` of a folder, if it
    has one; none if they describe the same run.
    """
    path = Path(folder, RUN_FILE)
    if not path.is_file():
        return []
    other = json.loads(path.read_text(encoding="utf-8"))

    def essence(values: dict) -> dict:
        arguments = {k: v for k, v in values["arguments"].items() if k not in INCIDENTAL_ARGUMENTS}
        return {**arguments, **{f"data of {name}": value for name, value in values["data"].items() if name != "test"}}

    first, second = essence(record), essence(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
