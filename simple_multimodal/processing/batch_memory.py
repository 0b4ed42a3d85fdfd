"""Memory for the large tensors of a batch, which a loader process hands over without copying, and gets back."""

import math
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

IN_USE, FREE = 1, 0  # the last byte of a block
CAN_SHARE = hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")  # Linux


@dataclass
class _Loan:
    """The use of a block of memory by this process; once the block is sent, its receiver frees it."""

    block: np.ndarray
    file: int  # its descriptor in this process; -1 where nothing is handed on
    is_sent: bool = False

    def end(self) -> None:
        """Frees the block, unless it was sent."""
        if not self.is_sent:
            self.block[-1] = FREE


class _Sent(NamedTuple):
    """A tensor in a block that another process is to map."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype


_loans: dict[int, _Loan] = {}  # the last one of each block that this worker may send, by its address
_received: dict[int, _Loan] = {}  # those among them that another process made and this one hands on, by inode


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


class SharedBatch(dict[str, Any]):
    """A batch that arrives in another process as a plain dictionary, with tensors of [`batch_tensor`] uncopied.

    A worker that receives one may hand it on: it arrives there as a `SharedBatch`, and lives on without its maker.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # As torch sends a tensor, this busy process would have to answer a call of the receiver for each.
        sent: dict[str, Any] = {}
        for name, tensor in self.items():
            loan = _loans.get(tensor.data_ptr()) if isinstance(tensor, torch.Tensor) else None
            if loan is not None and not loan.is_sent:
                loan.is_sent = True
                sent[name] = _Sent(f"/proc/{os.getpid()}/fd/{loan.file}", tuple(tensor.shape), tensor.dtype)
            else:
                is_here = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
                sent[name] = tensor.numpy() if is_here else tensor  # on a device torch shares it
        return _receive, (sent,)


def forget_blocks() -> None:
    """To be called in a fork of a worker: the blocks that it has are the worker's."""
    for loan in _loans.values():
        os.close(loan.file)
    _loans.clear()
    _received.clear()


def _receive(sent: dict[str, Any]) -> dict[str, Any]:
    hands_on = get_worker_info() is not None
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
    """A loan of a block that this process keeps open until its last receiver frees it."""
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
    """A tensor in a block, whose loan ends when neither it nor any view of it is left."""
    array = loan.block[: math.prod(shape) * dtype.itemsize]  # the tensors hold this array and nothing else does
    weakref.finalize(array, loan.end).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)
