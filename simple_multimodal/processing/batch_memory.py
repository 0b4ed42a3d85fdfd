"""Reusable memory for the large tensors of a batch, which a loader process passes on without copying."""

import math
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

IN_USE, FREE = 1, 0  # values of the last byte of a block
CAN_SHARE = hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")  # Linux


@dataclass
class _Loan:
    """The use of a block of memory by this process; once the block is sent, its receiver frees it."""

    block: np.ndarray
    file: int  # its descriptor in this process; -1 if it is not passed on
    is_sent: bool = False

    def end(self) -> None:
        """Free the block, unless it was sent."""
        if not self.is_sent:
            self.block[-1] = FREE


class _Sent(NamedTuple):
    """A tensor in a block for another process to map."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


_loans: dict[int, _Loan] = {}  # the latest loan of each block that this process may send, by address
_received: dict[int, _Loan] = {}  # those of blocks made by another process, which this one passes on, by inode
_is_loader = False


def pass_batches_on() -> None:
    """Declare that this process passes its batches on to another one, as a worker of a `DataLoader` does."""
    global _is_loader
    _is_loader = True


def passes_batches_on() -> bool:
    """Return whether this process passes its batches on to another one."""
    return _is_loader or get_worker_info() is not None


def batch_tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Return an uninitialised tensor.

    In a process that passes its batches on (on Linux) it is in shared memory, which avoids a copy later, and reuses
    the memory of a tensor that was passed on before and is no longer in use: the system would have to clear new
    memory, which takes more time than everything else in passing on a batch.

    Args:
        shape (`int`): Shape of the tensor, with at least one element.
        dtype (`torch.dtype`): Dtype of the tensor.

    Returns:
        `torch.Tensor`: A tensor with arbitrary values.
    """
    if not passes_batches_on() or not CAN_SHARE:
        return torch.empty(shape, dtype=dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    free = [loan for loan in _loans.values() if loan.block[-1] == FREE]
    loan = next((loan for loan in free if num_bytes < len(loan.block) <= 2 * num_bytes + 1), None)
    if loan is None:
        for other in free:  # of shapes that no longer occur
            os.close(other.file)
            del _loans[other.block.ctypes.data]
        file = os.memfd_create("batch")
        os.ftruncate(file, num_bytes + 1)
        loan = _Loan(_mapped(file), file)
    loan = _loans[loan.block.ctypes.data] = _Loan(loan.block, loan.file)
    loan.block[-1] = IN_USE
    return _lent(loan, shape, dtype)


class SharedBatch(dict[str, Any]):
    """A batch that arrives in another process as a plain dictionary, without copies of tensors of [`batch_tensor`].

    In a process that passes its batches on, such as a worker of a `DataLoader`, it arrives as a `SharedBatch`, which
    outlives its sender.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # If torch sent the tensors, this busy process would have to answer a call of the receiver for each.
        sent: dict[str, Any] = {}
        for name, tensor in self.items():
            loan = _loans.get(tensor.data_ptr()) if isinstance(tensor, torch.Tensor) else None
            if loan is not None and not loan.is_sent:
                loan.is_sent = True
                sent[name] = _Sent(f"/proc/{os.getpid()}/fd/{loan.file}", tuple(tensor.shape), tensor.dtype)
            else:
                is_here = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
                sent[name] = tensor.numpy() if is_here else tensor  # torch shares tensors on a device
        return _receive, (sent,)


def forget_blocks() -> None:
    """Forget all blocks in a fork of a process, since they belong to that process."""
    for loan in _loans.values():
        os.close(loan.file)
    _loans.clear()
    _received.clear()


def _receive(sent: dict[str, Any]) -> dict[str, Any]:
    hands_on = passes_batches_on()
    if hands_on:
        for inode in [inode for inode, loan in _received.items() if loan.is_sent and loan.block[-1] == FREE]:
            loan = _received.pop(inode)
            os.close(loan.file)
            del _loans[loan.block.ctypes.data]
    batch: dict[str, Any] = {}
    for name, value in sent.items():
        if isinstance(value, _Sent):
            path, shape, dtype = value
            value = _lent(_held(path) if hands_on else _Loan(_mapped(path), -1), shape, dtype)
        batch[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    return SharedBatch(batch) if hands_on else batch


def _held(path: str) -> _Loan:
    """Return a loan of a block that this process keeps open until its last receiver frees it."""
    inode = os.stat(path).st_ino
    if inode in _received:
        block, file = _received[inode].block, _received[inode].file
    else:
        file = os.open(path, os.O_RDWR)
        block = _mapped(file)
    loan = _received[inode] = _loans[block.ctypes.data] = _Loan(block, file)
    return loan


def _mapped(file: int | str) -> np.ndarray:
    if isinstance(file, int):
        return np.frombuffer(mmap.mmap(file, 0), np.uint8)
    with open(file, "r+b") as opened:
        return _mapped(opened.fileno())


def _lent(loan: _Loan, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in a block. The loan ends when the tensor and all its views are gone."""
    array = loan.block[: math.prod(shape) * dtype.itemsize]  # only the tensors refer to this array
    weakref.finalize(array, loan.end).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)
