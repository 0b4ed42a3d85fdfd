"""Memory for large batches, where a loader process can hand it over without copying."""

import math

import torch
from torch.utils.data import get_worker_info


def shared_zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Zeros; in a worker of a `DataLoader` they lie in shared memory, else they would be copied there to be handed over.

    Args:
        shape (`int`): Of the tensor, at least one element.
        dtype (`torch.dtype`): Of the tensor.

    Returns:
        `torch.Tensor`: Of that shape and dtype.
    """
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # new pages are zero
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
