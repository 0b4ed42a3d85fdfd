"""Detect that the host waits for a device, on a machine that has none."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operations whose result, or its shape, the host must know."""


@contextlib.contextmanager
def refusing_host_reads(device: str) -> Iterator[None]:
    """
    Raise an error when a tensor of a device is read on the host, or copied from one to the other.

    With `"meta"`, whose tensors have no values, every read is found; with `"cpu"`, those that the dispatcher sees
    (`tolist`, copies). This includes the backward pass.

    Args:
        device (`str`): Type of the device.
    """
    with _RefuseOperations(device), _RefuseFunctions(device):
        yield


class _RefuseFunctions(TorchFunctionMode):
    """Refuses tensors made of Python numbers: these are copied from the host, which the dispatcher does not see."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            if torch.device(kwargs["device"]).type == self.device != "cpu":
                raise AssertionError("The host waits for a copy of numbers to the device.")
        return func(*args, **kwargs)


class _RefuseOperations(TorchDispatchMode):
    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == self.device for tensor in given):
            name = func.overloadpacket.__name__
            by_mask = name.startswith(("index", "_index")) and any(
                isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1])
            )
            if name in READS or by_mask or str(func) == "aten.repeat_interleave.Tensor":
                raise AssertionError(f"The host waits for the device in {func}.")
        result = func(*args, **(kwargs or {}))
        if "copy" in str(func):
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if len({tensor.device.type for tensor in given + made}) > 1:
                raise AssertionError(f"The host waits for a copy from one device to the other in {func}.")
        return result
