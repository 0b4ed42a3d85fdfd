"""Default of re-ranking by matching: decided on the validation split, and saved with the model."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from simple_multimodal.tasks.retrieval import evaluate
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.training.tiny_run import NUM_ROWS, flags, run

ALONE = flags(modalities=["text", "video"], mlm_loss_weight=0, mvm_loss_weight=0)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def verdicts(monkeypatch) -> list[bool]:
    """Whether matching is better in the next evaluations, in order; the last value is repeated."""
    coming = [True]
    monkeypatch.setattr(
        evaluate, "matching_is_better", lambda metrics: coming.pop(0) if len(coming) > 1 else coming[0]
    )
    return coming


def test_a_matching_head_of_zeros_ranks_like_the_cosine(start, tmp_path, trainers, monkeypatch):
    plain = MultimodalTrainer.__init__

    def init(self, model, *args, **kwargs):
        torch.nn.init.zeros_(model.matching_head.weight)
        plain(self, model, *args, **kwargs)

    monkeypatch.setattr(MultimodalTrainer, "__init__", init)
    metrics = run(*start, *ALONE, *flags(output_dir=tmp_path, max_steps=1, learning_rate=0, save_strategy="no"))
    assert config_of(tmp_path)["matching_residual"] is True
    for direction in ("text_to_video", "video_to_text"):
        for name in ("R@1", "R@5", "mean_rank"):
            assert metrics[f"eval_matching_{direction}_{name}"] == metrics[f"eval_{direction}_{name}"]
    assert metrics["eval_matching_loss"] == pytest.approx(math.log(2))
    assert config_of(tmp_path)["rerank_top_k"] == 0  # equal is not better
    assert config_of(tmp_path)["matching_weight"] == 0.125  # the closest to the cosine
    protocol = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    assert "not better than the cosine alone (R@1 from text to video), so that searches do not re-rank" in protocol
    assert "do not re-rank" in (tmp_path / "report.html").read_text()
    assert "do not re-rank" in (tmp_path / "README.md").read_text()


def test_only_the_head_ranks_if_no_loss_trains_the_cosine(start, tmp_path, trainers):
    without = flags(output_dir=tmp_path, max_steps=1, save_strategy="no", contrastive_tav_loss_weight=0)
    run(*start, *ALONE, *without)
    assert not config_of(tmp_path).get("matching_residual", False) and trainers[0].model.cosine_weight == 0


def test_a_saved_model_records_whether_matching_was_better(start, clips, tmp_path, verdicts):
    common = [*start, *ALONE, *flags(max_steps=1, save_strategy="no")]

    def found(name: str, *tokens: str) -> int | None:
        run(*common, "--do_train", *tokens, *flags(output_dir=tmp_path / name))
        return config_of(tmp_path / name).get("rerank_top_k")

    assert found("better", "--do_eval") == NUM_ROWS - 1  # all candidates; one row has no video
    assert found("unmeasured") is None
    assert found("by_loss_alone", "--do_eval", *flags(rerank_top_k=0)) is None
    verdicts[:] = [False]
    assert found("worse", "--do_eval") == 0
    # The result does not apply to other weights.
    assert config_of(tmp_path / "better")["matching_weight"] < 1
    further = [t for n, t in zip(["", *start], start, strict=False) if "_config_name" not in n + t]
    run(
        *further, "--do_train", *flags(model_name_or_path=tmp_path / "better", output_dir=tmp_path / "on", max_steps=1)
    )
    assert config_of(tmp_path / "on").get("rerank_top_k") is None
    assert config_of(tmp_path / "on").get("matching_weight", 1.0) == 1.0


def test_test_clips_and_dropped_modalities_do_not_decide(start, clips, tmp_path, verdicts):
    folder = tmp_path / "prepared"
    shutil.copytree(clips, folder)
    names = [f"{n}" for n in range(NUM_ROWS)]
    content = {"protocol": "own", "splits": {"test": {"clips": names}}}
    (folder / "protocol.json").write_text(json.dumps(content))
    common = [*start, *ALONE, *flags(max_steps=1, save_strategy="no")]
    run(*common, *flags(output_dir=tmp_path / "test", validation_file=folder / "validation.csv"))
    masked = flags(mlm_loss_weight=0, mam_loss_weight=0, mvm_loss_weight=0, max_steps=1, save_strategy="no")
    run(*start, *masked, *flags(output_dir=tmp_path / "drop", drop_modalities="audio"))
    for name in ("test", "drop"):
        assert config_of(tmp_path / name).get("rerank_top_k") is None


def test_the_best_checkpoint_restores_its_own_result(start, tmp_path, monkeypatch, trainers):
    """The first saved model, before it is evaluated again, is the best one."""
    coming = iter([True, False])

    def found(metrics: dict[str, float]) -> bool:
        try:
            return next(coming)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(evaluate, "matching_is_better", found)
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "matching_loss", "greater_is_better": False, "learning_rate": 10}
    with pytest.raises(KeyboardInterrupt):
        run(*start, *ALONE, *flags(output_dir=tmp_path, max_steps=2, **best))
    assert trainers[0].state.best_global_step == 1  # such a high rate makes it worse
    assert config_of(tmp_path / "checkpoint-1")["rerank_top_k"] == config_of(tmp_path)["rerank_top_k"] == NUM_ROWS - 1
    assert config_of(tmp_path / "checkpoint-2")["rerank_top_k"] == 0
