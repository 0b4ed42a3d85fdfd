"""Batches that are encoded in chunks have the same losses and gradients as those that are encoded at once."""

import weakref

import pytest
import torch
from torch import nn
from transformers import ViTConfig

from simple_multimodal.models.gradient_caching import _Chunk, run_in_chunks, split_batch
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining, MultimodalForRetrieval
from tests.closeness import assert_close
from tests.models.alpro import tiny as alpro
from tests.models.distributed_worker import CASES, build, gradients_of
from tests.models.tiny import LACKING, ROWS, SIZES, make_batch, naming_windows, randomize, tiny_config

BATCH = make_batch(ROWS + LACKING)
"""Twelve rows, two groups of several."""

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def with_dropout(text: str = "bert", **changes) -> MultimodalForPreTraining:
    config = tiny_config("merge", text=text, **changes)
    for part in (config.text_config, config.audio_config, config.video_config):
        part.update(DROPOUT)
    config.crossformer_config = ViTConfig(**{**SIZES, **DROPOUT}, initializer_range=0.1)
    torch.manual_seed(0)
    return randomize(MultimodalForPreTraining(config)).train()


def step(model: nn.Module, batch: dict[str, torch.Tensor] = BATCH, *, seed: int = 1, **settings) -> dict:
    """Return losses, metrics and gradients of one step, and the random numbers after it."""
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(**batch, **settings)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found = {"losses": output.losses, "metrics": output.metrics, "logits": output.logits, "gradients": gradients}
    return {**found, "random": torch.rand(3)}


def assert_same(found: dict, expected: dict) -> None:
    for part in ("losses", "metrics"):
        assert list(found[part]) == list(expected[part])
        assert not any(value.requires_grad for value in found[part].values())
        assert_close(found[part], expected[part])
    assert_close(found["gradients"], expected["gradients"])


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_whole_batch(case):
    model = build(case)
    expected = step(model)
    assert len(gradients_of(model)) == len(expected["gradients"])
    for chunk_size in (1, 3, 8, 100):
        found = step(model, chunk_size=chunk_size)
        assert_same(found, expected)
        assert_same(step(model, naming_windows(BATCH), chunk_size=chunk_size), expected)
        assert_close(found["logits"], expected["logits"])


@pytest.mark.parametrize("objective", ["contrastive_tv", "contrastive_ta", "contrastive_av", "contrastive_tav", "mlm"])
def test_a_single_objective_can_be_trained_in_chunks(objective):
    model = build("cross_attention")
    found = step(model, objectives=[objective], chunk_size=5)
    assert_same(found, step(model, objectives=[objective]))
    assert list(found["losses"]) == [objective] and found["logits"] is None


@pytest.mark.parametrize("objectives", [None, ["matching"]])
def test_frozen_towers_can_run_in_chunks(objectives):
    torch.manual_seed(0)
    model = randomize(MultimodalForRetrieval(tiny_config())).train()
    model.freeze(["text", "audio", "video", "fusion"])
    found = step(model, objectives=objectives, chunk_size=5)
    assert_same(found, step(model, objectives=objectives))
    assert "matching_head.weight" in found["gradients"]


def test_alpro_can_be_trained_in_chunks():
    model, batch = alpro.build().train(), alpro.make_batch()
    assert_same(step(model, batch, chunk_size=2), step(model, batch))


@pytest.mark.parametrize("text", ["bert", "deberta"])
@pytest.mark.parametrize("contrastive_form", ["softmax", "sigmoid"])
def test_the_second_pass_repeats_the_dropout_of_the_first(monkeypatch, text, contrastive_form):
    # Dropout depends on how rows are spread over calls, so compare with a run over the same chunks that keeps their
    # graphs.
    model = with_dropout(text, contrastive_form=contrastive_form)
    found, other = step(model, chunk_size=5), step(model, chunk_size=5, seed=2)
    monkeypatch.setattr(_Chunk, "apply", lambda call, num_leaves, *inputs: call(inputs[:num_leaves]))
    expected = step(model, chunk_size=5)
    assert_same(found, expected)
    assert torch.equal(found["random"], expected["random"])  # the backward pass leaves the generator as it was
    name = "multimodal.video_encoder.embeddings.patch_embeddings.projection.weight"
    assert not torch.allclose(other["gradients"][name], found["gradients"][name], rtol=0.01)


