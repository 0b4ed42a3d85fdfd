"""Parser of `train.py`: dataclass default < YAML file < command line. Old flag names are mapped only here."""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import functools
import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from simple_multimodal.defaults import DEFAULT_TASK
from simple_multimodal.flags import GROUPS, TRAINER
from simple_multimodal.missing import Named, check_found
from simple_multimodal.tasks.flags import flags_of_tasks, options_from_flags
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.training.arguments import WITHOUT_EFFECT, MultimodalTrainingArguments

from .data_arguments import DataArguments
from .files import check_files
from .model_arguments import ModelArguments, find_config

USAGE = "%(prog)s [--config FILE.yaml] [--flag value ...]     (YAML: `flag: value` lines; the command line wins)"

RENAMED_FLAGS = {
    "drop_modality": "drop_modalities",
    "evaluation_strategy": "eval_strategy",
    "geometry": "resize_mode",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "mae_feature_extractor_name": "audio_processor_name",
    "matching_top_k": "rerank_top_k",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "videomae_feature_extractor_name": "video_processor_name",
    "warmup_ratio": "warmup_steps",
}
"""Old names of flags, and their names now."""

FLAGS_WITH_HINT = ("no_cuda", "per_gpu_eval_batch_size", "per_gpu_train_batch_size")
"""Old flags that transformers removed: using one prints a line that names the new one."""

FLAGS_WITHOUT_EFFECT = ("fp16_backend", "half_precision_backend")
"""Old flags for choices that no longer exist."""

# Help texts of transformers' flags whose first sentence is not enough.
SHORT_DESCRIPTIONS = {
    "output_dir": "Folder for checkpoints, the final model and the results.",
    "per_device_train_batch_size": "Training batch size per device.",
    "per_device_eval_batch_size": "Evaluation batch size per device.",
    "num_train_epochs": "Number of passes over the training samples.",
    "max_steps": "Number of optimizer steps; overrides --num_train_epochs. -1: no limit.",
    "lr_scheduler_type": "Scheduler: linear, cosine, constant, constant_with_warmup, polynomial, ... (SchedulerType).",
    "lr_scheduler_kwargs": "Arguments of the scheduler, as JSON.",
    "warmup_steps": "Linear warm-up: a number of steps if 1 or more, a fraction of all steps if below 1.",
    "optim": "Optimizer: adamw_torch, adamw_torch_fused, sgd, adafactor, lion_32bit, ... (OptimizerNames).",
    "optim_args": "Arguments of the optimizer: key=value,key=value.",
    "gradient_accumulation_steps": "Number of batches to accumulate before each optimizer step.",
    "activation_checkpointing_kwargs": "Arguments of activation checkpointing, as JSON.",
    "eval_steps": "Evaluate every N optimizer steps; below 1: a fraction of all steps. Default: --logging_steps.",
    "eval_delay": "Epochs or steps (the unit of --eval_strategy) before the first evaluation.",
    "save_steps": "Save every N optimizer steps; below 1: a fraction of all steps.",
    "save_total_limit": "Keep at most N checkpoints; the best one is never deleted.",
    "enable_jit_checkpoint": "Not supported, and not needed: a run that gets SIGTERM saves a checkpoint without it.",
    "report_to": "Where to report results: tensorboard, wandb, ..., all, or none.",
    "debug": "Debug features: underflow_overflow, tpu_metrics_debug, or both.",
    "log_level": "Log level of the main process: detail, debug, info, warning, error, critical or passive.",
    "log_level_replica": "Log level of the other processes.",
    "disable_tqdm": "Hide progress bars, which are shown only in a terminal.",
    "include_num_input_tokens_seen": "Input tokens to count: all, non_padding or no.",
    "train_sampling_strategy": "Order of the training samples.",
    "dataloader_prefetch_factor": "Number of batches that each loader process prepares in advance.",
    "resume_from_checkpoint": "Checkpoint folder to resume from.",
    "fsdp_config": "FSDP settings: JSON, or the path of a JSON file.",
    "deepspeed": "DeepSpeed settings: JSON, or the path of a JSON file.",
    "accelerator_config": "Accelerate settings: JSON, or the path of a JSON file.",
    "ddp_bucket_cap_mb": "Bucket size of DistributedDataParallel, in megabytes.",
    "hub_private_repo": "Make the hub repository private.",
}

_YAML_TAG = "tag:yaml.org,2002:"
_YAML_TAGS = {f"{_YAML_TAG}{kind}" for kind in ("str", "int", "float", "bool", "timestamp", "value", "merge", "seq")}

