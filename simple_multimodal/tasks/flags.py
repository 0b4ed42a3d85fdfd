"""The options of all tasks as command-line flags. This module imports no model, so that `--help` stays fast."""

import copy
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_type_hints

from simple_multimodal.errors import InputError
from simple_multimodal.flags import Command
from simple_multimodal.tasks.generation.options import GenerationOptions
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.question_answering.options import QuestionAnsweringOptions
from simple_multimodal.tasks.retrieval.options import RetrievalOptions
from simple_multimodal.tasks.video_classification.options import VideoClassificationOptions

OPTIONS: dict[str, type[TaskOptions]] = {
    "pretraining": RetrievalOptions,
    "retrieval": RetrievalOptions,
    "question_answering": QuestionAnsweringOptions,
    "video_classification": VideoClassificationOptions,
    "translation": GenerationOptions,
    "captioning": GenerationOptions,
    "transcription": GenerationOptions,
}
"""Options class of each task, by name; [`register_task`] adds further tasks."""


def register_options(task: str, options_class: type[TaskOptions]) -> None:
    """
    Make the options of a task known to the command lines.

    Args:
        task (`str`): Name of the task.
        options_class (`type[TaskOptions]`): Class of its options.

    Raises:
        ValueError: If another task has a different option of the same name.
    """
    declared = {field.name: field for other in OPTIONS.values() for field in _flags(other)}
    for field in _flags(options_class):
        known = declared.get(field.name, field)
        if (known.metadata, known.default) != (field.metadata, field.default):
            raise InputError(f"Another task already has an option {field.name!r}. Choose another name in {task!r}.")
    OPTIONS[task] = options_class


def get_options_class(task: str) -> type[TaskOptions]:
    """
    Return the class of a task's options.

    Raises:
        ValueError: If there is no such task; the message suggests the closest name.
    """
    if task not in OPTIONS:
        nearest = difflib.get_close_matches(task, OPTIONS, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(f"There is no task {task!r}; the tasks are {', '.join(OPTIONS)}.{hint}")
    return OPTIONS[task]


def flags_of_tasks(command: Command) -> type:
    """
    Return a dataclass with one field for each flag of a command that is an option of a registered task.

    Args:
        command (`str`): `"train"` or `"infer"`.
    """
    found: dict[str, tuple[str, Any, dataclasses.Field]] = {}
    for options_class in OPTIONS.values():
        hints = get_type_hints(options_class)
        for field in _flags(options_class):
            if command in field.metadata["commands"]:
                found.setdefault(field.name, (field.name, hints[field.name], copy.copy(field)))
    return dataclasses.make_dataclass("TaskFlags", found.values(), frozen=True)


def options_from_flags(task: str, flags: Any) -> TaskOptions:
    """
    Build the options of a task from the flags of all tasks.

    Args:
        task (`str`): Name of the task.
        flags: Instance of the class that [`flags_of_tasks`] returned.

    Raises:
        ValueError: If there is no such task, a flag belongs to another task, **or** a value is out of range.
    """
    options_class = get_options_class(task)
    names = {field.name for field in dataclasses.fields(options_class)}
    defaults = vars(type(flags)())
    given: Mapping[str, Any] = {name: value for name, value in vars(flags).items() if value != defaults[name]}
    if foreign := [f"--{name} is an option of --task {_owners(name)}" for name in given if name not in names]:
        raise InputError(f"{', '.join(foreign)}, and would be ignored with --task {task}. Leave that out.")
    return options_class(**given)


def _owners(option: str) -> str:
    """Return the names of the tasks that have an option."""
    return " or ".join(task for task, kind in OPTIONS.items() if option in {field.name for field in _flags(kind)})


def _flags(options_class: type[TaskOptions]) -> list[dataclasses.Field]:
    """Return the options of a class that are flags."""
    return [field for field in dataclasses.fields(options_class) if "commands" in field.metadata]
