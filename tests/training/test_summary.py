"""Summary of a run, against the actual sizes of tensors."""

import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import Adafactor

from simple_multimodal.models.lora import add_lora
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.training import summary
from simple_multimodal.training.summary import SavedActivations, num_bytes, optimizer_state_bytes, summarize, to_text
from tests.models import tiny
from tests.training.tiny_run import flags, run

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adafactor": lambda parameters: Adafactor(parameters, lr=0.01, scale_parameter=False, relative_step=False),
    "adafactor with a first moment": lambda parameters: Adafactor(parameters, lr=0.01, relative_step=False, beta1=0.9),
}


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 3])
def test_memory_equals_the_size_of_the_tensors_after_a_step(size, kind, dtype, rank):
    sizes = tiny.SIZES | {"hidden_size": size, "intermediate_size": 2 * size}
    config = tiny.tiny_config(text_config=tiny.BertConfig(**sizes, vocab_size=40, max_position_embeddings=32))
    model = MultimodalForPreTraining(config).to(dtype)
    model.freeze(["audio"])
    if rank is not None:
        add_lora(model, rank=rank, alpha=4, towers=["text", "video"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[kind](trained)
    expected = summarize(model, optimizer)["memory_bytes"]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert expected == {
        "weights": num_bytes(model.state_dict().values()) + num_bytes(unsaved_buffers(model)),
        "gradients": num_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        "optimizer_state": num_bytes(state_tensors(optimizer)),
    }


def unsaved_buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name not in model.state_dict()]


def test_the_memory_of_other_optimizers_is_unknown():
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(2))])
    assert optimizer_state_bytes(optimizer) is None
    assert "an unknown size of Adagrad" in to_text(summarize_of(optimizer))


def summarize_of(optimizer: torch.optim.Optimizer) -> dict:
    memory = {"weights": 8, "gradients": 8, "optimizer_state": optimizer_state_bytes(optimizer)}
    return {"parameters": {}, "optimizer": type(optimizer).__name__, "memory_bytes": memory}


def test_parameters_are_counted_by_tower():
    model = MultimodalForPreTraining(tiny.tiny_config())
    model.freeze(["audio"])
    add_lora(model, rank=3, alpha=3, towers=["video"])
    first = next(model.towers["text"].parameters())
    others = [parameter for parameter in model.parameters() if parameter is not first]
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.2}])
    found = summarize(model, optimizer)["parameters"]
    assert list(found) == ["text", "audio", "video", "fusion", "heads"]
    sizes = {name: sum(p.numel() for p in tower.parameters()) for name, tower in model.towers.items()}
    assert {name: found[name]["total"] for name in sizes} == sizes
    assert sum(part["total"] for part in found.values()) == sum(p.numel() for p in model.parameters())
    assert found["text"] == {"total": sizes["text"], "trainable": sizes["text"], "learning_rates": [0.1, 0.2]}
    assert found["audio"]["trainable"] == 0 and found["audio"]["learning_rates"] == []
    # Two layers with four projections of 16 to 16 dimensions, each with two matrices of rank 3.
    assert found["video"]["trainable"] == 2 * 4 * 2 * 3 * 16
    assert found["heads"]["learning_rates"] == [0.2, 0.2]


def test_the_summary_is_formatted_as_a_table():
    parameters = {
        "text": {"total": 1234567, "trainable": 1000, "learning_rates": [0.00001, 0.0001]},
        "audio": {"total": 50, "trainable": 0, "learning_rates": []},
        "heads": {"total": 2, "trainable": 2, "learning_rates": [0.0001, 0.0001]},
    }
    memory = {"weights": 4938476, "gradients": 4008, "optimizer_state": 8020}
    text = to_text({"parameters": parameters, "optimizer": "AdamW", "memory_bytes": memory})
    assert text.splitlines() == [
        "            parameters       trained  learning rate",
        "text         1,234,567         1,000  1e-05 to 0.0001",
        "audio               50             0  -",
        "heads                2             2  0.0001",
        "Memory per process: 4.9 MB of weights, 0.0 MB of gradients, 0.0 MB of AdamW; and activations.",
    ]


def test_saved_activations_are_counted_once_and_without_weights():
    first, second = nn.Linear(10, 20), nn.Linear(20, 5)
    model, inputs = nn.Sequential(first, nn.ReLU(), second), torch.ones(7, 10)
    saved = SavedActivations(model)
    with saved:
        loss = model(inputs).sum()
    loss.backward()
    # Inputs of both layers, with four bytes per number; ReLU saves the input of the second layer, too.
    assert saved.num_bytes == 4 * (7 * 10 + 7 * 20)
    gradient = first.weight.grad.clone()
    first.weight.grad = None
    model(inputs).sum().backward()
    assert torch.equal(first.weight.grad, gradient)


def test_activations_that_were_released_do_not_count():
    layer, inputs = nn.Linear(10, 20), torch.ones(7, 10)
    saved = SavedActivations(layer)
    with saved:
        for _ in range(3):
            layer(inputs + 1)  # its gradient is not computed
        layer(inputs + 1).sum().backward()
    assert saved.num_bytes == 4 * 7 * 10


def test_tensors_without_memory_are_counted():
    def count() -> int:
        model = MultimodalForPreTraining(tiny.tiny_config("merge", text="deberta")).train()
        saved = SavedActivations(model)
        with saved:
            model(**{name: values.clone() for name, values in batch.items()})
        return saved.num_bytes

    batch = tiny.make_batch()
    expected = count()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert count() == expected > 100_000


def test_only_the_inputs_of_checkpointed_layers_count():
    model, inputs = nn.Sequential(nn.Linear(10, 20), nn.ReLU()), torch.ones(7, 10)
    saved = SavedActivations(model)
    with saved:
        checkpoint(model, inputs, use_reentrant=False).sum().backward()
    assert saved.num_bytes == 4 * 7 * 10


def test_a_run_shows_the_summary_once_and_records_it(start, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(summary.logger, "warning", said.append)
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "lora_rank": 2, "lora_towers": "text"}
    run(*start, "--do_train", *flags(output_dir=tmp_path, **settings))
    record = json.loads((tmp_path / "run.json").read_text())["model"]
    assert sorted(said[0].splitlines()) == sorted(to_text(record).splitlines()) and len(said) == 2
    assert record["optimizer"] == "AdamW" and record["parameters"]["text"]["trainable"] == 4 * 2 * 2 * 16
    size = record["memory_bytes"]["activations"]
    assert size > 10_000 and said[1] == f"Activations, measured in the first batch: {size / 1e6:,.1f} MB."


def test_activation_checkpointing_saves_memory(start, tmp_path):
    sizes = []
    for towers in ([], ["text", "audio", "video", "fusion"]):
        given = flags(gradient_checkpointing_towers=towers) if towers else []
        folder = tmp_path / str(len(towers))
        run(*start, "--do_train", *flags(output_dir=folder, max_steps=1), *given)
        sizes.append(json.loads((folder / "run.json").read_text())["model"]["memory_bytes"]["activations"])
    assert sizes[1] < 0.8 * sizes[0]
