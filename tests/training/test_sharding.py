"""FSDP2 over two processes: losses of unsharded models, and checkpoints that both can resume from."""

import json
import os
import shutil

import pytest
import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.conftest import REPOSITORY
from tests.faults.runs import commands, finish_together
from tests.training.tiny_run import flags, write_clips


def shard() -> None:
    """Shard as `accelerate launch --config_file configs/accelerate/fsdp2.yaml` does, but on a CPU, for which
    accelerate 1.15 does not shard.
    """
    config = yaml.safe_load((REPOSITORY / "configs/accelerate/fsdp2.yaml").read_text())
    os.environ |= {name.upper(): str(value) for name, value in config["fsdp_config"].items()}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    init = PartialState.__init__

    def as_if_on_gpus(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_if_on_gpus
    get_grad_norm = MultimodalTrainer._get_grad_norm

    def is_sharded(self, model, *args, **kwargs):
        assert isinstance(model, FSDPModule) and isinstance(model.multimodal.fusion.stacks["text"][0], FSDPModule)
        return get_grad_norm(self, model, *args, **kwargs)

    MultimodalTrainer._get_grad_norm = is_sharded


SHARDED, WHOLE = {0: shard, 1: shard}, {}
WEIGHTS = 1e-4  # relative to the largest weight: Adam turns rounding errors of small gradients into full steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of six steps, named by how they were trained before and after step 3."""
    folder = tmp_path_factory.mktemp("fsdp")
    write_clips(folder / "clips")
    argv = [*commands(folder), *flags("--do_eval", max_steps=6, save_steps=3, logging_steps=1, learning_rate=1e-3)]

    def train(name, prepare, *more):
        log = folder / name
        log.mkdir()
        codes = finish_together([*argv, *flags(output_dir=log / "out"), *more], log, prepare=prepare)
        assert codes == [0, 0], (log / "rank-0.log").read_text()[-3000:]

    def go_on(name, source, prepare):
        """Resume from a copy of a checkpoint, so that later checkpoints in its folder do not matter."""
        checkpoint = folder / f"{name}-from" / "checkpoint-3"
        shutil.copytree(folder / source / "out/checkpoint-3", checkpoint)
        train(name, prepare, *flags(resume_from_checkpoint=checkpoint))

    train("whole", WHOLE)
    train("sharded", SHARDED)
    go_on("sharded-sharded", "sharded", SHARDED)
    go_on("sharded-whole", "sharded", WHOLE)
    go_on("whole-sharded", "whole", SHARDED)
    return folder


def logged(folder) -> list[float]:
    """Return the loss of each step, and of the evaluation after the last one."""
    history = json.loads((folder / "out/trainer_state.json").read_text())["log_history"]
    evaluated = json.loads((folder / "out/eval_results.json").read_text())
    return [log["loss"] for log in history if "loss" in log] + [evaluated["eval_loss"]]


@pytest.mark.parametrize("name", ["sharded", "sharded-whole", "whole-sharded"])
def test_losses_and_weights_are_the_same_as_without_sharding(runs, name):
    assert logged(runs / name) == pytest.approx(logged(runs / "whole"), rel=1e-4) and len(logged(runs / name)) == 7
    own, known = (load_file(runs / n / "out/model.safetensors") for n in (name, "whole"))
    assert_close(own, known, WEIGHTS)


def test_a_resumed_run_equals_an_uninterrupted_one(runs):
    own, known = (load_file(runs / n / "out/model.safetensors") for n in ("sharded-sharded", "sharded"))
    assert own.keys() == known.keys() and all(own[name].equal(known[name]) for name in known)
    assert logged(runs / "sharded-sharded") == logged(runs / "sharded")


def test_features_rates_by_layer_and_the_best_of_several_evaluations(tmp_path):
    """Losses and weights are the same as without sharding; training continues after evaluations."""
    write_clips(tmp_path / "clips")
    argv = [*commands(tmp_path), *flags(save_steps=2)]
    assert finish_together([*argv, *flags(output_dir=tmp_path / "base", max_steps=1)], tmp_path, prepare={},
                           num_processes=1) == [0]  # fmt: skip
    roots = {name: tmp_path / "clips" / name for name in ("video", "audio", "text")}
    dataset = RowDataset.from_manifest(tmp_path / "clips/train.csv", roots=roots)
    for tower in ("audio", "video"):
        TowerFeatures.from_pretrained(tmp_path / "base").write(tower, [dataset], tmp_path / "features")
    argv += flags("--do_eval", task="retrieval", model_name_or_path=tmp_path / "base", features=tmp_path / "features")
    argv += flags(freeze=["audio", "video"], layer_decay=0.5, max_steps=4, logging_steps=1, learning_rate=1e-2)
    argv += flags(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    argv += flags(metric_for_best_model="text_to_video_mean_rank", greater_is_better=True)
    for name, prepare in (("whole", WHOLE), ("sharded", SHARDED)):
        (tmp_path / name).mkdir()
        codes = finish_together(
            [*argv, *flags(output_dir=tmp_path / name / "out")], tmp_path / name, prepare=prepare, seconds=120
        )
        assert codes == [0, 0], (tmp_path / name / "rank-0.log").read_text()[-3000:]
    assert logged(tmp_path / "sharded") == pytest.approx(logged(tmp_path / "whole"), rel=1e-4)
    state = json.loads((tmp_path / "sharded/out/trainer_state.json").read_text())
    own = load_file(tmp_path / "sharded/out/model.safetensors")
    best = load_file(tmp_path / f"sharded/out/checkpoint-{state['best_global_step']}/model.safetensors")
    known = load_file(tmp_path / "whole/out/model.safetensors")
    assert state["best_global_step"] == 2 and all(own[name].equal(best[name]) for name in best)
    assert_close(own, known, WEIGHTS)


@pytest.mark.parametrize(("values", "message"), [
    ({"lora_rank": 2}, "error: LoRA does not work with FSDP and DeepSpeed: every process needs all weights. Train"),
    ({"contrastive_chunk_size": 1}, "error: --contrastive_chunk_size does not work with FSDP and DeepSpeed"),
])  # fmt: skip
def test_settings_that_need_unsharded_models_are_errors(tmp_path, values, message):
    write_clips(tmp_path / "clips")
    argv = [*commands(tmp_path), *flags(output_dir=tmp_path / "out", max_steps=1, **values)]
    assert finish_together(argv, tmp_path, prepare=SHARDED, seconds=60) == [1, 1]
    assert message in (tmp_path / "rank-0.log").read_text()


def test_checkpoints_have_the_same_files_and_states(runs):
    folders = [runs / name / "out/checkpoint-3" for name in ("whole", "sharded")]
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in folders]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
