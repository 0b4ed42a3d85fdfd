"""The grid of what is trained and how, and the computations of one of two processes for `test_grid.py`."""

import itertools
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simple_multimodal.alpro import AlproForQuestionAnswering, AlproForRetrieval
from simple_multimodal.modalities import INPUT_KEYS, TOKEN_KEYS
from simple_multimodal.models.base import TowerModel
from simple_multimodal.models.configuration import OBJECTIVES
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.models.lora import add_lora
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from simple_multimodal.tasks.video_classification.modeling import (
    MULTI_LABEL,
    SINGLE_LABEL,
    MultimodalForVideoClassification,
)
from tests.models import tiny
from tests.models.alpro import tiny as alpro

NUM_PROCESSES = 2


class Task(NamedTuple):
    """A model class, the form of its fusion, and the objectives whose weight is above 0."""

    model_class: type[TowerModel]
    form: str | None = None
    objectives: tuple[str, ...] = OBJECTIVES


TASKS = {
    "pre-training, all": Task(MultimodalForPreTraining, "cross_attention"),
    "pre-training, some": Task(MultimodalForPreTraining, "co_attention", ("mlm", "mvm", "contrastive_tv", "matching")),
    "pre-training, words and contrast": Task(MultimodalForPreTraining, "merge", ("mlm", "contrastive_av")),
    "pre-training, words": Task(MultimodalForPreTraining, "cross_attention", ("mlm",)),
    "pre-training, audio": Task(MultimodalForPreTraining, "merge", ("mam",)),
    "retrieval, all": Task(MultimodalForRetrieval, "merge"),
    "retrieval, some": Task(MultimodalForRetrieval, "cross_attention", ("contrastive_tav", "matching")),
    "retrieval, contrast": Task(MultimodalForRetrieval, "co_attention", ("contrastive_tv",)),
    "retrieval, matching": Task(MultimodalForRetrieval, "cross_attention", ("matching",)),
    "question answering": Task(MultimodalForQuestionAnswering, "co_attention"),
    "classification, one label": Task(MultimodalForVideoClassification, "cross_attention"),
    "classification, many labels": Task(MultimodalForVideoClassification, "merge"),
    "ALPRO retrieval, all": Task(AlproForRetrieval),
    "ALPRO retrieval, contrast": Task(AlproForRetrieval, objectives=("contrastive_tv",)),
    "ALPRO retrieval, matching": Task(AlproForRetrieval, objectives=("matching",)),
    "ALPRO question answering": Task(AlproForQuestionAnswering),
}

ADAPTATIONS = ("plain", "lora", "frozen", "features")
"""All weights; adapters in the encoders; a frozen video tower; tokens in place of frozen audio and video towers."""


@dataclass(frozen=True)
class Cell:
    """One place in the grid."""

    task: str
    adaptation: str
    checkpointing: bool

    def __str__(self) -> str:
        return f"{self.task}; {self.adaptation}; {'checkpoints' if self.checkpointing else 'no checkpoints'}"

    @property
    def alpro(self) -> bool:
        return self.task.startswith("ALPRO")

    @property
    def frozen(self) -> tuple[str, ...]:
        towers = {"frozen": ("video",), "features": ("video",) if self.alpro else ("audio", "video")}
        return towers.get(self.adaptation, ())


GRID = tuple(Cell(*place) for place in itertools.product(TASKS, ADAPTATIONS, (False, True)))

IMPOSSIBLE = {
    task: "masked audio or frames are predicted from the tower's input, which features replace"
    for task, values in TASKS.items()
    if values.model_class is MultimodalForPreTraining and {"mam", "mvm"} & set(values.objectives)
}
"""Tasks that cannot be trained on features, and why; `--features` refuses them (`test_features.py`)."""

CELLS = tuple(cell for cell in GRID if not (cell.adaptation == "features" and cell.task in IMPOSSIBLE))


def make_batch(cell: Cell) -> dict[str, torch.Tensor]:
    """Return all rows, with labels for questions; without features."""
    batch = {name: values[:4] for name, values in alpro.make_batch().items()} if cell.alpro else tiny.make_batch()
    if "question answering" in cell.task:
        batch["labels"] = torch.tensor([0, 1, 1, -1, 2, 0])[: len(batch["row_ids"])]
    if "classification" in cell.task:
        numbers = torch.tensor([0, 1, 1, -1, 2, 0])
        batch["labels"] = numbers if "one" in cell.task else many_labels(numbers)
    return batch


def many_labels(numbers: torch.Tensor) -> torch.Tensor:
    """Return each number of 0 to 2 and the one before it as labels; unknown for -1."""
    labels = torch.nn.functional.one_hot(numbers.clamp(min=0), 3).float()
    return (labels + labels.roll(-1, dims=1)).masked_fill(numbers[:, None] < 0, torch.nan)


def build(cell: Cell) -> tuple[TowerModel, dict[str, torch.Tensor]]:
    """Build the model of a cell with the same weights in every process, ready to train, and all rows of the batch."""
    model_class, form, objectives = TASKS[cell.task]
    off = {f"{name}_loss_weight": 0.0 for name in OBJECTIVES if name not in objectives}
    torch.manual_seed(0)
    if cell.alpro:
        off = {name: weight for name, weight in off.items() if name in vars(alpro.tiny_config())}
        model = alpro.build(model_class, num_labels=3, **off)
    else:
        kind = {"problem_type": MULTI_LABEL if "many" in cell.task else SINGLE_LABEL}
        settings = {**off, **kind, "classifier_dropout": 0.0} if "classification" in cell.task else off
        model = tiny.randomize(model_class(tiny.tiny_config(form, num_labels=3, **settings)))
    batch = make_batch(cell)
    model.freeze(cell.frozen)
    if cell.adaptation == "lora":
        towers = [name for name in model.towers if name != "fusion"]
        add_lora(model, rank=2, alpha=4, towers=towers)
        tiny.randomize(model)  # one half of an adapter starts at zero, so the other has no gradient
    if cell.adaptation == "features":
        for modality in cell.frozen:
            with torch.no_grad():
                tokens, mask, seconds, *_ = model.base_model.encode(modality, batch)
            seconds = torch.zeros(mask.shape) if seconds is None else seconds
            batch |= dict(zip(TOKEN_KEYS[modality], (tokens, mask, seconds), strict=True))
            for name in INPUT_KEYS[modality]:
                del batch[name]
    if cell.checkpointing:
        model.checkpoint_activations([name for name in model.towers if name not in cell.frozen])
    model.freeze_unreached(batch)
    return model.train(), batch


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def two_steps(cell: Cell, rank: int) -> dict[str, torch.Tensor]:
    """Return gradients of the second step of this process's share of the rows."""
    model, batch = build(cell)
    share = len(batch["row_ids"]) // NUM_PROCESSES
    batch = {name: values[rank * share : (rank + 1) * share] for name, values in batch.items()}
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # a parameter without a gradient in one step is missed in the next
        model.zero_grad()
        counts = {name: sum_over_processes(count) for name, count in model.count_items(batch).items()}
        (wrapped(num_items=counts, **batch).loss * NUM_PROCESSES).backward()
    return gradients_of(model)


def run(folder: Path) -> None:
    """Work as one of two processes."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=NUM_PROCESSES,
        timeout=timedelta(minutes=5),
    )
    found: dict[str, dict[str, torch.Tensor] | str] = {}
    for cell in CELLS:
        try:
            found[str(cell)] = two_steps(cell, rank)
        except RuntimeError as error:
            found[str(cell)] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
