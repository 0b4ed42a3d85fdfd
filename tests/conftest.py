"""Setup of all tests: one thread, no accelerator, no network, and the folder of real clips if it exists."""

import os
from pathlib import Path

import pytest

# Before torch is imported, and for the commands that tests start.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


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
