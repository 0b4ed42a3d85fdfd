"""Which batches fit into which memory: the summary's estimate for the default towers, extended to any batch size.

python benchmarks/memory_guide.py [--size base|small]

Weights, gradients and the state of AdamW are counted as in [`summarize`], and activations of one and of two rows as
in [`SavedActivations`], plus the largest of the layers that run again in the backward pass; each further row adds the
same amount, which a third count checks for the small size. All of this uses tensors that have shapes and no memory,
under autocast as on a CPU. A batch is assumed to fit if the estimate is at most `USABLE` of the memory.
`training_memory.py` compares such estimates with processes on a CPU; nothing of this has been run on a device.
"""

import argparse
from typing import Any

import common
import stand_ins
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_layers import GradientCheckpointingLayer

from simple_multimodal.models.base import TowerModel
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from simple_multimodal.training.summary import SavedActivations, summarize

TASKS = {"pre-training": MultimodalForPreTraining, "retrieval": MultimodalForRetrieval}
MEMORIES = (16, 24, 80, 141)  # in GiB
USABLE = 0.85
PRECISIONS = ("fp32", "bf16")
WORDS = 32
CHECKED_ROWS = 8


def build(task: str, size: str, setting: str, mode: FakeTensorMode) -> TowerModel:
    """Build a model whose tensors have no memory, in two steps: `peft` moves tensors, which fake tensors refuse."""
    with torch.device("meta"):
        model = TASKS[task](stand_ins.model_config(size)).train()
        stand_ins.apply_setting(model, setting)
    model.to_empty(device="cpu")  # never written to, so the system does not provide the memory
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = mode.from_tensor(parameter.detach())
            module.register_parameter(name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = mode.from_tensor(buffer)
    return model


def count_activations(model: TowerModel, precision: str, num_rows: int) -> int:
    """Count the bytes that a step keeps for its backward pass, in the mode of the model's tensors: those of the
    forward pass, and of the largest layer that runs again in the backward pass.
    """
    batch = stand_ins.make_batch(model.config, num_rows, num_words=WORDS)

    def run() -> SavedActivations:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), activations:
            model(**batch)
        return activations

    activations = SavedActivations(model)
    kept = run().num_bytes
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    if not layers:
        return kept
    activations, sizes, before = SavedActivations(model), [], []
    handles = []
    for layer in layers:
        layer.gradient_checkpointing = False
        handles.append(layer.register_forward_pre_hook(lambda *_: before.append(activations.num_bytes)))
        handles.append(layer.register_forward_hook(lambda *_: sizes.append(activations.num_bytes - before.pop())))
    run()
    for layer, *pair in zip(layers, handles[::2], handles[1::2], strict=True):
        layer.gradient_checkpointing = True
        for handle in pair:
            handle.remove()
    return kept + max(sizes)


def count_state(model: TowerModel) -> int:
    """Count the bytes of weights, gradients and the state of AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return sum(summarize(model, optimizer)["memory_bytes"].values())


def count(model: TowerModel, precision: str, *, checks: bool) -> dict[str, Any]:
    """Return the bytes that do not depend on the batch, the bytes per row, and the largest batch by memory in GiB."""
    state = count_state(model)
    one, two = (count_activations(model, precision, rows) for rows in (1, 2))
    row = two - one
    if checks:
        many = count_activations(model, precision, CHECKED_ROWS)
        error = abs(one + (CHECKED_ROWS - 1) * row - many) / many
        assert error < 0.01, f"Not linear: off by {error:.1%} at {CHECKED_ROWS} rows."
    fixed = state + one - row
    largest = {gigabytes: max(int((USABLE * gigabytes * 2**30 - fixed) // row), 0) for gigabytes in MEMORIES}
    return {"state_bytes": state, "fixed_bytes": fixed, "row_bytes": row, "largest_batch": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["small", "base"], default="base")
    size = parser.parse_args().size
    results: dict[str, Any] = {}
    for task in TASKS:
        for setting in stand_ins.SETTINGS:
            mode = FakeTensorMode()
            model = build(task, size, setting, mode)
            with mode:
                found = {precision: count(model, precision, checks=size == "small") for precision in PRECISIONS}
            results[f"{task}, {setting}"] = found
            cells = [
                f"{found['fp32']['state_bytes'] / 2**30:.1f}",
                " / ".join(f"{found[precision]['row_bytes'] / 2**30:.2f}" for precision in found),
                *(
                    " / ".join(str(found[precision]["largest_batch"][memory] or "–") for precision in found)
                    for memory in MEMORIES
                ),
            ]
            print(f"| {task}, {size}: {setting} | {' | '.join(cells)} |", flush=True)
    common.save(f"memory_guide_{size}", results)


if __name__ == "__main__":
    main()
