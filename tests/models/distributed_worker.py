"""What one of several processes computes for `test_distributed.py`; each starts fresh and imports this file."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from simple_multimodal.models.distributed import first_row, gather_rows, pad_to_longest, sum_over_processes
from simple_multimodal.models.modeling import MultimodalForPreTraining
from tests.models.tiny import LACKING, ROWS, Row, make_batch, naming_windows, randomize, tiny_config

CHUNKED_CASES = ("co_attention", "pooled")
CHUNK_SIZES = (1, 3, 8)
"""Of the six or four rows that a process has of `ROWS + LACKING`; the last makes one chunk of them."""

CASES = {
    "merge": {"form": "merge", "fusion": "bert"},
    "co_attention": {"form": "co_attention", "contrastive_form": "sigmoid"},
    "cross_attention": {"form": "cross_attention"},
    "pooled": {"form": "cross_attention", "fusion_pool": "time", "contrastive_loss_before_fusion": False},
    "shared": {"form": "co_attention", "share_masked_pass": True},
}
"""Configurations by name."""


def build(case: str) -> MultimodalForPreTraining:
    """The same weights in every process; training mode, without dropout."""
    torch.manual_seed(0)
    return randomize(MultimodalForPreTraining(tiny_config(**CASES[case]))).train()


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by parameter name; there must be one for every parameter."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train_step(case: str, rank: int, world_size: int, rows: tuple[Row, ...] = ROWS) -> dict:
    """Loss and gradients of this process's share of the rows, alone and under DistributedDataParallel."""
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
    return found


def chunked_step(case: str, rank: int, world_size: int, chunk_size: int | None) -> dict:
    """Losses and gradients of chunks under DistributedDataParallel: of one batch, and of two that are accumulated."""
    rows = ROWS + LACKING
    share = len(rows) // world_size
    rows = rows[rank * share : (rank + 1) * share]
    model = build(case)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as the `Trainer` has it
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
    """The helpers alone, on rows whose values tell where they come from."""
    rows = (torch.arange(4.0).view(2, 2) + 10 * rank).requires_grad_()
    bystander = torch.zeros(2 * world_size, 2, requires_grad=True)
    shifted = bystander * 1
    gathered = gather_rows(rows)
    weights = torch.arange(1.0, 2 * world_size + 1)[:, None] * (rank + 1)
    # The sum hands one and the same gradient to both, and the gathered rows come first on the way back.
    ((gathered + shifted) * weights).sum().backward()
    mask = gather_rows(torch.tensor([rank == 0, True]))
    states, padded_mask = pad_to_longest(torch.ones(1, rank + 1, 2), torch.ones(1, rank + 1, dtype=torch.bool))
    mine = torch.tensor([1.0, float(rank)])
    return {
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "bystander": bystander.grad,
        "mask": mask,
        "ids": gather_rows(torch.tensor([2**62 + rank])),
        "first_row": first_row(2),
        "states": states,
        "padded_mask": padded_mask,
        "sum": sum_over_processes(mine),
        "mine": mine,
    }


def run(rank: int, folder: Path) -> None:
    """Work as process `rank` of two, if it is one of them, and then of three."""
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
        torch.save(found, folder / f"{world_size}_{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
