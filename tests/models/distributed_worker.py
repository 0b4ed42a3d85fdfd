"""Computations of one of several processes for `test_distributed.py`; each starts fresh and imports this file."""

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from simple_multimodal.models import distributed, losses
from simple_multimodal.models.distributed import (
    Ragged,
    RowExchange,
    first_row,
    gather_objects,
    gather_on_host,
    gather_rows,
    host_group,
    share_of,
    sum_over_processes,
)
from simple_multimodal.models.fusion.crossformer import Clip, Stream
from simple_multimodal.models.losses import normalize
from simple_multimodal.models.matching import matching_loss
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.models.tiny import LACKING, ROWS, Row, make_batch, naming_windows, randomize, tiny_config

CHUNKED_CASES = ("co_attention", "pooled")
CHUNK_SIZES = (1, 3, 8)
"""For the six or four rows that a process has of `ROWS + LACKING`; the last size makes one chunk of them."""

CASES = {
    "merge": {"form": "merge", "fusion": "bert"},
    "co_attention": {"form": "co_attention", "contrastive_form": "sigmoid"},
    "cross_attention": {"form": "cross_attention"},
    "pooled": {"form": "cross_attention", "fusion_pool": "time", "contrastive_loss_before_fusion": False},
    "shared": {"form": "co_attention", "share_masked_pass": True},
    "batch_norm": {"form": "merge"},
}
"""Configurations by name."""


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of tokens `(batch_size, num_tokens, size)`, with random statistics."""

    def __init__(self, size: int):
        super().__init__(size)
        self.running_mean.normal_()
        self.running_var.uniform_(0.5, 2.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


def build(case: str) -> MultimodalForPreTraining:
    """Build a model with the same weights in every process, in training mode, without dropout."""
    torch.manual_seed(0)
    model = MultimodalForPreTraining(tiny_config(**CASES[case]))
    if case == "batch_norm":
        model.multimodal.fusion.input_norm = TokenBatchNorm(model.multimodal.fusion.hidden_size)
    return randomize(model).train()


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return gradients by parameter name; every parameter must have one."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train_step(case: str, rank: int, world_size: int, rows: tuple[Row, ...] = ROWS) -> dict:
    """Return loss and gradients of this process's share of the rows, alone and under DistributedDataParallel."""
    share = len(rows) // world_size
    batch = naming_windows(make_batch(rows[rank * share : (rank + 1) * share]))
    model = build(case)
    output = model(**batch)
    output.loss.backward()
    found = {
        "loss": output.loss.detach(),
        "losses": output.losses,
        "gradients": gradients_of(model),
        "windows": batch["audio_values"].shape[-1],
        "logits": output.logits.detach(),
    }
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    counts = torch.stack(list(model.count_items(batch).values()))
    num_items = dict(zip(model.loss_weights, sum_over_processes(counts), strict=True))
    (wrapped(num_items=num_items, **batch).loss * world_size).backward()
    found["wrapped_gradients"] = gradients_of(model)
    found["buffers"] = dict(model.named_buffers())
    return found


