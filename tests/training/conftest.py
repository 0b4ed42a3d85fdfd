"""Clips, configs and checkpoints of the smallest size, written once."""

from pathlib import Path

import pytest

from tests.training import tiny_run


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Folder of clips with `train.csv` and `validation.csv`."""
    return tiny_run.write_clips(tmp_path_factory.mktemp("run") / "clips")


@pytest.fixture(scope="session")
def start(clips, tmp_path_factory) -> list[str]:
    """Flags of a run on those clips with tiny towers; two rows in a batch."""
    folder = tmp_path_factory.mktemp("configs")
    configs = tiny_run.config_flags(tiny_run.write_configs(folder))
    data = tiny_run.flags(per_device_train_batch_size=2, cache_dir=folder / "cache")
    return [*tiny_run.data_flags(clips), *configs, *data]