T = TypeVar("T")
Effect = Callable[[argparse.Namespace, Any], None]


def parse_args(
    argv: Sequence[str] | None = None, *, checks_files: bool = False
) -> tuple[ModelArguments, DataArguments, TaskOptions, MultimodalTrainingArguments]:
    """
    Parse the command line of `train.py`, whose flags are the fields of the three dataclasses and the options of all
    registered tasks.

    A user error ends the process with one line on stderr and exit code 2.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; `sys.argv[1:]` by default.
        checks_files (`bool`, *optional*, defaults to `False`): Whether missing files and folders are errors.

    Returns:
        `tuple[ModelArguments, DataArguments, TaskOptions, MultimodalTrainingArguments]`: The parsed values.
    """
    task_flags = flags_of_tasks("train")
    parser = CommandLineParser(ModelArguments, DataArguments, task_flags, MultimodalTrainingArguments)
    namespace = parser.parse(sys.argv[1:] if argv is None else argv)
    model_args = parser.fill(ModelArguments, namespace)
    data_args = parser.fill(DataArguments, namespace)
    with parser.user_errors():
        if checks_files and model_args.task is None and model_args.model_name_or_path is not None:
            check_found(model_args.model_name_or_path, "--model_name_or_path", cache_dir=model_args.cache_dir)
        model_args.task = model_args.task or _default_task(model_args)
        task_options = options_from_flags(model_args.task, parser.fill(task_flags, namespace))
    training_args = parser.fill(MultimodalTrainingArguments, namespace)
    has_weights = model_args.model_name_or_path is not None or model_args.pretrained_towers
    if not training_args.do_train and not has_weights:
        parser.error("a run without --do_train needs a saved model; pass its folder as --model_name_or_path.")
    if checks_files:
        with parser.user_errors():
            check_files(model_args, data_args, task_options, training_args)
    return model_args, data_args, task_options, training_args


def _default_task(model_args: ModelArguments) -> str:
    """Return the task that the saved model was trained for; without one, the default."""
    if model_args.model_name_or_path is None:
        return DEFAULT_TASK
    try:
        Named.MODEL.check(model_args.model_name_or_path)
        from simple_multimodal.tasks.models import saved_task  # takes seconds, so other runs do not import it
        from simple_multimodal.tasks.registry import get_task

        default = get_task(DEFAULT_TASK)
        return saved_task(model_args.model_name_or_path, default=default, cache_dir=model_args.cache_dir).name
    except ValueError:  # loading the model will say why it cannot be read
        return DEFAULT_TASK


