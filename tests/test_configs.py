"""Every shipped run starts, trains two steps and evaluates, as a user would type it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from simple_multimodal.data.clips import clips_jsonl_to_manifests
from simple_multimodal.data.toy import make_toy_world

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> list[str]:
    """Flags for a toy world of the smallest size."""
    sizes = {"num_train_clips": 4, "num_validation_pictures": 2, "num_validation_sounds": 2, "num_question_clips": 9}
    folder = make_toy_world(tmp_path_factory.mktemp("toy") / "toy", num_pairs=2, num_processes=1, **sizes)
    return ["--data_root", str(folder)]


@pytest.fixture(scope="session")
def clips_data(tmp_path_factory, shared_dir) -> list[str]:
    """Flags for the real clips."""
    manifests = clips_jsonl_to_manifests(shared_dir / "data/clips/clips.jsonl", tmp_path_factory.mktemp("clips"))
    flags = ["--data_root", str(shared_dir / "data/clips")]
    return [*flags, "--train_file", str(manifests["train"]), "--validation_file", str(manifests["validation"])]


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/runs/*.yaml")), ids=lambda path: path.stem)
def test_shipped_run(path, request, tmp_path):
    data = request.getfixturevalue(f"{path.stem}_data")  # a new run needs a fixture `<its name>_data`
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", f"configs/runs/{path.name}", *data]
    command += "--max_train_samples 4 --max_eval_samples 4 --max_steps 2 --use_cpu --dataloader_num_workers 0".split()
    command += ["--per_device_train_batch_size", "2", "--output_dir", "out"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads(result.stdout.splitlines()[-1])
    assert 0 <= metrics["text_to_video_R@1"] <= 1
    assert json.loads((tmp_path / "out/all_results.json").read_text())


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_ways_to_launch(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU" and config.num_processes % config.num_machines == 0
