"""`--contrastive_chunk_size`: training steps do not depend on the size of the chunks."""

import pytest
import torch
from transformers import TrainerCallback

from simple_multimodal.models.configuration import OBJECTIVES
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.training.tiny_run import flags, run


@pytest.fixture
def steps(start, tmp_path, monkeypatch):
    """Function that runs a step of two accumulated batches of three rows and returns its gradients and logs."""
    found: list[tuple[dict[str, torch.Tensor], dict[str, float]]] = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                timings = ("samples_per_second", "data_wait_share")
                found.append((self.gradients, {k: v for k, v in logs.items() if k not in timings}))

    class KeepingTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Keep())

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeepingTrainer)
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1}

    def step(**values) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        run(
            *start,
            "--do_train",
            *flags(output_dir=tmp_path / str(len(found)), **{"max_grad_norm": 0, **sizes, **values}),
        )
        return found[-1]

    return step


def test_a_step_does_not_depend_on_the_chunks(steps):
    gradients, logs = steps()
    assert {f"{name}_loss" for name in OBJECTIVES} < logs.keys() and len(gradients) > 50
    for chunks in (
        {"contrastive_chunk_size": 1},
        {"contrastive_chunk_size": 2},
        {"contrastive_chunk_size": 8},
        {"contrastive_chunk_size": 2, "activation_checkpointing": True},
    ):
        other_gradients, other_logs = steps(**chunks)
        assert list(other_logs) == list(logs) and other_logs == pytest.approx(logs, rel=1e-5), chunks
        assert_close(other_gradients, gradients)


NO_CONTRAST = {f"{name}_loss_weight": 0 for name in OBJECTIVES if name not in ("mlm", "mvm")}


def test_chunks_with_only_masked_objectives_are_an_error(start, tmp_path):
    with pytest.raises(ValueError, match=r"does not train \(it has mlm, mvm\). Use `gradient_accumulation_steps`"):
        run(*start, "--do_train", *flags(output_dir=tmp_path, contrastive_chunk_size=2, **NO_CONTRAST))


def test_chunks_of_a_sharded_model_are_an_error(start, tmp_path, monkeypatch):
    prepare = MultimodalTrainer.create_accelerator_and_postprocess

    def as_if_sharded(self):
        prepare(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(MultimodalTrainer, "create_accelerator_and_postprocess", as_if_sharded)
    with pytest.raises(
        ValueError, match="every process needs all weights. Leave it out, or start one process per device"
    ):
        run(*start, "--do_train", *flags(output_dir=tmp_path, contrastive_chunk_size=2))


def test_chunks_for_question_answering_are_an_error(start, clips, tmp_path):
    manifest = tmp_path / "questions.jsonl"
    row = '{"video": "0.mp4", "audio": "0.wav", "question": "does it purr?", "answer": "%s"}\n'
    manifest.write_text(row % "yes" + row % "no")
    files = {"train_file": manifest, "validation_file": manifest, "task": "question_answering"}
    with pytest.raises(ValueError, match=r"does not train \(it has answer\)"):
        run(*start, "--do_train", *flags(output_dir=tmp_path / "out", contrastive_chunk_size=2, **files))


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        ({"lora_rank": 2, "freeze": ["video"], "max_grad_norm": 0.1}, 1e-4),
        ({"freeze": ["text", "audio", "video"]}, 1e-4),
        ({"freeze": ["text", "audio", "video", "fusion"], "task": "retrieval"}, 1e-4),
        ({"fp16": True, "max_grad_norm": 0.1}, 1e-4),  # computes in fp32 on a CPU
        ({"bf16": True}, 2e-2),
    ],
)
def test_a_step_does_not_depend_on_the_chunks_with_other_settings(steps, values, tolerance):
    gradients, logs = steps(**values)
    other_gradients, other_logs = steps(contrastive_chunk_size=2, **values)
    assert other_logs == pytest.approx(logs, rel=tolerance) and other_gradients.keys() == gradients.keys() != set()
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (other_gradients[name] - gradient).norm() <= tolerance * norm, name


def test_chunks_with_compilation_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="Leave out --contrastive_chunk_size or --torch_compile"):
        MultimodalTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, contrastive_chunk_size=2, torch_compile_backend="eager"
        )
