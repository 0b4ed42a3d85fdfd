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

DERIVED_ARGUMENTS = frozenset({"train_batch_size", "eval_batch_size"})
"""Values among the arguments that follow from flags, and are not flags themselves."""

SPLIT_ARGUMENTS = {"training": "train", "evaluation": "validation"}
"""Start of the arguments that name the rows, such as `train_file`, by the name of the dataset in a record."""


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
        split = prepared_split(eval_set.manifest_file, eval_set.clip_cells()) or "validation"
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
    earlier = ((source and read_run_record(source)) or {}).get("selection_split")
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


def read_run_record(folder: str | os.PathLike) -> dict | None:
    """Return the content of the `run.json` of a folder; `None` without one."""
    path = Path(folder, RUN_FILE)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def changed_arguments(earlier: dict, record: dict) -> dict[str, dict[str, Any]]:
    """
    Compare the descriptions of two runs.

    Args:
        earlier (`dict`): Description of the earlier run, see [`make_run_record`].
        record (`dict`): Description of the later run.

    Returns:
        `dict[str, dict]`: The `old` and `new` value of each argument that differs and may change the weights.
        Rows that changed under the same name are listed as `rows of train_file`, with their fingerprints.
    """
    arguments = _changes(_arguments(earlier), _arguments(record))
    old, new = _rows(earlier), _rows(record)
    both = old.keys() & new.keys()  # adding --do_eval changes nothing about the training
    rows = _changes({name: old[name] for name in both}, {name: new[name] for name in both})
    return arguments | {f"rows of {name}": values for name, values in rows.items() if name not in arguments}


def _changes(old: dict, new: dict) -> dict[str, dict[str, Any]]:
    names = sorted(old.keys() | new.keys())
    return {name: {"old": old.get(name), "new": new.get(name)} for name in names if old.get(name) != new.get(name)}


def _arguments(record: dict) -> dict[str, Any]:
    skipped = INCIDENTAL_ARGUMENTS | DERIVED_ARGUMENTS
    return {name: value for name, value in record["arguments"].items() if name not in skipped}


def _rows(record: dict) -> dict[str, str]:
    """Return the fingerprints of the rows, by the argument that names them."""
    kind = "split" if record["arguments"].get("dataset_name") else "file"
    names = {name: f"{SPLIT_ARGUMENTS[name]}_{kind}" if name in SPLIT_ARGUMENTS else name for name in record["data"]}
    return {names[name]: value for name, value in record["data"].items() if name != "test"}


def earlier_parts(earlier: dict, record: dict, step: int) -> list[dict[str, Any]]:
    """
    Describe the parts of a resumed run that ran with other arguments.

    Args:
        earlier (`dict`): Content of the `run.json` of the checkpoint that the run resumes from.
        record (`dict`): Description of the resumed run, see [`make_run_record`].
        step (`int`): Step of the checkpoint.

    Returns:
        `list[dict]`: For each part its `command`, `first_step`, `last_step`, and `changed_arguments`: the `old` value
        in that part and the `new` one in the resumed run.
    """
    changes = changed_arguments(earlier, record)
    parts = []
    for part in earlier.get("earlier_parts", []):
        # Stated relative to the run that the checkpoint is from: what that one did not change is as in that run.
        old = {name: values["old"] for name, values in (changes | part["changed_arguments"]).items()}
        new = {name: values["new"] for name, values in (part["changed_arguments"] | changes).items()}
        parts.append({**part, "changed_arguments": _changes(old, new)})
    first_step = parts[-1]["last_step"] + 1 if parts else 1
    if changes and step >= first_step:
        steps = {"first_step": first_step, "last_step": step}
        parts.append({"command": earlier["command"], **steps, "changed_arguments": changes})
    return parts


def describe_parts(record: dict) -> list[str]:
    """Return a sentence for each earlier part of a run with other arguments than the command in its record."""
    lines = []
    for part in record.get("earlier_parts", []):
        first, last, names = part["first_step"], part["last_step"], part["changed_arguments"]
        steps = f"Step {first:,}" if first == last else f"Steps {first:,}-{last:,}"
        if names:
            lines.append(f"{steps} ran with other {', '.join(names)}.")
    return lines
