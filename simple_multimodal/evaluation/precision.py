"""In which number format a model computes: one way for evaluation in training and for a model in use."""

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

import torch

from simple_multimodal.defaults import Precision
from simple_multimodal.errors import InputError

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FP16_ON_CPU = "fp16 needs a GPU"


def effective_precision(*, bf16: bool, fp16: bool, device_type: str) -> Precision:
    """
    The precision that `--bf16` and `--fp16` of a training run come to.

    Args:
        bf16, fp16 (`bool`): The flags.
        device_type (`str`): `"cuda"`, `"cpu"`, ...: on a CPU accelerate takes `--fp16` as full precision.
    """
    if bf16:
        return "bf16"
    return "fp16" if fp16 and device_type != "cpu" else "fp32"


def autocast(precision: Precision, device_type: str) -> AbstractContextManager:
    """A context in which matrix products and convolutions are computed in `precision`; weights stay in float32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device_type, _DTYPES[precision])


def selection_precision(folder: str | os.PathLike[str] | None) -> Precision | None:
    """The precision in which a model was evaluated while it was trained, of the `run.json` in its folder; `None` where
    that says nothing.
    """
    path = Path(folder or "", "run.json")
    return json.loads(path.read_text(encoding="utf-8")).get("precision") if folder and path.is_file() else None


def precision_mismatch(folder: str | os.PathLike[str] | None, precision: Precision) -> str | None:
    """One line if a model is used in another precision than it was selected in, else `None`."""
    selected = selection_precision(folder)
    if selected in (None, precision):
        return None
    reason = f" ({_FP16_ON_CPU})" if selected == "fp16" else ""
    return (
        f"{folder} was evaluated in {selected} while it was trained and is used in {precision} here{reason}: numbers "
        "may differ."
    )


def choose_precision(given: Precision | None, folder: str | os.PathLike[str] | None, device_type: str) -> Precision:
    """
    The precision to use a saved model in.

    Args:
        given (`str`, *optional*): What the user asks for; by default what the model was selected in, else `"fp32"`.
        folder (`str`, *optional*): The model's.
        device_type (`str`): Of the device that computes.

    Raises:
        ValueError: There is no such precision, or `"fp16"` is asked for on a CPU.
    """
    if given is not None:
        check_precision(given, device_type)
        return given
    selected = selection_precision(folder) or "fp32"
    return "fp32" if selected == "fp16" and device_type == "cpu" else selected


def check_precision(precision: str, device_type: str) -> None:
    """Raises a `ValueError` for a precision that there is not, or not on this device."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision is {precision!r}; allowed are {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device_type == "cpu":
        raise InputError(f"--precision {_FP16_ON_CPU}; on a CPU use bf16 or fp32.")
