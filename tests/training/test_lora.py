"""LoRA in whole runs: trained weights, resumed runs, and saved files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from simple_multimodal.tasks.retrieval.modeling import MultimodalForPreTraining
from simple_multimodal.tasks.retrieval.retriever import Retriever
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.training.tiny_run import flags, run

LORA = {"lora_rank": 2, "lora_dropout": 0.1, "lora_towers": ["text", "video"]}
STEPS = {"max_steps": 3, "learning_rate": 0.01}


@pytest.fixture
def trainers(monkeypatch) -> list[MultimodalTrainer]:
    """Trainers that the runs of this test make; each keeps its weights before and after training."""
    made = []

    class KeptTrainer(MultimodalTrainer):
        def train(self, *args, **kwargs):
            made.append(self)
            self.before = {name: value.clone() for name, value in self.model.named_parameters()}
            result = super().train(*args, **kwargs)
            self.after = {name: value.clone() for name, value in self.model.named_parameters()}
            return result

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeptTrainer)
    return made


@pytest.fixture(scope="module")
def base(start, tmp_path_factory) -> str:
    """Saved model to add adapters to."""
    folder = tmp_path_factory.mktemp("base")
    run(*start, "--do_train", *flags(output_dir=folder, max_steps=1, save_strategy="no"))
    return str(folder)


@pytest.fixture(scope="module")
def on_base(start, base) -> list[str]:
    """Flags of a run that starts from the saved model."""
    tokens = [token for name, token in zip(["", *start], start, strict=False) if "_config_name" not in name + token]
    return [*tokens, *flags(model_name_or_path=base)]


@pytest.fixture(scope="module")
def tuned(on_base, tmp_path_factory) -> Path:
    """Folder of a run with adapters in the text and video towers."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    run(*on_base, "--do_train", *flags(output_dir=folder, save_steps=2, **LORA, **STEPS))
    return folder


ALL = {"text_encoder", "audio_encoder", "video_encoder", "fusion", "heads"}


def part_of(name: str) -> str:
    return next((part for part in ALL if f"multimodal.{part}." in name), "heads")


@pytest.mark.parametrize(
    ("values", "adapted", "whole"),
    [
        (LORA, {"text_encoder", "video_encoder"}, {"audio_encoder", "fusion", "heads"}),
        ({"lora_rank": 1, "freeze": ["audio", "fusion"]}, {"text_encoder", "video_encoder"}, {"heads"}),
        ({"lora_rank": 1, "lora_towers": ["fusion"], "layer_decay": 0.5}, {"fusion"}, ALL - {"fusion"}),
        ({"freeze": ["text"], "layer_decay": 0.5}, set(), ALL - {"text_encoder"}),
    ],
)
def test_only_adapters_and_unfrozen_parts_change(on_base, tmp_path, trainers, values, adapted, whole):
    # Weight decay also changes weights without gradients, such as embeddings of words that do not occur.
    run(*on_base, "--do_train", *flags(output_dir=tmp_path, weight_decay=0.1, **STEPS, **values))
    before, after = trainers[0].before, trainers[0].after
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    meant = {name for name in after if part_of(name) in whole or (part_of(name) in adapted and ".lora_" in name)}
    assert {name for name in changed ^ meant if not is_without_gradient(name)} == set()
    assert {part_of(name) for name in changed} == adapted | whole
    assert changed <= meant


def is_without_gradient(name: str) -> bool:
    """Return whether a parameter is a bias of keys: softmax cancels it, so it only changes by rounding, if at all."""
    return name.endswith(("key.bias", "k_proj.bias", "key.base_layer.bias"))


