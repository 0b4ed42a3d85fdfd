"""Dataclass fields that are flags of `train.py`: default, heading, help text and bounds in one call."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, Literal

from simple_multimodal.errors import InputError
from simple_multimodal.missing import Named

Command = Literal["train", "infer"]

GROUPS = (
    "Model", "LoRA", "Text", "Audio", "Video", "Pose", "Fusion", "Text generation", "Objectives", "Data", "Training",
    "Evaluation", "Trainer (transformers)",
)  # fmt: skip
"""Headings of `--help`, in order."""

MODEL, LORA, TEXT, AUDIO, VIDEO, POSE, FUSION, GENERATION, OBJECTIVES, DATA, TRAINING, EVALUATION, TRAINER = GROUPS

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
    Return a dataclass field that is a flag of `train.py`.

    Args:
        default: Default value; a list is copied, and a function is called.
        group (`str`): Heading of `--help` that lists the flag, one of `GROUPS`.
        help (`str`): Help text. `--help` adds the default unless the text contains it.
        choices (`tuple[str, ...]`, *optional*): Values that a list may contain.
        share (`bool`, *optional*, defaults to `False`): Whether the value must be from 0 to 1.
        remedy (`str`, *optional*): End of the message about a value out of bounds; by default "give a whole number
            from N upwards".
        read (`Callable`, *optional*): Function that parses the value or raises `argparse.ArgumentTypeError`; by
            default the type of the field.
        metavar (`str`, *optional*): Placeholder of the value in `--help`; by default its type.
        names ([`Named`], *optional*): Kind of file that the value names, which must exist before a run starts.
        commands (`Sequence[str]`, *optional*, defaults to `("train",)`): For an option of a task: whether
            `train.py`, `simple-multimodal infer` or both have the flag.
        bounds (`float`): Any of `at_least`, `above`, `at_most` and `below`, see [`check_bounds`].
    """
    if share:
        bounds, remedy = {"at_least": 0, "at_most": 1}, "give a number from 0 to 1"
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
    """Raise a `ValueError` for the first flag of a dataclass whose value is a number out of its bounds."""
    for item in fields(arguments):
        value = vars(arguments).get(item.name)
        bounds = item.metadata.get("bounds", {})
        if isinstance(value, (int, float)) and not all(_HOLDS[kind](value, bound) for kind, bound in bounds.items()):
            raise InputError(f"--{item.name} is {value}; {item.metadata['remedy']}.")


def given(arguments: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """Return the values of flags that are not `None`; `new_name="flag"` returns a flag under another name."""
    flags = {**dict(zip(names, names, strict=True)), **renamed}
    return {name: value for name, item in flags.items() if (value := vars(arguments)[item]) is not None}
