"""FSDP2 over two processes: the losses of whole models, and checkpoints that each can go on from."""

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

from simple_multimodal.training.trainer import MultimodalTrainer
from tests.conftest import REPOSITORY
from tests.faults.runs import commands, finish_together
from tests.training.tiny_run import flags, write_clips


def shard() -> None:
    """What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` sets; on a CPU, for which accelerate 1.15
    does not shard.
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of six steps, by how they were trained before and after step 3."""
    folder = tmp_path_factory.mktemp("fsdp")
    write_clips(folder / "clips")
    argv = [*commands(folder), *flags("--do_eval", max_steps=6, save_steps=3, logging_steps=1, learning_rate=1e-3)]

    def train(name, prepare, *more):
        log = folder / name
        log.mkdir()
        codes = finish_together([*argv, *flags(output_dir=log / "out"), *more], log, prepare=prepare)
        assert codes == [0, 0], (log / "rank-0.log").read_text()[-3000:]

    def go_on(name, source, prepare):
        """From a copy, which lies elsewhere: what came after in its own folder is not looked at."""
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
    """Of each step, and of the evaluation after the last one."""
    history = json.loads((folder / "out/trainer_state.json").read_text())["log_history"]
    evaluated = json.loads((folder / "out/eval_results.json").read_text())
    return [log["loss"] for log in history if "loss" in log] + [evaluated["eval_loss"]]


@pytest.mark.parametrize("name", ["sharded", "sharded-whole", "whole-sharded"])
def test_losses_and_weights_of_whole_models(runs, name):
    assert logged(runs / name) == pytest.approx(logged(runs / "whole"), rel=1e-4) and len(logged(runs / name)) == 7
    own, known = (load_file(runs / n / "out/model.safetensors") for n in (name, "whole"))
    for tensor in known:
        torch.testing.assert_close(own[tensor], known[tensor], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_as_an_uninterrupted_one(runs):
    own, known = (load_file(runs / n / "out/model.safetensors") for n in ("sharded-sharded", "sharded"))
    assert own.keys() == known.keys() and all(own[name].equal(known[name]) for name in known)
    assert logged(runs / "sharded-sharded") == logged(runs / "sharded")


def test_checkpoints_look_the_same(runs):
    folders = [runs / name / "out/checkpoint-3" for name in ("whole", "sharded")]
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in folders]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
