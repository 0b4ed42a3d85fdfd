"""Models sharded by FSDP2: gather their parameters for evaluation, and save them like other models."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

LOADED = StateDictOptions(full_state_dict=True)
SAVED = StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all parameters in every process inside the context, so that each can call any part of the model. Without
    effect if the model is not sharded.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard is not model, recurse=False)  # as accelerate
            # Torch (2.11) records every pass through a shard, and the next backward pass gathers shards in reverse
            # order. The passes made here differ between processes, which would wait for each other forever.
            state = shard._get_fsdp_state()
            state._comm_ctx.post_forward_order.clear()
            if state._fsdp_param_group is not None:
                state._fsdp_param_group._post_forward_indices.clear()


def load_weights(model: nn.Module, tensors: dict[str, Any]) -> None:
    """Load full tensors, which every process has read, into a sharded model."""
    set_model_state_dict(model, tensors, options=LOADED)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """
    Return the optimizer state of a sharded model in the form of `optimizer.state_dict()` of an unsharded one. All
    processes must call this; only process 0 gets the state.
    """
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=SAVED)
    if not state:
        return state
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: n for n, name in enumerate(names)}
    return {
        "state": {number[name]: state["state"][name] for name in names if name in state["state"]},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state from [`optimizer_state`] or from the optimizer of an unsharded model."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    named: Any = {
        "state": {names[n]: values for n, values in state["state"].items()},
        "param_groups": [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]],
    }
    set_optimizer_state_dict(model, optimizer, named, options=LOADED)
