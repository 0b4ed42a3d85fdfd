"""Memory for the large tensors of a batch, which a loader process hands over without copying, and gets back."""

import math
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

IN_USE, FREE = 1, 0  # the last byte of a block
SMALL_BYTES = 2**16  # what a message may hold besides
CAN_SHARE = hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")  # Linux


@dataclass
class _Loan:
    """The use of a block of memory by this process; once the block is sent, its receiver frees it."""

    block: np.ndarray
    file: int  # its descriptor in the process that made it
    is_sent: bool = False

    def end(self) -> None:
        """Frees the block, unless it was sent."""
        if not self.is_sent:
            self.block[-1] = FREE


_loans: dict[int, _Loan] = {}  # the last one of each block of this worker, by its address


def batch_tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """
    A tensor to be filled.

    In a worker of a `DataLoader` (on Linux) it lies in shared memory, to which it would be copied else, and takes the
    place of one that was handed over before and is not in use any more: new memory would have to be cleared by the
    system first, which costs more time than all else in handing over a batch.

    Args:
        shape (`int`): Of the tensor, at least one element.
        dtype (`torch.dtype`): Of the tensor.

    Returns:
        `torch.Tensor`: Of that shape and dtype; its values are arbitrary.
    """
    if get_worker_info() is None or not CAN_SHARE:
        return torch.empty(shape, dtype=dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    free = [loan for loan in _loans.values() if loan.block[-1] == FREE]
    loan = next((loan for loan in free if num_bytes < len(loan.block) <= 2 * num_bytes + 1), None)
    if loan is None:
        for other in free:  # of shapes that do not come any more
            os.close(other.file)
            del _loans[other.block.ctypes.data]
        file = os.memfd_create("batch")
        os.ftruncate(file, num_bytes + 1)
        loan = _Loan(_mapped(file), file)
    loan = _loans[loan.block.ctypes.data] = _Loan(loan.block, loan.file)
    loan.block[-1] = IN_USE
    return _lent(loan, shape, dtype)


class SharedBatch(dict[str, torch.Tensor]):
    """A batch that arrives in another process as a plain dictionary, with tensors of [`batch_tensor`] uncopied."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As torch sends a tensor, this busy process would have to answer a call of the receiver for each.
        sent: dict[str, Any] = {}
        for name, tensor in self.items():
            loan = _loans.get(tensor.data_ptr())
            if loan is not None and not loan.is_sent:
                loan.is_sent = True
                sent[name] = f"/proc/{os.getpid()}/fd/{loan.file}", tuple(tensor.shape), tensor.dtype
            elif tensor.nbytes <= SMALL_BYTES:
                sent[name] = tensor.numpy()
            else:
                sent[name] = tensor
        return _receive, (sent,)


def _receive(sent: dict[str, Any]) -> dict[str, torch.Tensor]:
    batch = {}
    for name, value in sent.items():
        if isinstance(value, tuple):
            path, shape, dtype = value
            with open(path, "r+b") as file:
                value = _lent(_Loan(_mapped(file.fileno()), -1), shape, dtype)
        batch[name] = torch.as_tensor(value)
    return batch


def _mapped(file: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, 0), np.uint8)


def _lent(loan: _Loan, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor in a block, whose loan ends when neither it nor any view of it is left."""
    array = loan.block[: math.prod(shape) * dtype.itemsize]  # the tensors hold this array and nothing else does
    weakref.finalize(array, loan.end).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)
