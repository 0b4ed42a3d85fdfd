"""The base class of task options. `flags.py` turns the options of all tasks into flags."""

from dataclasses import dataclass

from simple_multimodal.flags import check_bounds


@dataclass(frozen=True)
class TaskOptions:
    """
    Options of a task. A subclass is a frozen dataclass with one field per option; a field declared with [`flag`] is a
    flag of `train.py`, of `simple-multimodal infer`, or of both.

    Raises:
        ValueError: If an option is out of range.

    Example:

    ```python
    >>> @dataclass(frozen=True)
    ... class RegressionOptions(TaskOptions):
    ...     error_scale: float = flag(1.0, OBJECTIVES, "Unit of the error.", above=0, remedy="give a number above 0")
    ```
    """

    def __post_init__(self) -> None:
        check_bounds(self)
