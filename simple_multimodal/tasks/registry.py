"""The tasks: a folder for each with its model, its metrics and what uses it, and one line here."""

from simple_multimodal.errors import InputError
from simple_multimodal.tasks.base import Evaluation, Measuring, Rows, Task
from simple_multimodal.tasks.flags import get_options_class, register_options
from simple_multimodal.tasks.options import TaskOptions
from simple_multimodal.tasks.question_answering.task import QuestionAnswering
from simple_multimodal.tasks.retrieval.task import PreTraining, Retrieval

TASKS: dict[str, type[Task]] = {task.name: task for task in (PreTraining, Retrieval, QuestionAnswering)}


def register_task(task: type[Task]) -> type[Task]:
    """
    Add a task of your own; usable as a decorator. Its options become flags of `train.py`.

    Args:
        task (`type[Task]`): with a name that no other task has.

    Raises:
        ValueError: If there is another task of that name, **or** an option of another task has the name of one of its.
    """
    if TASKS.get(task.name, task) is not task:
        raise InputError(f"There is a task {task.name!r} already: {TASKS[task.name].__name__}. Choose another name.")
    register_options(task.name, task.options_class)
    TASKS[task.name] = task
    return task


def get_task(name: str) -> type[Task]:
    """
    The task of a name.

    Raises:
        ValueError: If there is none; the message names the nearest.
    """
    get_options_class(name)  # which says what there is
    return TASKS[name]


def task_of(name: str | None, model_class: str, *, default: type[Task] | None = None) -> type[Task]:
    """
    The task that a model was trained for.

    Args:
        name (`str`, *optional*): the `task` of its configuration, which older ones lack.
        model_class (`str`): name of its class.
        default (`type[Task]`, *optional*): what to return if no task has such a model, instead of raising an error.

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
    raise InputError(f"{model_class} is a model of none of the tasks {', '.join(TASKS)}.")


__all__ = ["TASKS", "Evaluation", "Measuring", "Rows", "Task", "TaskOptions", "get_task", "register_task", "task_of"]
