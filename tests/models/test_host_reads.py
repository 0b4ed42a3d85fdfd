"""A training step reads nothing from the device: the host would have to wait, and then the device for the host."""

import pytest
import torch
from torch import nn

from simple_multimodal.alpro import AlproForQuestionAnswering
from simple_multimodal.models import losses, matching
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_tower_config
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.models.alpro import tiny as alpro
from tests.models.distributed_worker import CASES
from tests.models.host_reads import refusing_host_reads
from tests.models.tiny import make_batch, naming_windows, tiny_config
from tests.models.tiny_towers import write_checkpoint


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch):
    """Avoid autocast, which does not support tensors without values even when it is off."""
    monkeypatch.setattr(losses, "similarities", lambda first, second: first @ second.T)
    monkeypatch.setattr(matching, "compute_dtype", lambda values: values.dtype)


def step(model: nn.Module, batch: dict[str, torch.Tensor], device: str, **settings) -> None:
    """Run one training step under [`refusing_host_reads`]."""
    model.train().to(device)
    batch = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
    # The fused step does not support tensors without values; without it, steps are counted on the host.
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cpu")
    with refusing_host_reads(device):
        model.count_items(batch)
        model(**batch, **settings).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("text", ["bert", "deberta"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_with_all_objectives_reads_nothing(case, text, device):
    model = MultimodalForPreTraining(tiny_config(**CASES[case], text=text))
    step(model, naming_windows(make_batch()), device)


def test_a_step_in_chunks_reads_nothing():
    step(MultimodalForPreTraining(tiny_config()), naming_windows(make_batch()), "cpu", chunk_size=4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_of_question_answering_reads_nothing(device):
    answers = {"labels": torch.tensor([0, 1, -1, 2, 0, 1])}
    step(
        MultimodalForQuestionAnswering(tiny_config(num_labels=3)), {**naming_windows(make_batch()), **answers}, device
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_of_alpro_reads_nothing(device):
    step(alpro.build(), alpro.make_batch(), device)
    batch = {**alpro.make_batch(), "labels": torch.tensor([0, 1, 1, -1, 0])}
    step(alpro.build(AlproForQuestionAnswering, num_labels=2), batch, device)


TEXT_INPUTS = (torch.ones(2, 12, dtype=torch.long), torch.ones(2, 12, dtype=torch.long))


def audio_inputs(bins: int, frames: int) -> tuple[torch.Tensor, ...]:
    return torch.ones(2, 1, bins, 2 * frames), torch.ones(2, 2 * frames, dtype=torch.bool), torch.ones(2, 2 * frames)


def image_inputs(frames: int, side: int) -> tuple[torch.Tensor, ...]:
    return torch.ones(2, frames, 3, side, side, dtype=torch.uint8), torch.ones(2, frames)


@pytest.mark.parametrize(
    ("kind", "modality", "size", "inputs"),
    [
        ("clip", "text", (30, 0, 7), TEXT_INPUTS),
        ("siglip", "text", (30, 0, 1), TEXT_INPUTS),
        ("siglip2", "text", (60, 0, 1), TEXT_INPUTS),
        ("clap", "text", (30, 1, 2), TEXT_INPUTS),
        ("clap", "audio", (8, 101), audio_inputs(8, 101)),
        ("ast", "audio", (16, 64), audio_inputs(16, 64)),
        ("clip", "video", (3, 16, 16), image_inputs(3, 16)),
        ("clip", "video", (3, 24, 24), image_inputs(3, 24)),
        ("siglip", "video", (3, 24, 24), image_inputs(3, 24)),
        ("siglip2", "video", (3, 24, 24), image_inputs(3, 24)),
        ("timesformer", "video", (4, 16, 16), image_inputs(4, 16)),
        ("pe_audio_video", "video", (3, 16, 16), image_inputs(3, 16)),
    ],
)
def test_other_towers_read_nothing(tmp_path, kind, modality, size, inputs):
    config = load_tower_config(write_checkpoint(tmp_path, kind), modality)
    encoder_class = get_encoder_class(config.model_type, modality)
    encoder = encoder_class(encoder_class.fit_config(config, *size)).train().to("meta")
    inputs = [values.to("meta") for values in inputs]
    with refusing_host_reads("meta"):
        output = encoder(*inputs)
        sum(values.sum() for values in (output.tokens, output.embedding) if values is not None).backward()


@pytest.mark.parametrize(
    "read",
    [
        lambda values: values.sum().item(),
        lambda values: bool((values > 0).all()),
        lambda values: values.tolist(),
        lambda values: values.cpu(),
        lambda values: values[values > 0],
        lambda values: values.nonzero(),
        lambda values: torch.tensor([0.5, 2.0], device=values.device) * values,
        lambda values: torch.arange(2).to(values.device) * values,
    ],
)
def test_reads_on_the_host_are_refused(read):
    with refusing_host_reads("meta"), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        read(torch.ones(2, device="meta"))
