"""The registry of tasks: one folder each, with model, metrics and pipeline, and one line here."""

from simple_multimodal.errors import InputError
from simple_multimodal.tasks.base import Evaluation, Measuring, Rows, Task
from simple_multimodal.tasks.flags import get_options_class, register_options
from simple_multimodal.tasks.generation.task import Captioning, Transcription, Translation
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.question_answering.task import QuestionAnswering
from simple_multimodal.tasks.retrieval.task import PreTraining, Retrieval
from simple_multimodal.tasks.video_classification.task import VideoClassification

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        PreTraining,
        Retrieval,
        QuestionAnswering,
        VideoClassification,
        Translation,
        Captioning,
        Transcription,
    )
}


def register_task(task: type[Task]) -> type[Task]:
    """
    Register a task; usable as a decorator. Its options become flags of `train.py`.

    Args:
        task (`type[Task]`): Class of the task; its name must be unique.

    Raises:
        ValueError: If there is another task of that name, **or** another task has a different option of the same name.
    """
    if TASKS.get(task.name, task) is not task:
        raise InputError(f"There already is a task {task.name!r}: {TASKS[task.name].__name__}. Choose another name.")
    register_options(task.name, task.options_class)
    TASKS[task.name] = task
    return task


def get_task(name: str) -> type[Task]:
    """
    Return the task with this name.

    Raises:
        ValueError: If there is none; the message suggests the closest name.
    """
    get_options_class(name)  # raises the error
    return TASKS[name]


def task_of(name: str | None, model_class: str, *, default: type[Task] | None = None) -> type[Task]:
    """
    Return the task that a model was trained for.

    Args:
        name (`str`, *optional*): The `task` in its configuration, which older models lack.
        model_class (`str`): Name of its class.
        default (`type[Task]`, *optional*): Value to return if no task has such a model, instead of raising an error.

    Raises:
        ValueError: If no task has such a model, and there is no `default`.
    """
    if name is not None:
        return get_task(name)
    for task in TASKS.values():
        if model_class in [kind.__name__ for kind in task.model_classes.values()]:
            return task
    if default is not None:
        return default
    raise InputError(f"{model_class} is not a model of any task; the tasks are {', '.join(TASKS)}.")


__all__ = ["TASKS", "Evaluation", "Measuring", "Rows", "Task", "TaskOptions", "get_task", "register_task", "task_of"]
