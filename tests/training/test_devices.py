"""One process on a machine with several GPUs."""

import pytest
import torch

from arguments import parse_args
from simple_multimodal.training import arguments
from tests.training.tiny_run import flags, run


@pytest.mark.parametrize("num_gpus", [2, 8])
def test_one_process_uses_one_gpu_and_names_the_launcher(start, trainers, tmp_path, monkeypatch, num_gpus):
    """`Trainer` would wrap the model in `DataParallel`, which cannot split the counts of a step."""
    said = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(arguments.logger, "warning", said.append)
    here = [flag for flag in start if flag != "--use_cpu"]
    metrics = run(*here, *flags("--do_train", output_dir=tmp_path / "out", max_steps=1))
    (trainer,) = trainers
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 2 and "train_loss" in metrics
    assert not any(isinstance(module, torch.nn.DataParallel) for module in trainer.model_wrapped.modules())
    (line,) = [text for text in said if "GPU" in text]
    assert f"of the {num_gpus} here" in line and f"torchrun --nproc_per_node {num_gpus} train.py" in line


def test_there_is_no_warning_with_one_gpu_or_none(monkeypatch):
    monkeypatch.setattr(arguments.logger, "warning", lambda text: pytest.fail(text))
    for num_gpus in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num_gpus=num_gpus: num_gpus)
        assert parse_args([])[-1].n_gpu == num_gpus
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse_args(["--use_cpu"])[-1].n_gpu == 0
