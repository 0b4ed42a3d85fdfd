"""The trainer does not read from the device in a step, and its optimizer is fused."""

import pytest
import torch
from transformers import TrainerCallback

from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.models.host_reads import refusing_host_reads
from tests.training.tiny_run import flags, run


class RefuseHostReads(TrainerCallback):
    """Raises for reads from the start to the end of each step, which does not include making batches."""

    def __init__(self):
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.context = refusing_host_reads("cpu")
        self.context.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.context.__exit__(None, None, None)
        self.steps += 1


@pytest.fixture
def strict(monkeypatch) -> RefuseHostReads:
    callback = RefuseHostReads()

    class StrictTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(callback)

        def _get_num_items_in_batch(self, *args):
            with refusing_host_reads("cpu"):
                return super()._get_num_items_in_batch(*args)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", StrictTrainer)
    return callback


def test_a_step_with_all_objectives(start, tmp_path, strict):
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=3, save_strategy="no"))
    assert strict.steps == 3


def test_accumulated_batches(start, tmp_path, strict):
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 0, "bf16": True}
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=2, save_strategy="no", **settings))
    assert strict.steps == 2


def test_the_gradient_norm_is_read_if_the_optimizer_is_not_fused(start, tmp_path, strict):
    try:
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=1, optim="adamw_torch"))
    finally:
        strict.context.__exit__(None, None, None)


def test_the_optimizer_is_fused_by_default(start, tmp_path, trainers):
    rates = {"learning_rate": 0.4, "text_learning_rate": 0.1, "layer_decay": 0.5}
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=1, save_strategy="no", **rates))
    optimizer = trainers[0].optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] is True
    assert all(group["fused"] is True for group in optimizer.param_groups)


def test_pinned_batches_are_copied_in_the_background(tmp_path, monkeypatch):
    def non_blocking(**settings) -> bool:
        args = MultimodalTrainingArguments(output_dir=str(tmp_path), **settings)
        return args.accelerator_config.non_blocking

    assert non_blocking() is False  # nothing is pinned without a device
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert non_blocking() is True
    assert non_blocking(dataloader_pin_memory=False) is False
    assert non_blocking(accelerator_config={"non_blocking": False}) is False
