"""What processes share: rows, with and without gradient, sums, and decisions."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def leave_process_group() -> None:
    """
    Leave the other processes at the end of a run.

    gloo's threads drop the tensors of a collective some time after it is over, and need the interpreter for that: one
    that is being finalized aborts the process (pytorch/pytorch#179291). `DistributedDataParallel` keeps these threads
    alive beyond `destroy_process_group`, so they are given the time.
    """
    if dist.is_available() and dist.is_initialized():
        if "gloo" in dist.get_backend():
            time.sleep(0.5)
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether several processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first_row(num_rows: int) -> int:
    """Where this process's rows start in what [`gather_rows`] returns, given that every process has `num_rows`."""
    return dist.get_rank() * num_rows if is_distributed() else 0


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.num_rows = rows.shape[0]
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # Every process's loss depends on these rows: sum the gradient over all processes and keep our rows of it.
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may hand it to others, too
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all processes, in rank order; gradients flow back to the process that owns a row.

    Args:
        rows (`torch.Tensor` of shape `(num_rows, ...)`): the same shape on every process.

    Returns:
        `torch.Tensor` of shape `(num_processes * num_rows, ...)`; the input itself in a single process.
    """
    if not is_distributed():
        return rows
    if rows.dtype == torch.bool:
        return _GatherRows.apply(rows.to(torch.uint8)).bool()
    return _GatherRows.apply(rows)


class RowExchange:
    """
    Hands every process the rows that it wants, wherever they are, and no others.

    Each process must know which rows the others want of it, for which the host waits for the device once. In a single
    process nothing is known or sent.

    Args:
        wanted (`torch.LongTensor` of shape `(num_rows,)`): the rows that this process wants, by their place in what
            [`gather_rows`] returns; as many as it has, and as every other process wants.
        sizes (`Sequence[int]`, *optional*): whatever the processes are to agree on.

    Attributes:
        largest (`list[int]`): of each of `sizes`, the largest of any process.
    """

    def __init__(self, wanted: torch.Tensor, sizes: Sequence[int] = ()):
        self.wanted, self.largest = wanted, list(sizes)
        if not is_distributed():
            return
        rank, num_rows = dist.get_rank(), len(wanted)
        own = torch.cat([wanted, torch.tensor(sizes, dtype=wanted.dtype, device=wanted.device)])
        told: list[list[int]] = gather_rows(own[None]).tolist()  # (processes, num_rows + sizes)
        self.largest = [max(column) for column in list(zip(*told, strict=True))[num_rows:]]
        given = [[row - rank * num_rows for row in of[:num_rows] if row // num_rows == rank] for of in told]
        owners = [row // num_rows for row in told[rank][:num_rows]]
        self._num_given = [len(rows) for rows in given]
        self._num_taken = [owners.count(process) for process in range(len(told))]
        by_owner = sorted(range(num_rows), key=owners.__getitem__)
        # Of this process, to whom they go; and in which of the wanted rows' places those that come belong.
        self._given = torch.tensor([row for rows in given for row in rows], dtype=torch.long, device=wanted.device)
        self._places = torch.tensor(by_owner, device=wanted.device)

    def take(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        The wanted rows; gradients flow back to the process that owns a row.

        Args:
            rows (`torch.Tensor` of shape `(num_rows, ...)`): this process's, of the same shape on every process.
            dtype (`torch.dtype`): what rows and their gradients are rounded to on the way, in a single process, too.
                Gradients of a row that several take are added up as `rows` are, in the order of those who take it.

        Returns:
            `torch.Tensor`: of the shape and type of `rows`.
        """
        if not is_distributed():
            return rows.index_select(0, self.wanted).to(dtype).to(rows.dtype)
        return _TakeRows.apply(rows, dtype, self)

    def _fetch(self, given: torch.Tensor) -> torch.Tensor:
        taken = given.new_empty(len(self._places), *given.shape[1:])
        dist.all_to_all_single(taken, given, self._num_taken, self._num_given)
        return torch.empty_like(taken).index_copy_(0, self._places, taken)

    def _return(self, taken: torch.Tensor) -> torch.Tensor:
        given = taken.new_empty(len(self._given), *taken.shape[1:])
        dist.all_to_all_single(given, taken.index_select(0, self._places), self._num_given, self._num_taken)
        return given


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, dtype: torch.dtype, exchange: RowExchange) -> torch.Tensor:
        ctx.shape, ctx.dtype, ctx.exchange = rows.shape, dtype, exchange
        return exchange._fetch(rows.index_select(0, exchange._given).to(dtype)).to(rows.dtype)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        returned = ctx.exchange._return(gradient.to(ctx.dtype)).to(gradient.dtype)
        return gradient.new_zeros(ctx.shape).index_add_(0, ctx.exchange._given, returned), None, None


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, without gradient; the input itself in a single process."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
    return values


def decide_in_first_process(decide: Callable[[], Result]) -> Result:
    """What `decide()` returns in process 0, in every process; a `ValueError` or `OSError` is raised in every process,
    too. For what must not be decided twice, such as which files to go on from.
    """
    if not is_distributed():
        return decide()
    outcome: list = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
