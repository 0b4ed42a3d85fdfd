"""Setup of all tests: one thread, no accelerator, no network, and the folder of real clips if it exists."""

import gc
import os
from pathlib import Path

import pytest

# Before torch is imported, and for the commands that tests start.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402

from simple_multimodal.cores import available_cores  # noqa: E402

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]

LONG_FILES = (
    "test_train.py", "models/alpro/test_golden.py", "models/test_compile.py", "test_device_check.py",
    "training/test_sharding.py", "models/test_grid.py", "models/test_distributed.py", "faults/test_hostile.py",
    "test_notebooks.py", "modalities/test_own_modality.py", "training/test_bad_samples.py",
    "training/test_features.py",
    "training/test_trainer.py", "faults/test_endings.py", "test_configs.py", "test_library.py",
    "training/test_comparison.py", "training/test_resume.py", "models/test_host_reads.py",
)  # fmt: skip
"""Files that take more than ten seconds. They run first, so that no process is left with a long one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


def pytest_xdist_auto_num_workers() -> int:
    return min(available_cores() + 1, 8)  # one more, because many tests wait for processes


def pytest_collection_finish() -> None:
    # Every run in a test collects garbage, and would otherwise look through all that was imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def index_dir(tmp_path_factory) -> Path:
    """Folder of frame indices for the tests and the commands that they start."""
    folder = tmp_path_factory.mktemp("frame_index")
    os.environ["SIMPLE_MULTIMODAL_INDEX_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real clips and annotations next to a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with real clips, which is not part of the repository")
    return folder
