"""What the options of a task are. `flags.py` beside this file makes flags of those of all tasks."""

from dataclasses import dataclass

from simple_multimodal.flags import check_bounds


@dataclass(frozen=True)
class TaskOptions:
    """
    Options of a task. A subclass is a frozen dataclass with a field for each; one that is declared with [`flag`] is a
    flag of `train.py`, of `simple-multimodal infer`, or of both.

    Raises:
        ValueError: If an option is out of its bounds.

    Example:

    ```python
    >>> @dataclass(frozen=True)
    ... class RegressionOptions(TaskOptions):
    ...     error_scale: float = flag(1.0, OBJECTIVES, "Unit of the error.", above=0, remedy="give a number above 0")
    ```
    """

    def __post_init__(self) -> None:
        check_bounds(self)
