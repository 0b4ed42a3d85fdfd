"""Small clips, configs and checkpoints, written once."""

from pathlib import Path

import pytest
from transformers import TrainerCallback

from simple_multimodal.training.trainer import MultimodalTrainer
from tests.training import tiny_run


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Folder of clips with `train.csv` and `validation.csv`."""
    return tiny_run.write_clips(tmp_path_factory.mktemp("run") / "clips")


@pytest.fixture(scope="session")
def start(clips, tmp_path_factory) -> list[str]:
    """Flags of a run on the clips with tiny towers and two rows per batch."""
    folder = tmp_path_factory.mktemp("configs")
    configs = tiny_run.config_flags(tiny_run.write_configs(folder))
    data = tiny_run.flags(per_device_train_batch_size=2, cache_dir=folder / "cache")
    return [*tiny_run.data_flags(clips), *configs, *data]


class Interruption(TrainerCallback):
    """Stops training after some steps without saving, like a crash."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.steps:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted_after(monkeypatch):
    """Function that makes the next runs stop after a number of steps; `None` lets them run to the end."""

    def interrupt(steps: int | None) -> None:
        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            if steps is not None:
                self.add_callback(Interruption(steps))

        monkeypatch.setattr(MultimodalTrainer, "__init__", init)

    original = MultimodalTrainer.__init__
    return interrupt


@pytest.fixture
def trainers(monkeypatch) -> list[MultimodalTrainer]:
    """Trainers that the runs of this test make, in order; each keeps the gradients of its last step."""
    made = []

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            model.kept = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    class KeptTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(KeepGradients())
            made.append(self)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeptTrainer)
    return made