class CommandLineParser(HfArgumentParser):
    """
    An `HfArgumentParser` that reads a flat YAML file before the command line and rejects unknown names.

    The YAML file is turned into command-line tokens, so that the same checks of type and choice apply.

    Args:
        dataclass_types (`type`): The dataclasses whose fields are the flags.
    """

    def __init__(self, *dataclass_types: type):
        super().__init__([], prog="train.py", usage=USAGE, allow_abbrev=False, formatter_class=_OneLineFormatter)
        self.add_argument("--config", help="YAML file of flags, found in the working directory or beside train.py.")
        self._context = ""
        self._headed_groups = {heading: self.add_argument_group(heading) for heading in GROUPS}
        names = {field.name for dtype in dataclass_types for field in dataclasses.fields(dtype)}
        for dtype in dataclass_types:
            self._add_fields(dtype, skip={old for old, new in RENAMED_FLAGS.items() if new in names})
        self._add_old_flags()

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """
        Parse the YAML file that `--config` names, if any, and then the tokens.

        Args:
            argv (`Sequence[str]`): Command-line tokens.

        Returns:
            `argparse.Namespace`: A value for every field of the dataclasses.
        """
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", action="append", nargs="?", default=[])
        config_files = [name for name in finder.parse_known_args(argv)[0].config if name is not None]
        if len(config_files) > 1:
            self.error("--config is given more than once; give a single file.")
        namespace = argparse.Namespace()
        for name in config_files:
            self._context = f"{name}: "
            self._parse_tokens(self._config_to_argv(name), namespace)
            self._context = ""
        self._parse_tokens(argv, namespace)
        return namespace

    def fill(self, dtype: type[T], namespace: argparse.Namespace) -> T:
        """Build a dataclass from its fields in `namespace`; report a `ValueError` of its checks as a user error."""
        values = vars(namespace)
        names = [field.name for field in dataclasses.fields(dtype)]  # type: ignore[arg-type]
        with self.user_errors():
            return dtype(**{name: values[name] for name in names if name in values})

    @contextlib.contextmanager
    def user_errors(self) -> Iterator[None]:
        """End the process with the message of a `ValueError` that is raised inside, see [`error`]."""
        try:
            yield
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """End the process with one line on stderr and exit code 2."""
        line = " ".join(message.split())
        line = re.sub(r"^argument (--\w+)\S*:", r"\1:", line)
        print(f"{self.prog}: error: {self._context}{line}", file=sys.stderr)
        sys.exit(2)

    def _add_fields(self, dtype: type, *, skip: set[str]) -> None:
        stock_metadata = {field.name: field.metadata for field in dataclasses.fields(TrainingArguments)}
        type_hints = get_type_hints(dtype)
        for field in dataclasses.fields(dtype):
            if not field.init or field.name in skip:
                continue
            group = self._headed_groups[field.metadata.get("group", TRAINER)]
            metadata = {key: field.metadata[key] for key in ("help", "choices", "metavar") if key in field.metadata}
            if field.metadata == stock_metadata.get(field.name):
                metadata["help"] = SHORT_DESCRIPTIONS.get(field.name, _first_sentence(metadata["help"]))
            if type_hints[field.name] == bool | None:  # `--do_eval` alone means True, as for other booleans
                metadata |= {"nargs": "?", "const": True}
            field = copy.copy(field)
            field.type = field.metadata.get("read", type_hints[field.name])
            field.metadata = types.MappingProxyType(metadata)
            self._parse_dataclass_field(group, field)

    def _add_old_flags(self) -> None:
        for old, new in RENAMED_FLAGS.items():
            action = self._option_string_actions[f"--{new}"]
            self._add_old_flag(
                old,
                effect=functools.partial(_store, new),
                type=share if old == "warmup_ratio" else action.type,
                nargs=action.nargs,
                const=action.const,
                hint=f"--{old} was removed from transformers; it is taken as --{new}."
                if old in FLAGS_WITH_HINT
                else None,
            )
        for old in FLAGS_WITHOUT_EFFECT:
            hint = f"--{old} was removed from transformers and has no effect; set the precision with --fp16 or --bf16."
            self._add_old_flag(old, effect=lambda namespace, value: None, hint=hint)
        self._add_old_flag("group_by_length", effect=_group_by_length, type=string_to_bool, nargs="?", const=True)
        self._add_old_flag("logging_dir", effect=_set_logging_dir)

    def _add_old_flag(self, name: str, **options: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        self.add_argument(*spellings, action=_OldFlag, **options)

    def _parse_tokens(self, tokens: Sequence[str], namespace: argparse.Namespace) -> None:
        """Parse tokens; their values override those in `namespace`."""
        unknown = self.parse_known_args(list(tokens), namespace)[1]
        if unknown:
            flags = [token.split("=")[0] for token in unknown if token.startswith("--")]
            if flags:
                self.error(f"unknown argument {flags[0]!r}; {self._nearest_name(flags[0][2:], prefix='--')}")
            self.error(f"unexpected value {unknown[0]!r}; flags start with `--`.")

    def _names(self) -> list[str]:
        """Return the names of all flags that take a value, including old ones, spelled with underscores."""
        actions = self._option_string_actions.items()
        return [option[2:] for option, action in actions if action.nargs != 0 and "-" not in option[2:]]

    def _nearest_name(self, name: str, prefix: str = "") -> str:
        nearest = difflib.get_close_matches(name.replace("-", "_"), self._names(), n=1, cutoff=0.5)
        return f"did you mean '{prefix}{nearest[0]}'?" if nearest else "`train.py --help` lists all of them."

    def _config_to_argv(self, name: str) -> list[str]:
        """Turn a flat YAML mapping into tokens; nested values and unknown keys are errors."""
        try:
            with open(find_config(name), encoding="utf-8") as file:
                root = yaml.compose(file, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            self.error(
                f"cannot be read: {reason}; a config is searched for in the working directory and beside train.py."
            )
        except (yaml.YAMLError, RecursionError) as error:
            self.error(f"is not valid YAML: {error}")
        if root is None or root.tag == f"{_YAML_TAG}null":
            return []
        if not isinstance(root, yaml.MappingNode):
            self.error("the file must consist of `flag: value` lines.")
        keys = [key.value for key, _ in root.value]
        argv: list[str] = []
        for key, (_, node) in zip(keys, root.value, strict=True):
            if keys.count(key) > 1:
                self.error(f"the key {key!r} occurs more than once.")
            if key == "config" or key not in self._names():
                self.error(f"unknown key {key!r}; {self._nearest_name(key)}")
            if node.tag == f"{_YAML_TAG}null":
                continue
            option = f"--{key}"
            action = self._option_string_actions[option]
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            if not all(isinstance(item, yaml.ScalarNode) for item in items):
                self.error(f"the key {key!r} is nested; the file is flat (JSON values are quoted: '{{\"a\": 1}}').")
            if not items:
                self.error(f"the key {key!r} is an empty list; leave it out to get the default.")
            if unknown := [item.tag for item in (node, *items) if item.tag not in _YAML_TAGS]:
                self.error(f"the key {key!r} has the tag {unknown[0]!r}; values are plain text, numbers and booleans.")
            texts = [_yaml_text(item, action) for item in items]
            argv += [option, *texts] if items is node.value else [f"{option}={texts[0]}"]
        return argv


def _yaml_text(node: yaml.ScalarNode, action: argparse.Action) -> str:
    """Return a value as it is written, to be parsed like one on the command line.

    YAML 1.1 would turn `0123` and `12:30:45` into numbers and `2024-01-01` into a date. Only its words for booleans
    are translated, for flags that take a boolean.
    """
    if node.tag != f"{_YAML_TAG}bool":
        return node.value
    is_true = node.value.lower() in ("true", "yes", "on")
    if action.type is string_to_bool:
        return str(is_true)
    if not is_true and action.choices is not None and "no" in action.choices:
        return "no"
    return node.value


class _OldFlag(argparse.Action):
    """An old flag: it is absent from `--help` and from the parsed values, and changes other values instead."""

    def __init__(self, option_strings: Sequence[str], effect: Effect, hint: str | None = None, **options: Any):
        options |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        super().__init__(option_strings, **options)
        self.effect = effect
        self.hint = hint

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self.hint is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{parser.prog}: {self.hint}", file=sys.stderr)
            self.hint = None
        self.effect(namespace, values)


def _store(name: str, namespace: argparse.Namespace, value: Any) -> None:
    setattr(namespace, name, value)


def _group_by_length(namespace: argparse.Namespace, value: bool) -> None:
    namespace.train_sampling_strategy = "group_by_length" if value else "random"


def _set_logging_dir(namespace: argparse.Namespace, value: str) -> None:
    os.environ["TENSORBOARD_LOGGING_DIR"] = value


def share(value: str) -> float:
    """Read a fraction of all steps, from 0 to below 1; `warmup_steps` takes 1 and above as a number of steps."""
    number = float(value)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a fraction of all steps; give a number from 0 to below 1.")
    return number


class _OneLineFormatter(argparse.HelpFormatter):
    """Formats `--help` with one spelling per flag, its type, its description and its default."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=44, width=max(shutil.get_terminal_size((119, 24)).columns, 80))

    def add_argument(self, action: argparse.Action) -> None:
        is_negation = action.nargs == 0 and action.option_strings[0].startswith("--no_")
        is_of_no_use = action.dest in (*WITHOUT_EFFECT, "local_rank")  # only torch.distributed.launch sets this
        if not is_negation and not is_of_no_use:
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return f"{action.option_strings[0]} {_placeholder(action)}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        description = action.help or ""
        if action.choices is not None and not _fits(action.choices) and not description.count(","):
            description += f" One of {', '.join(action.choices)}."
        has_default = action.default not in (None, [], argparse.SUPPRESS) and action.default is not False
        if has_default and "default" not in description.lower():
            default = " ".join(action.default) if isinstance(action.default, list) else action.default
            description += f" (default: {default})"
        return description


def _fits(choices: Iterable[str]) -> bool:
    return len("|".join(choices)) <= 30


def _placeholder(action: argparse.Action) -> str:
    """Return how `--help` shows the value of a flag."""
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        kind = str(action.metavar)
    elif action.choices is not None and _fits(action.choices):
        kind = "|".join(action.choices)
    else:
        kind = {string_to_bool: "BOOL", int: "INT", float: "NUMBER"}.get(action.type, "TEXT")
    if action.nargs == "+":
        return f"{kind} ..."
    return f"[{kind}]" if action.nargs == "?" else kind


def _first_sentence(description: str) -> str:
    return re.split(r"(?<=[.])\s+(?=[A-Z`])", description)[0]
