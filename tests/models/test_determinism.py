"""With `--full_determinism` torch refuses operations on CUDA that have no deterministic form: a step uses none."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simple_multimodal.alpro import AlproForQuestionAnswering
from simple_multimodal.models.encoders import get_encoder_class
from simple_multimodal.models.loading import load_tower_config
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from tests.models.alpro import tiny as alpro
from tests.models.distributed_worker import CASES, build
from tests.models.test_host_reads import TEXT_INPUTS, audio_inputs, image_inputs
from tests.models.tiny import make_batch, tiny_config
from tests.models.tiny_towers import write_checkpoint

REFUSED = (
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "max_pool3d_with_indices_backward", "fractional_max_pool2d_backward"),
    *("fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward"),
    *("upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward"),
    *("_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward"),
    *("reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "_ctc_loss_backward"),
    *("_embedding_bag_dense_backward", "put_", "put", "histc", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("median", "bincount", "cumsum"),
)
"""Operations that `torch.use_deterministic_algorithms` (2.11) refuses on CUDA; `cumsum` only for floating point."""


class NoteRefused(TorchDispatchMode):
    """Collects the operations in [`REFUSED`], including those of the backward pass."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.overloadpacket.__name__
        if name in REFUSED and not (name == "cumsum" and not args[0].is_floating_point()):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def refused_in(model: nn.Module, batch: dict[str, torch.Tensor]) -> set[str]:
    """Return the operations of one training step that CUDA would refuse."""
    with NoteRefused() as noted:
        model.train()(**batch).loss.backward()
    return noted.names


@pytest.mark.parametrize("case", CASES)
def test_a_step_with_all_objectives_is_deterministic(case):
    assert refused_in(build(case), make_batch()) == set()


def test_a_step_with_deberta_is_deterministic():
    assert refused_in(MultimodalForPreTraining(tiny_config(text="deberta")), make_batch()) == set()


def test_steps_of_question_answering_and_alpro_are_deterministic():
    labels = torch.tensor([0, 1, -1, 2, 0, 1])
    model = MultimodalForQuestionAnswering(tiny_config(num_labels=3))
    assert refused_in(model, {**make_batch(), "labels": labels}) == set()
    assert refused_in(alpro.build(), alpro.make_batch()) == set()
    model = alpro.build(AlproForQuestionAnswering, num_labels=3)
    assert refused_in(model, {**alpro.make_batch(), "labels": labels[:5]}) == set()


BICUBIC, BILINEAR = {"upsample_bicubic2d_backward"}, {"_upsample_bilinear2d_aa_backward"}


@pytest.mark.parametrize(
    ("kind", "modality", "size", "inputs", "refused"),
    [
        ("clip", "text", (30, 0, 7), TEXT_INPUTS, set()),
        ("siglip", "text", (30, 0, 1), TEXT_INPUTS, set()),
        ("siglip2", "text", (60, 0, 1), TEXT_INPUTS, set()),
        ("clap", "text", (30, 1, 2), TEXT_INPUTS, set()),
        ("ast", "audio", (16, 64), audio_inputs(16, 64), set()),
        ("clip", "video", (3, 16, 16), image_inputs(3, 16), set()),
        ("siglip", "video", (3, 16, 16), image_inputs(3, 16), set()),
        ("siglip2", "video", (3, 16, 16), image_inputs(3, 16), set()),
        ("timesformer", "video", (4, 16, 16), image_inputs(4, 16), set()),
        ("pe_audio_video", "video", (3, 16, 16), image_inputs(3, 16), set()),
        # An interpolated position table, and windows of another length: see docs/reliability.md.
        ("clap", "audio", (8, 101), audio_inputs(8, 101), BICUBIC),
        ("clip", "video", (3, 24, 24), image_inputs(3, 24), BICUBIC),
        ("siglip", "video", (3, 24, 24), image_inputs(3, 24), BICUBIC),
        ("siglip2", "video", (3, 24, 24), image_inputs(3, 24), BILINEAR),
    ],
)
def test_other_towers_are_deterministic_except_for_interpolation(tmp_path, kind, modality, size, inputs, refused):
    config = load_tower_config(write_checkpoint(tmp_path, kind), modality)
    encoder_class = get_encoder_class(config.model_type, modality)
    encoder = encoder_class(encoder_class.fit_config(config, *size)).train()
    with NoteRefused() as noted:
        output = encoder(*inputs)
        sum(values.sum() for values in (output.tokens, output.embedding) if values is not None).backward()
    assert noted.names == refused
