"""Summary of a run: parameters and learning rates by tower, and the memory that it needs."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import Adafactor, TrainerCallback
from transformers.utils import logging

from simple_multimodal.models.base import TowerModel

logger = logging.get_logger(__name__)

HEADS = "heads"
"""Name of all parts outside the towers: heads, decoders of masked objectives, projections and temperatures."""


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def summarize(model: TowerModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """
    Count the parameters that are trained, their learning rates, and the bytes that one process holds for them.

    Args:
        model ([`TowerModel`]): Model without wrappers, not sharded.
        optimizer (`torch.optim.Optimizer`): Optimizer of the model.

    Returns:
        `dict`: `parameters`, which has for each tower and for `heads` the `total` and `trainable` number of parameters
        and the lowest and highest of the `learning_rates` (none if nothing is trained); `optimizer`, the name of its
        class; and `memory_bytes` of `weights` (with buffers), `gradients` and `optimizer_state`, which is `None` for
        optimizers that [`optimizer_state_bytes`] does not know.
    """
    towers = {parameter: name for name, tower in model.towers.items() for parameter in tower.parameters()}
    parts: dict[str, dict] = {
        name: {"total": 0, "trainable": 0, "learning_rates": []} for name in (*model.towers, HEADS)
    }
    rates = {
        parameter: group.get("initial_lr", group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for parameter in model.parameters():
        part = parts[towers.get(parameter, HEADS)]
        part["total"] += parameter.numel()
        if parameter.requires_grad:
            part["trainable"] += parameter.numel()
            part["learning_rates"].append(rates[parameter])
    for part in parts.values():
        part["learning_rates"] = [bound(part["learning_rates"]) for bound in (min, max) if part["learning_rates"]]
    return {
        "parameters": parts,
        "optimizer": type(optimizer).__name__,
        "memory_bytes": {
            "weights": num_bytes((*model.parameters(), *model.buffers())),
            "gradients": num_bytes(parameter for parameter in model.parameters() if parameter.requires_grad),
            "optimizer_state": optimizer_state_bytes(optimizer),
        },
    }


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """
    Return the number of bytes of an optimizer's state after its first step; `None` if it is not known.

    It is known for Adam and AdamW (two tensors of each parameter's own type, and a step of four bytes), SGD (one
    tensor with momentum) and Adafactor (per matrix a row and a column, and a tensor with `beta1`).
    """
    rules: dict[type, Callable[[nn.Parameter, dict], int]] = {
        torch.optim.Adam: _adam_bytes,
        torch.optim.AdamW: _adam_bytes,
        torch.optim.SGD: lambda parameter, group: num_bytes([parameter]) if group["momentum"] else 0,
        Adafactor: _adafactor_bytes,
    }
    rule = rules.get(type(optimizer))
    if rule is None:
        return None
    return sum(rule(parameter, group) for group in optimizer.param_groups for parameter in group["params"])


def _adam_bytes(parameter: nn.Parameter, group: dict) -> int:
    return num_bytes([parameter]) * (3 if group["amsgrad"] else 2) + torch.float32.itemsize


def _adafactor_bytes(parameter: nn.Parameter, group: dict) -> int:
    rows, columns = (1, 1, *parameter.shape)[-2:]
    second_moment = (
        parameter.numel() if parameter.ndim < 2 else parameter.numel() // columns + parameter.numel() // rows
    )
    first_moment = 0 if group["beta1"] is None else parameter.numel()
    return (second_moment + first_moment + 1) * torch.float32.itemsize  # + 1: the scale of the parameter


def to_text(summary: dict[str, Any]) -> str:
    """Format the result of [`summarize`] as a short table."""
    lines = [f"{'':8}{'parameters':>14}{'trained':>14}  learning rate"]
    for name, part in summary["parameters"].items():
        rates = [f"{rate:.3g}" for rate in dict.fromkeys(part["learning_rates"])]
        lines.append(f"{name:8}{part['total']:>14,}{part['trainable']:>14,}  {' to '.join(rates) or '-'}")
    memory = summary["memory_bytes"]
    lines.append(
        f"Memory per process: {_megabytes(memory['weights'])} of weights, {_megabytes(memory['gradients'])} of "
        f"gradients, {_megabytes(memory['optimizer_state'])} of {summary['optimizer']}; and activations."
    )
    return "\n".join(lines)


def _megabytes(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 1e6:,.1f} MB"


class _Kept:
    """A tensor that autograd saved; calls `on_release` when autograd releases it."""

    def __init__(self, tensor: torch.Tensor, on_release: Callable[[], None]):
        self.tensor, self.on_release = tensor, on_release

    def __del__(self):
        self.on_release()


class SavedActivations(saved_tensors_hooks):
    """
    Context that measures the peak size of the activations that autograd saves for the backward pass. Each storage
    counts once, and those of weights do not count.

    It does not change results. Of checkpointed layers the inputs count, not the recomputed activations. Copies of
    weights that autocast makes count. It also counts tensors without memory (`FakeTensorMode`).

    Args:
        model (`nn.Module`): Model whose parameters and buffers do not count.
    """

    def __init__(self, model: nn.Module):
        # By storage, as tensors without memory have no address.
        weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._holders: Counter[int] = Counter()
        self._num_bytes = self.num_bytes = 0

        def pack(tensor: torch.Tensor) -> _Kept | torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata in weights:
                return tensor
            self._add(1, storage._cdata, storage.nbytes())
            return _Kept(tensor, functools.partial(self._add, -1, storage._cdata, storage.nbytes()))

        super().__init__(pack, lambda kept: kept.tensor if isinstance(kept, _Kept) else kept)

    def _add(self, holders: int, storage: int, size: int) -> None:
        before = self._holders[storage]
        self._holders[storage] += holders
        self._num_bytes += size * (bool(self._holders[storage]) - bool(before))
        self.num_bytes = max(self.num_bytes, self._num_bytes)


class RunSummary(TrainerCallback):
    """
    Shows a summary of the run in the main process: a table before training, and the size of the activations after the
    first batch. Not for sharded models, as no process holds all of their parameters.

    Args:
        run_record (`dict`, *optional*): Content of `run.json`, to which the summary is added as `model`.
    """

    def __init__(self, run_record: dict | None = None):
        self.run_record = {} if run_record is None else run_record
        self._activations: SavedActivations | None = None
        self._is_measured = False

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        if control.should_training_stop:  # no step is left
            return
        plain = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        summary = summarize(model, plain)
        self.run_record["model"] = summary
        if state.is_world_process_zero:
            logger.warning(to_text(summary))

    def on_step_begin(self, args, state, control, model, **kwargs):
        if not self._is_measured and not args.torch_compile:
            self._is_measured = True
            self._activations = SavedActivations(model)
            self._activations.__enter__()

    def _after_batch(self, args, state, control, **kwargs):
        if self._activations is None:
            return
        self._activations.__exit__(None, None, None)
        size, self._activations = self._activations.num_bytes, None
        self.run_record["model"]["memory_bytes"]["activations"] = size
        if state.is_world_process_zero:
            logger.warning(f"Activations, measured in the first batch: {_megabytes(size)}.")

    on_substep_end = _after_batch
    on_pre_optimizer_step = _after_batch
