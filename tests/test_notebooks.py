"""Notebooks run from top to bottom with small settings, and are committed without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb"))
SMALL_SETTINGS = {"NUM_TRAIN_CLIPS": 8, "NUM_STEPS": 2}


def cells(notebook: Path) -> list[dict]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return content["cells"]


def code_of(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_has_no_outputs(notebook):
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(notebook, tmp_path):
    settings, *others = code_of(notebook)
    for name, value in SMALL_SETTINGS.items():
        settings, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", settings, flags=re.MULTILINE)
        assert count == 1, f"{name} is not set in the first cell"
    folder = tmp_path / "docs/notebooks"  # as Jupyter would run it, in a writable copy of the repository
    folder.mkdir(parents=True)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    # With `-c` the main module has no file, as in Jupyter: spawned processes do not run it again.
    command = [sys.executable, "-c", "\n".join([settings, *others])]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "text_to_video_R@1" in result.stdout
    assert (tmp_path / "outputs/first_steps/model/model.safetensors").is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_links_of_notebook_exist(notebook):
    text = "\n".join("".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert links and all((notebook.parent / link).exists() for link in links)
