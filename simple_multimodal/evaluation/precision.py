"""The precision in which a model computes, shared by evaluation during training and inference."""

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
    Return the precision that results from `--bf16` and `--fp16` of a training run.

    Args:
        bf16, fp16 (`bool`): The flags.
        device_type (`str`): Type of the device, such as `"cuda"` or `"cpu"`. On a CPU, accelerate treats `--fp16` as
            full precision.
    """
    if bf16:
        return "bf16"
    return "fp16" if fp16 and device_type != "cpu" else "fp32"


def autocast(precision: Precision, device_type: str) -> AbstractContextManager:
    """Return a context in which matrix products and convolutions use `precision`; weights stay in float32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device_type, _DTYPES[precision])


def selection_precision(folder: str | os.PathLike[str] | None) -> Precision | None:
    """Return the precision in which a model was evaluated during training, according to the `run.json` in its folder;
    `None` if that is unknown.
    """
    path = Path(folder or "", "run.json")
    return json.loads(path.read_text(encoding="utf-8")).get("precision") if folder and path.is_file() else None


def precision_mismatch(folder: str | os.PathLike[str] | None, precision: Precision) -> str | None:
    """Return a warning if a model is used in a different precision from the one it was selected in, else `None`."""
    selected = selection_precision(folder)
    if selected in (None, precision):
        return None
    reason = f" ({_FP16_ON_CPU})" if selected == "fp16" else ""
    return (
        f"{folder} was evaluated in {selected} during training but is used in {precision} here{reason}: numbers may "
        "differ."
    )


def choose_precision(given: Precision | None, folder: str | os.PathLike[str] | None, device_type: str) -> Precision:
    """
    Return the precision to use a saved model in.

    Args:
        given (`str`, *optional*): Requested precision; by default the one the model was selected in, else `"fp32"`.
        folder (`str`, *optional*): Folder of the model.
        device_type (`str`): Type of the device that computes.

    Raises:
        ValueError: If there is no such precision, **or** `"fp16"` is requested on a CPU.
    """
    if given is not None:
        check_precision(given, device_type)
        return given
    selected = selection_precision(folder) or "fp32"
    return "fp32" if selected == "fp16" and device_type == "cpu" else selected


def check_precision(precision: str, device_type: str) -> None:
    """Raise a `ValueError` if a precision does not exist or is not supported on this device."""
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device_type == "cpu":
        raise InputError(f"precision: {_FP16_ON_CPU}; on a CPU use bf16 or fp32.")