def test_chunks_are_as_exact_as_reduced_precision_allows(monkeypatch):
    model = build("co_attention")

    def reduced_step(**settings) -> dict:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**BATCH, **settings)
        model.zero_grad()
        output.loss.backward()
        return {"losses": output.losses, "gradients": gradients_of(model)}

    found, exact = reduced_step(chunk_size=5), step(model)
    monkeypatch.setattr(_Chunk, "apply", lambda call, num_leaves, *inputs: call(inputs[:num_leaves]))
    expected = reduced_step(chunk_size=5)
    assert found["losses"] == expected["losses"]
    for name, gradient in expected["gradients"].items():
        if "logit_bias" in name:
            continue  # a few numbers whose sum nearly cancels
        error, rounding = (
            (values["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
            for values in (found, exact)
        )
        assert error < max(0.02, rounding), name


def test_the_loss_scale_of_half_precision_passes_through_chunks():
    model = build("merge")
    expected = step(model)["gradients"]
    model.zero_grad()
    (model(**BATCH, chunk_size=3).loss * 1024).backward()
    assert_close({name: gradient / 1024 for name, gradient in gradients_of(model).items()}, expected)


def test_a_chunk_keeps_nothing_but_its_outputs():
    layer, alive, most = nn.Linear(4, 4), weakref.WeakSet(), []

    def function(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        hidden = layer(rows["x"])
        alive.add(hidden.untyped_storage())
        most.append(len(alive))
        return {"y": hidden.exp()}

    outputs = run_in_chunks(layer, function, {"x": torch.ones(10, 4)}, 3)
    assert [len(output["y"]) for output in outputs] == [3, 3, 3, 1] and len(alive) == 0
    torch.cat([output["y"] for output in outputs]).sum().backward()
    assert most == [1] * 8  # four calls forward and four backward, one after the other


def test_gradients_flow_to_inputs():
    layer = nn.Linear(4, 4)
    rows = torch.randn(7, 4, requires_grad=True)
    for size in (None, 2):
        outputs = run_in_chunks(layer, lambda pair: layer(pair[0]) * pair[1][:, None], (rows, torch.arange(7)), size)
        torch.cat(outputs).square().sum().backward()
        gradient, rows.grad = rows.grad, None
        if size is None:
            expected = gradient
    torch.testing.assert_close(gradient, expected)


@torch.no_grad()
def test_chunks_work_without_gradients():
    model = build("cross_attention").eval()
    torch.testing.assert_close(model(**BATCH, chunk_size=5).loss, model(**BATCH).loss)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 12])
def test_chunks_list_the_windows_of_their_rows(chunk_size):
    """Each lists at least one: a chunk without audio runs a window of zeros, like a batch without audio."""
    chunks = split_batch(naming_windows(BATCH), chunk_size)
    found = []
    for number, chunk in enumerate(chunks):
        names = {"audio_windows", *BATCH}
        assert set(chunk) == names and len(chunk["audio_mask"]) == chunk_size or number == len(chunks) - 1
        windows = chunk["audio_windows"]
        if chunk["audio_mask"].any():
            found += [(number * chunk_size + row, window) for row, window in windows.tolist()]
        else:
            assert windows.tolist() == [[0, 0]]
    assert found == [(0, 0), (1, 0), (1, 1), (3, 0), (4, 0), (8, 0), (8, 1), (9, 0)]
    assert all("audio_windows" not in chunk for chunk in split_batch(BATCH, chunk_size))
