"""Exchange between processes: rows, with and without gradient, on the device or the host, sums, and decisions."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

_host_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}  # by the group of all processes

PART_BYTES = 1 << 28
"""Bytes of a host tensor that are sent at once; bounds the memory that a process needs on top of the result."""


def leave_process_group() -> None:
    """
    Leave the other processes at the end of a run.

    gloo's threads release the tensors of a collective some time after it is over, and need the interpreter for that:
    one that is being finalized aborts the process (pytorch/pytorch#179291). `DistributedDataParallel` keeps these
    threads alive beyond `destroy_process_group`, so they are given time to finish.
    """
    if dist.is_available() and dist.is_initialized():
        if "gloo" in dist.get_backend() or _host_groups:
            time.sleep(0.5)
        _host_groups.clear()
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Return whether several processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first_row(num_rows: int) -> int:
    """Return where this process's rows start in a result of [`gather_rows`], if every process has `num_rows`."""
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
        rows (`torch.Tensor` of shape `(num_rows, ...)`): Rows of this process, of the same shape on every process.

    Returns:
        `torch.Tensor` of shape `(num_processes * num_rows, ...)`: Rows of all; the input itself in a single process.
    """
    if not is_distributed():
        return rows
    if rows.dtype == torch.bool:
        return _GatherRows.apply(rows.to(torch.uint8)).bool()
    return _GatherRows.apply(rows)


class RowExchange:
    """
    Sends every process the rows that it wants, wherever they are, and no others.

    Each process must know which rows the others want from it, for which the host waits for the device once. In a
    single process nothing is sent.

    Args:
        wanted (`torch.LongTensor` of shape `(num_rows,)`): Rows that this process wants, by their position in what
            [`gather_rows`] returns; as many as it has, and as every other process wants.
        sizes (`Sequence[int]`, *optional*): Sizes that the processes need to agree on.

    Attributes:
        largest (`list[int]`): The largest value in any process, for each of `sizes`.
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
        # Own rows, grouped by the process they go to; and the positions among the wanted rows of those that arrive.
        self._given = torch.tensor([row for rows in given for row in rows], dtype=torch.long, device=wanted.device)
        self._places = torch.tensor(by_owner, device=wanted.device)

    def take(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        Return the wanted rows; gradients flow back to the process that owns a row.

        Args:
            rows (`torch.Tensor` of shape `(num_rows, ...)`): Rows of this process, of the same shape on every process.
            dtype (`torch.dtype`): Type that rows and their gradients are rounded to on the way, in a single process,
                too. Gradients of a row that several processes take are added up in the type of `rows`, in the order of
                these processes.

        Returns:
            `torch.Tensor`: Rows of the shape and type of `rows`.
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
    """Sum a tensor over all processes, without gradient; return the input itself in a single process."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
    return values


def host_group() -> dist.ProcessGroup:
    """
    Return the group in which all processes exchange data on the host, without a detour through a device.

    It is created once, in addition to the devices' group; all processes must take part in creating it.
    """
    everyone = dist.group.WORLD
    assert everyone is not None  # there are several processes
    if dist.get_backend() == "gloo":
        return everyone
    if everyone not in _host_groups:
        _host_groups[everyone] = dist.new_group(backend="gloo")
    return _host_groups[everyone]


def share_of(work: Sequence[Result]) -> Sequence[Result]:
    """Return this process's share of a list of work that is the same in every process."""
    return work[dist.get_rank() :: dist.get_world_size()] if is_distributed() else work


def gather_objects(value: Result) -> list[Result]:
    """
    Return the values of all processes, in the order of ranks, through the host's memory.

    Use it for small values. Do not pass views of tensors or arrays: each is sent with all of the memory behind it.
    """
    if not is_distributed():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=host_group())
    return values


class Ragged(NamedTuple):
    """
    Rows of different lengths, one after another.

    Args:
        values (`torch.Tensor` of shape `(total_length, ...)`): Values of the rows.
        lengths (`torch.LongTensor` of shape `(num_rows,)`): Length of each row, 0 or more.
    """

    values: torch.Tensor
    lengths: torch.Tensor


def gather_on_host(
    row_ids: torch.Tensor, columns: Mapping[str, torch.Tensor | Ragged]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """
    Bring the rows of all processes together in every process, on the host, in the order of their ids.

    A process needs the memory of the result and [`PART_BYTES`] on top.

    Args:
        row_ids (`torch.LongTensor` of shape `(num_rows,)`): Ids of this process's rows, as many as it has. Rows with
            equal ids must belong to one process, and keep their order.
        columns (`Mapping[str, torch.Tensor | Ragged]`): Values of each row, of shape `(num_rows, ...)` or [`Ragged`],
            on any device. A process without rows may leave out what it does not know.

    Returns:
        `tuple`: The sorted ids of all rows, and the columns in their order, on the CPU.
    """
    row_ids = row_ids.cpu()
    if not is_distributed() and bool((row_ids[1:] >= row_ids[:-1]).all()):
        return row_ids, {name: _on_host(column) for name, column in columns.items()}
    described = {name: _describe(column) for name, column in columns.items()} if len(row_ids) else {}
    ids, descriptions = zip(*gather_objects((row_ids.clone(), described)), strict=True)
    order = torch.cat(ids).argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    by_process = places.split([len(own) for own in ids])
    gathered: dict[str, torch.Tensor | Ragged] = {}
    for name, (dtype, shape, is_ragged) in next(filter(None, descriptions), {}).items():
        own: Any = columns[name] if len(row_ids) else None
        if not is_ragged:
            gathered[name] = _collect(own, by_process, dtype, shape)
            continue
        own_values, own_lengths = (None, None) if own is None else own
        lengths = _collect(own_lengths, by_process, torch.int64, ())
        starts = lengths.cumsum(0) - lengths
        # The position of every value of a process's rows.
        within = [
            torch.repeat_interleave(starts[rows] - lengths[rows].cumsum(0) + lengths[rows], lengths[rows])
            + torch.arange(int(lengths[rows].sum()))
            for rows in by_process
        ]
        gathered[name] = Ragged(_collect(own_values, within, dtype, shape), lengths)
    return torch.cat(ids)[order], gathered


def _on_host(column: torch.Tensor | Ragged) -> torch.Tensor | Ragged:
    return Ragged(column.values.cpu(), column.lengths.cpu()) if isinstance(column, Ragged) else column.cpu()


def _describe(column: torch.Tensor | Ragged) -> tuple[torch.dtype, tuple[int, ...], bool]:
    """Return dtype and shape of a row, or of one value of a row, and whether rows have several."""
    is_ragged = isinstance(column, Ragged)
    values = column.values if isinstance(column, Ragged) else column
    return values.dtype, tuple(values.shape[1:]), is_ragged


def _collect(
    own: torch.Tensor | None, places: Sequence[torch.Tensor], dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """Put the rows of each process at its places of one tensor, a part at a time."""
    rank = dist.get_rank() if is_distributed() else 0
    collected = torch.empty(sum(map(len, places)), *shape, dtype=dtype)
    step = max(1, PART_BYTES // max(1, math.prod(shape) * dtype.itemsize))
    for process, targets in enumerate(places):
        for begin in range(0, len(targets), step):
            target = targets[begin : begin + step]
            if process == rank and own is not None:
                part = own[begin : begin + step].to("cpu", dtype).contiguous()
            else:
                part = torch.empty(len(target), *shape, dtype=dtype)
            if is_distributed() and part.numel():
                dist.broadcast(part.flatten().view(torch.uint8), src=process, group=host_group())
            collected[target] = part
    return collected


def decide_in_first_process(decide: Callable[[], Result]) -> Result:
    """Return what `decide()` returns in process 0, in every process; a `ValueError` or `OSError` is also raised in
    every process. For decisions that must not be made twice, such as which files to resume from.
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