def chunked_step(case: str, rank: int, world_size: int, chunk_size: int | None) -> dict:
    """Return losses and gradients of chunks under DistributedDataParallel: of one batch, and of two accumulated."""
    rows = ROWS + LACKING
    share = len(rows) // world_size
    rows = rows[rank * share : (rank + 1) * share]
    model = build(case)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as in the `Trainer`
    synchronised = []

    def note(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        synchronised.append(bucket.index())
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)

    wrapped.register_comm_hook(None, note)
    output = wrapped(**naming_windows(make_batch(rows)), chunk_size=chunk_size)
    (output.loss * world_size).backward()
    found = {
        "losses": output.losses,
        "metrics": output.metrics,
        "gradients": gradients_of(model),
        "synchronised": synchronised,
    }
    model.zero_grad()
    batches = [naming_windows(make_batch(part)) for part in (rows[: share // 2], rows[share // 2 :])]
    counts = torch.stack([torch.stack(list(model.count_items(batch).values())) for batch in batches]).sum(dim=0)
    num_items = dict(zip(model.loss_weights, sum_over_processes(counts), strict=True))
    with wrapped.no_sync():
        (wrapped(num_items=num_items, **batches[0], chunk_size=chunk_size).loss * world_size).backward()
    (wrapped(num_items=num_items, **batches[1], chunk_size=chunk_size).loss * world_size).backward()
    return {**found, "accumulated": gradients_of(model)}


def gathering(rank: int, world_size: int) -> dict:
    """Run the helpers alone, on rows whose values tell where they come from."""
    rows = (torch.arange(4.0).view(2, 2) + 10 * rank).requires_grad_()
    bystander = torch.zeros(2 * world_size, 2, requires_grad=True)
    shifted = bystander * 1
    gathered = gather_rows(rows)
    weights = torch.arange(1.0, 2 * world_size + 1)[:, None] * (rank + 1)
    # The sum passes the same gradient to both, and the gathered rows come first in the backward pass.
    ((gathered + shifted) * weights).sum().backward()
    mask = gather_rows(torch.tensor([rank == 0, True]))
    mine = torch.tensor([1.0, float(rank)])
    return {
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "bystander": bystander.grad,
        "mask": mask,
        "ids": gather_rows(torch.tensor([2**62 + rank])),
        "first_row": first_row(2),
        "sum": sum_over_processes(mine),
        "mine": mine,
    }


def exchanging(rank: int, world_size: int) -> dict:
    """Take the second row of the next process, the own first row, and the former again."""
    rows = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    start = 3 * ((rank + 1) % world_size)
    exchange = RowExchange(torch.tensor([start + 1, 3 * rank, start + 1]), [rank, 7 - rank])
    taken = exchange.take(rows, torch.float32)
    (taken * torch.tensor([[1.0], [10.0], [100.0]]) * (rank + 1)).sum().backward()
    return {"taken": taken.detach(), "gradient": rows.grad, "largest": exchange.largest}


HOST_ROWS = 11


def host_columns(ids: list[int]) -> dict[str, torch.Tensor | Ragged]:
    """Return the columns of rows with these ids; successive equal ids are told apart by the column `copy`."""
    numbers = torch.tensor(ids)
    copies = [sum(earlier == number for earlier in ids[:place]) for place, number in enumerate(ids)]
    lengths = numbers % 4  # some are empty
    return {
        "embed": numbers[:, None] + torch.tensor([0.25, 0.5]),
        "half": numbers.bfloat16(),
        "is_even": numbers % 2 == 0,
        "nothing": torch.empty(len(ids), 0),
        "copy": torch.tensor(copies),
        "tokens": Ragged(torch.repeat_interleave(numbers, lengths)[:, None] * torch.ones(3), lengths),
    }


def on_host(rank: int, world_size: int) -> dict:
    """Bring rows of all processes together on the host, a few bytes at a time; the first process has none."""
    ids = sorted([*range(HOST_ROWS), 4, 4, 7], key=lambda number: number * 7 % HOST_ROWS)
    own = [number for number in ids if rank and number % (world_size - 1) == rank - 1]
    distributed.PART_BYTES = 20
    row_ids, columns = gather_on_host(torch.tensor(own, dtype=torch.long), host_columns(own) if own else {})
    plain = {name: tuple(column) if isinstance(column, Ragged) else column for name, column in columns.items()}
    gathered = {
        "own": (row_ids, plain),
        "none": gather_on_host(torch.empty(0, dtype=torch.long), {}),
        "objects": gather_objects({"rank": rank}),
        "share": list(share_of(range(5))),
    }
    backend, dist.get_backend = dist.get_backend, lambda: "nccl"
    try:  # as on devices, where the host's exchange needs a group of its own
        group = host_group()
        gathered["group"] = group is not dist.group.WORLD and group is host_group()
        gathered["of_group"] = gather_objects(rank)
    finally:
        dist.get_backend = backend
    return {**gathered, "ids": ids}


def losses_of_set(form: str, max_block_elements: int) -> torch.Tensor:
    """Return the contrastive loss of a set with duplicates, computed in blocks."""
    losses.MAX_BLOCK_ELEMENTS = max_block_elements
    return losses.whole_set_contrastive_loss(**contrastive_set(form), form=form)


def contrastive_set(form: str) -> dict:
    """Return the rows of a set; some mean the same clip."""
    generator = torch.Generator().manual_seed(0)
    first, second = normalize(torch.randn(2, 37, 16, generator=generator))
    return {
        "first": first,
        "second": second,
        "group_ids": torch.randint(20, (37,), generator=generator),
        "logit_scale": torch.tensor(14.0),
        "logit_bias": torch.tensor(-8.0) if form == "sigmoid" else None,
    }


LOSSES_OF_SET = {f"{form}, {elements}": (form, elements) for form in ("softmax", "sigmoid") for elements in (1, 200)}
"""Arguments of [`losses_of_set`] by name."""


NUM_MATCHED = 12
"""Rows of the global batch that [`matched`] spreads over processes."""


def matched(rank: int, world_size: int, hard_ratio: float, dtype: torch.dtype, *, num_lengths: int) -> dict:
    """
    Run matching alone, over states of this process's clips that identify them. Return the clips that it takes, the
    bytes that it sends for them, there and back, and the gradient of its states. Clips have `num_lengths` different
    numbers of tokens.
    """
    generator = torch.Generator().manual_seed(0)
    share = slice(rank * NUM_MATCHED // world_size, (rank + 1) * NUM_MATCHED // world_size)
    embeds = normalize(torch.randn(2, NUM_MATCHED, 3, generator=generator))
    weights = torch.randn(NUM_MATCHED, 5, 2, generator=generator)[share]
    batch = {
        "group_ids": torch.arange(NUM_MATCHED) // 2,  # two rows of each clip
        "text_ids": torch.tensor([0, 1, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0]),  # every second clip has the same text
        "match_aligned": torch.arange(NUM_MATCHED) % 5 == 0,
        "match_uniform": torch.rand(NUM_MATCHED, generator=generator),
    }
    batch = {name: values[share] for name, values in batch.items()}
    present = torch.ones(len(weights), dtype=torch.bool)
    states = (torch.arange(NUM_MATCHED)[share, None, None] + torch.rand(1, 5, 1, generator=generator)).repeat(1, 1, 2)
    lengths = 5 - (torch.arange(NUM_MATCHED) * num_lengths // NUM_MATCHED)[share]
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    states = states[:, : mask.shape[1]].clone().requires_grad_()
    taken: Clip = {}

    def score(text: Stream, clip: Clip) -> torch.Tensor:
        taken.update(clip)
        return (clip["video"].states * weights * clip["video"].mask[..., None]).sum(dim=1)

    sent, exchange = [], dist.all_to_all_single

    def counting(output, rows, *counts):
        sent.append(rows.numel() * rows.element_size())
        return exchange(output, rows, *counts)

    dist.all_to_all_single = counting
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss, _, _ = matching_loss(
            score,
            Stream(torch.zeros(len(weights), 1, 2), present[:, None]),
            {"video": Stream(states, mask)},
            text_embeds=embeds[0][share],
            clip_embeds=embeds[1][share],
            has_text=present,
            has_clip=present,
            logit_scale=torch.tensor(20.0),
            hard_negative_ratio=hard_ratio,
            batch=batch,
        )
    loss.backward()
    dist.all_to_all_single = exchange
    return {
        "states": taken["video"].states.detach(),
        "mask": taken["video"].mask,
        "gradient": states.grad,
        "sent": sent,
    }


MATCHED = {
    f"hard negatives {ratio}, {str(dtype).removeprefix('torch.')}": (ratio, dtype)
    for ratio in (0.0, 1.0)
    for dtype in (torch.float32, torch.bfloat16)
}
"""Arguments of [`matched`] by name."""


def run(folder: Path) -> None:
    """Work as one of two processes, unless it is the third, and then as one of three."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    for world_size in (2, 3):
        if rank >= world_size:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous_{world_size}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(minutes=10),  # the third process waits until two have done their part
        )
        found: dict = {case: train_step(case, rank, world_size) for case in CASES}
        found |= {f"{case}, lacking": train_step(case, rank, world_size, LACKING) for case in CASES}
        for case in CHUNKED_CASES:
            found |= {
                f"{case}, chunks of {size}": chunked_step(case, rank, world_size, size)
                for size in (None, *CHUNK_SIZES)
            }
        found["gathering"] = gathering(rank, world_size)
        found["exchange"] = exchanging(rank, world_size)
        found["on_host"] = on_host(rank, world_size)
        found |= {name: losses_of_set(*given) for name, given in LOSSES_OF_SET.items()}
        found |= {name: matched(rank, world_size, *given, num_lengths=world_size) for name, given in MATCHED.items()}
        torch.save(found, folder / f"{world_size}_{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