def test_a_run_saves_the_merged_model_and_the_adapter(tuned, base, on_base, clips):
    names = set(load_file(tuned / "model.safetensors"))
    assert names == set(load_file(Path(base) / "model.safetensors"))
    assert json.loads((tuned / "config.json").read_text())["lora"] is None
    checkpoint = load_file(tuned / "checkpoint-2/model.safetensors")
    assert {name.replace(".base_layer", "") for name in checkpoint if ".lora_" not in name} == names

    merged = MultimodalForPreTraining.from_pretrained(tuned).eval()
    model = PeftModel.from_pretrained(MultimodalForPreTraining.from_pretrained(base), tuned / "adapter").eval()
    alone = model.base_model.model
    torch.manual_seed(0)
    batch = {"input_ids": torch.randint(0, 200, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    batch |= {"pixel_values_videos": torch.randn(3, 2, 3, 32, 32), "video_seconds": torch.zeros(3, 2)}
    batch |= {"audio_values": torch.randn(3, 1, 16, 64), "audio_attention_mask": torch.ones(3, 64, dtype=torch.bool)}
    batch |= {"audio_seconds": torch.zeros(3, 64)}
    batch |= {f"{name}_mask": torch.ones(3, dtype=torch.bool) for name in ("text", "audio", "video")}

    def logits(one: MultimodalForPreTraining) -> torch.Tensor:
        (_, text), (_, clip) = one.encode_text(batch), one.encode_clip(batch)
        return one.matching_logits(text, clip)

    untrained = MultimodalForPreTraining.from_pretrained(base).eval()
    assert_close(logits(alone), logits(merged))
    assert (logits(untrained) - logits(merged)).abs().max() > 1e-3

    retriever = Retriever.from_pretrained(tuned)
    assert retriever.search("a cat", retriever.index([clips / "video/0.mp4", clips / "video/1.mp4"]))


def test_an_adapter_folder_is_not_a_model(on_base, tuned, tmp_path):
    with pytest.raises(ValueError, match="adapter only holds LoRA adapters. Give the folder above it"):
        Retriever.from_pretrained(tuned / "adapter")
    with pytest.raises(ValueError, match="adapter only holds LoRA adapters. Give the folder above it"):
        run(*on_base, "--do_eval", *flags(model_name_or_path=tuned / "adapter", output_dir=tmp_path))


def test_the_folder_of_an_unfinished_run_is_not_a_model(tuned, tmp_path):
    for step in (8, 12):
        shutil.copytree(tuned, tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="no model yet: its training run has not ended.*such as .*checkpoint-12"):
        Retriever.from_pretrained(tmp_path)


def evaluated(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("eval_") and "_per_second" not in name
            and "runtime" not in name}  # fmt: skip


def test_the_saved_model_is_evaluated(on_base, tmp_path):
    after = evaluated(run(*on_base, *flags(output_dir=tmp_path / "out", **LORA, **STEPS)))
    alone = run(*on_base, "--do_eval", *flags(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "alone"))
    assert after == pytest.approx(evaluated(alone), rel=1e-6)
    checkpoint = tmp_path / "out/checkpoint-3"  # it has adapters, which evaluation merges
    other = run(*on_base, "--do_eval", *flags(model_name_or_path=checkpoint, output_dir=tmp_path / "other"))
    assert after == pytest.approx(evaluated(other), rel=1e-6)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_resumed_run_with_adapters_equals_an_uninterrupted_one(on_base, tmp_path, interrupted_after, steps):
    settings = {"num_train_epochs": 2, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01}
    command = [*on_base, "--do_train", *flags(cache_dir=tmp_path / "cache", **settings, **LORA)]
    run(*command, *flags(output_dir=tmp_path / "straight"))
    interrupted_after(steps)
    with pytest.raises(KeyboardInterrupt):
        run(*command, *flags(output_dir=tmp_path / "resumed"))
    interrupted_after(None)
    run(*command, *flags(output_dir=tmp_path / "resumed"))
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", "checkpoint-8/model.safetensors"):
        expected, found = load_file(tmp_path / "straight" / file), load_file(tmp_path / "resumed" / file)
        assert expected.keys() == found.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_resumed_run_must_have_the_same_adapters(on_base, tuned, base, tmp_path):
    without = [*on_base, "--do_train", *flags(max_steps=4)]
    with pytest.raises(ValueError, match="The run in `output_dir` has LoRA adapters. Use the lora_… settings"):
        run(*without, *flags(output_dir=tuned))
    with pytest.raises(ValueError, match="has LoRA adapters with a different r"):
        run(*without, *flags(output_dir=tuned, **(LORA | {"lora_rank": 3, "lora_alpha": 4})))
    run(*on_base, "--do_train", *flags(output_dir=tmp_path, max_steps=1))
    with pytest.raises(ValueError, match="The run in `output_dir` has no LoRA adapters"):
        run(*without, *flags(output_dir=tmp_path, **LORA))


def test_a_new_run_starts_from_the_merged_weights_of_a_checkpoint(on_base, tuned, tmp_path, trainers):
    source = {"model_name_or_path": tuned / "checkpoint-2"}
    run(*on_base, "--do_train", *flags(output_dir=tmp_path, max_steps=1, **source))
    assert all(parameter.requires_grad for parameter in trainers[0].model.parameters())
    assert not [name for name in trainers[0].before if ".lora_" in name]


def test_the_best_checkpoint_is_loaded_before_the_merge(on_base, tmp_path, trainers):
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    metric = {"metric_for_best_model": "mlm_loss", "greater_is_better": True}
    run(*on_base, *flags(output_dir=tmp_path, **STEPS, **LORA, **best, **metric))
    saved = load_file(Path(trainers[0].state.best_model_checkpoint) / "model.safetensors")
    final = load_file(tmp_path / "model.safetensors")
    name = "multimodal.text_encoder.encoder.layer.0.attention.self.query"
    a, b = (saved[f"{name}.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(final[f"{name}.weight"], saved[f"{name}.base_layer.weight"] + 2 * b @ a)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 0}, "--lora_rank is 0; give 1 or more"),
        ({"lora_rank": 2, "lora_alpha": 0}, "--lora_alpha is 0; give 1 or more"),
        ({"lora_rank": 2, "lora_dropout": 1}, "--lora_dropout is 1.0; give a number from 0 to below 1"),
        (
            {"lora_towers": "text", "lora_alpha": 4},
            "--lora_alpha, --lora_towers would have no effect without --lora_rank",
        ),
        ({"lora_rank": 2, "lora_towers": "text", "freeze": "text"}, "--freeze and --lora_towers both name text"),
        ({"lora_rank": 2, "lora_towers": "smell"}, "--lora_towers: invalid choice: 'smell'"),
        ({"layer_decay": 0}, "--layer_decay is 0.0; give a factor above 0, up to 1"),
        ({"layer_decay": 1.01}, "--layer_decay is 1.01; give a factor above 0, up to 1"),
        ({"gradient_checkpointing_towers": "smell"}, "--gradient_checkpointing_towers: invalid choice: 'smell'"),
        (
            {"gradient_checkpointing_towers": "video", "activation_checkpointing": True},
            "Give one of the two",
        ),
    ],
)
def test_errors_of_invalid_flags_are_one_line(tmp_path, capsys, values, message):
    with pytest.raises(SystemExit):
        run(*flags("--use_cpu", output_dir=tmp_path, train_file="a.csv", validation_file="a.csv", **values))
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and len(lines) == 1


def test_missing_towers_and_layers_are_errors(start, tmp_path):
    two = flags(output_dir=tmp_path, modalities=["text", "video"])
    for values, message in [
        ({"lora_rank": 2, "lora_towers": "audio"}, "Cannot add LoRA to audio: this model has text, video, fusion"),
        ({"lora_rank": 2, "lora_target_modules": "q_proj"}, "text tower has no q_proj to put LoRA into"),
        ({"lora_rank": 2, "freeze": ["text", "video"]}, "`lora_rank` has no tower to put adapters into"),
        (
            {"gradient_checkpointing_towers": "audio"},
            "this model has text, video, fusion. Name some of these in grad",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            run(*start, *two, *flags(**values))
    assert not (tmp_path / "model.safetensors").exists()
