"""What a run is made of, written as `run.json`, and whether two runs are one."""

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

# Arguments that may change between the start and the continuation of one run: they do not change what it computes.
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
        arguments (`Mapping`): every resolved argument, JSON values.
        command (`Sequence[str]`, *optional*): words of the command line; those of the process when not given, and
            none in a notebook.
        data (`Mapping[str, RowDataset | None]`): the data sets that are used, by name.
        selection_split (`str`, *optional*): see [`selection_split`].
        precision (`str`, *optional*): what the model computes in, also where it is evaluated.

    Returns:
        `dict`: the content of `run.json`.
    """
    if command is None:  # a notebook has none
        command = sys.argv if "__file__" in vars(sys.modules["__main__"]) else []
    shown = re.sub(r"(--hub[_-]token(?: |=))\S+", r"\1<HUB_TOKEN>", shlex.join(command))  # no secret into a file
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
        model ([`TowerModel`]): the model; where it was loaded from is where the run starts from.
        args ([`MultimodalTrainingArguments`]): arguments of the run.
        train_set ([`RowDataset`], *optional*): rows to train on.
        eval_sets ([`RowDataset`] or `Mapping[str, RowDataset]`, *optional*): rows to evaluate on, one set or several.
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
    The split by whose numbers the weights that a run ends with, or starts from, were chosen; `None`: by none.

    Args:
        eval_set ([`RowDataset`], *optional*): evaluation rows. Beside a `protocol.json` that `simple-multimodal
            prepare` wrote it is known of which split they are; others are taken for validation.
        selects (`bool`): whether evaluations decide which weights the run ends with.
        on_test (`bool`, *optional*): whether test clips may; `None`: they may, and need not.
        source (`str`, *optional*): the saved model that the run starts from, which has a `run.json` of its own.

    Raises:
        ValueError: If test clips would decide and may not, or may and do not.
    """
    split = None
    if selects and eval_set is not None:
        split = prepared_split(eval_set.manifest_file, eval_set.clip_names()) or "validation"
        if split == "test" and on_test is False:
            raise InputError(
                f"{eval_set.manifest_file} holds test clips, by whose numbers the checkpoint would be chosen "
                "(--load_best_model_at_end, --early_stopping_patience, or a rate reduced on plateaus). Choose on the "
                "validation split, or pass --select_on_test True: every result then says so."
            )
    if on_test and split != "test":
        raise InputError(
            "--select_on_test has no effect: no test split of a prepared benchmark chooses a checkpoint here. Leave "
            "it out."
        )
    path = Path(source or "", RUN_FILE)
    earlier = (
        json.loads(path.read_text(encoding="utf-8")).get("selection_split") if source and path.is_file() else None
    )
    return earlier if split is None or earlier == "test" else split


def write_run_record(folder: str | os.PathLike, record: dict) -> None:
    """Write `run.json` into a folder, which is made if need be; a killed process leaves all of it or nothing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with write_atomically(Path(folder, RUN_FILE)) as temporary:
        temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_test_set(test_set: RowDataset, train_set: RowDataset | None, source: str | os.PathLike[str] | None) -> None:
    """
    Refuse the test split of a benchmark to a model that has seen clips of it in training.

    Args:
        test_set ([`RowDataset`]): Rows to test with.
        train_set ([`RowDataset`], *optional*): Rows to train with before that.
        source (`str`, *optional*): The saved model that the run starts from.

    Raises:
        ValueError: If a clip is in both; see [`TrainingClips.check`].
    """
    if (protocol := prepared_protocol(test_set.manifest_file)) is not None:
        TrainingClips.read(source).with_rows(train_set).check(test_set, protocol.name)


def differences_from(record: dict, folder: str | os.PathLike) -> list[str]:
    """Names of the arguments and data sets in which a record differs from the `run.json` of a folder, if it has one;
    none if the two are one run.
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
