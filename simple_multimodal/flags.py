"""A flag of `train.py` in one line: its default, its heading, its help and its bounds."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, Literal

from simple_multimodal.errors import InputError
from simple_multimodal.missing import Named

Command = Literal["train", "infer"]

GROUPS = (
    "Model", "LoRA", "Text", "Audio", "Video", "Fusion", "Objectives", "Data", "Training", "Evaluation",
    "Trainer (transformers)",
)  # fmt: skip
"""The headings of `--help`, in their order."""

MODEL, LORA, TEXT, AUDIO, VIDEO, FUSION, OBJECTIVES, DATA, TRAINING, EVALUATION, TRAINER = GROUPS

_HOLDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def flag(
    default: Any,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    share: bool = False,
    remedy: str = "",
    read: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    names: Named | None = None,
    commands: Sequence[Command] = ("train",),
    **bounds: float,
) -> Any:
    """
    A field of a dataclass that is a flag of `train.py`.

    Args:
        default: The default value; a list is copied, and a function is called.
        group (`str`): The heading of `--help` that lists the flag, one of `GROUPS`.
        help (`str`): One sentence. `--help` adds the default, unless the sentence names it.
        choices (`tuple[str, ...]`, *optional*): The values that a list may hold.
        share (`bool`, *optional*, defaults to `False`): Whether the value is from 0 to 1.
        remedy (`str`, *optional*): What to give instead of a value out of bounds; "give a whole number from N upwards"
            by default.
        read (`Callable`, *optional*): Function that reads the value or raises `argparse.ArgumentTypeError`; by default
            the type of the field.
        metavar (`str`, *optional*): How `--help` shows the value; by default its type.
        names ([`Named`], *optional*): What the value names, which has to exist before a run begins.
        commands (`Sequence[str]`, *optional*, defaults to `("train",)`): For an option of a task: which of `train.py`
            and `simple-multimodal infer` have the flag.
        bounds (`float`): Any of `at_least`, `above`, `at_most` and `below`, see [`check_bounds`].
    """
    if share:
        bounds, remedy = {"at_least": 0, "at_most": 1}, "it is a share: give a number from 0 to 1"
    metadata: dict[str, Any] = {"group": group, "help": help, "commands": commands}
    extras = {"choices": choices, "read": read, "metavar": metavar, "names": names}
    metadata |= {name: value for name, value in extras.items() if value is not None}
    if bounds:
        metadata["bounds"] = bounds
        metadata["remedy"] = remedy or f"give a whole number from {bounds['at_least']} upwards"
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_bounds(arguments: Any) -> None:
    """Raise a `ValueError` for the first flag of a dataclass whose value is out of bounds, if it is a number."""
    for item in fields(arguments):
        value = vars(arguments).get(item.name)
        bounds = item.metadata.get("bounds", {})
        if isinstance(value, (int, float)) and not all(_HOLDS[kind](value, bound) for kind, bound in bounds.items()):
            raise InputError(f"--{item.name} is {value}; {item.metadata['remedy']}.")


def given(arguments: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The values of some flags that are not `None`; `new_name="flag"` hands a flag on under another name."""
    flags = {**dict(zip(names, names, strict=True)), **renamed}
    return {name: value for name, item in flags.items() if (value := vars(arguments)[item]) is not None}
