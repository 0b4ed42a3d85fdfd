"""Additions of the trainer: exact losses and counts, a learning rate per tower, frozen towers, and evaluation that
counts each row once.
"""

import json
import math
import signal

import pytest
import torch

from simple_multimodal.models.configuration import OBJECTIVES
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.training.tiny_run import CAPTIONS, NUM_ROWS, flags, run


def logged(trainer: MultimodalTrainer) -> list[dict[str, float]]:
    return [log for log in trainer.state.log_history if "loss" in log]


def test_every_objective_is_logged_by_name_and_adds_up_to_the_loss(start, tmp_path, trainers):
    weights = {"mlm_loss_weight": 0.5, "contrastive_av_loss_weight": 0}
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=3, logging_steps=3, **weights))
    (log,) = logged(trainers[0])
    names = [f"{name}_loss" for name in OBJECTIVES if name != "contrastive_av"]
    assert [name for name in log if name.endswith("_loss")] == names
    assert all(math.isfinite(log[name]) and log[name] > 0 for name in names)
    total = sum(log[name] * (0.5 if name == "mlm_loss" else 1) for name in names)
    assert log["loss"] == pytest.approx(total, rel=1e-5)
    assert 0 <= log["data_wait_share"] <= 1 and log["samples_per_second"] > 0
    assert 0 <= log["mlm_accuracy"] <= 1 and 0 <= log["matching_accuracy"] <= 1


def test_logged_losses_are_means_over_the_steps_since_the_last_log(start, tmp_path, trainers):
    for every in (1, 2):
        run(*start, "--do_train", *flags(output_dir=tmp_path / str(every), max_steps=2, logging_steps=every))
    (first, second), (both,) = logged(trainers[0]), logged(trainers[1])
    assert both["mvm_loss"] == pytest.approx((first["mvm_loss"] + second["mvm_loss"]) / 2, rel=1e-6)


ONLY_MASKED = {f"{name}_loss_weight": 0 for name in OBJECTIVES[3:]}


def test_accumulated_batches_give_the_gradient_of_the_whole_batch(start, tmp_path, trainers):
    common = [*start, "--do_train", *flags(max_steps=1, logging_steps=1, max_grad_norm=0, **ONLY_MASKED)]
    run(*common, *flags(output_dir=tmp_path / "whole", per_device_train_batch_size=4))
    run(*common, *flags(output_dir=tmp_path / "parts", gradient_accumulation_steps=4, per_device_train_batch_size=1))
    whole, parts = (trainer.model.kept for trainer in trainers)
    assert whole.keys() == parts.keys() and len(whole) > 50
    assert_close(parts, whole)
    assert logged(trainers[1])[0]["loss"] == pytest.approx(logged(trainers[0])[0]["loss"], rel=1e-5)
    for name in ("mlm_loss", "mam_loss", "mvm_loss", "mlm_accuracy"):
        assert logged(trainers[1])[0][name] == pytest.approx(logged(trainers[0])[0][name], rel=1e-5)


def test_activation_checkpointing_does_not_change_gradients(start, tmp_path, trainers):
    common = [*start, "--do_train", *flags(max_steps=1, max_grad_norm=0)]
    run(*common, *flags(output_dir=tmp_path / "a"))
    run(*common, *flags(output_dir=tmp_path / "b", activation_checkpointing=True))
    assert [trainer.model.is_activation_checkpointing for trainer in trainers] == [False, True]
    whole, again = (trainer.model.kept for trainer in trainers)
    assert_close(again, whole)


def test_compiled_steps_equal_steps_without_compilation(start, tmp_path, trainers):
    common = [*start, "--do_train", *flags(max_steps=2, logging_steps=1, max_grad_norm=0, save_strategy="no")]
    common += flags(mam_loss_weight=0, mvm_loss_weight=0)  # which take long to compile
    run(*common, *flags(output_dir=tmp_path / "plain"))
    run(*common, *flags(output_dir=tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager"))
    plain, compiled = trainers
    assert compiled.model_wrapped is not compiled.model and plain.model_wrapped is plain.model
    assert_close(compiled.model.kept, plain.model.kept)
    assert logged(compiled)[1]["loss"] == pytest.approx(logged(plain)[1]["loss"], rel=1e-5)


def test_a_learning_rate_per_tower(start, tmp_path, trainers):
    rates = {"learning_rate": 0.4, "text_learning_rate": 0.1, "video_learning_rate": 0.3}
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=1, weight_decay=0.01, **rates))
    names = {id(parameter): name for name, parameter in trainers[0].model.named_parameters()}
    found = {}
    for group in trainers[0].optimizer.optimizer.param_groups:
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = group["initial_lr"], group["weight_decay"]
    assert names == {}  # every parameter is in a group
    towers = {"text_encoder": 0.1, "audio_encoder": 0.4, "video_encoder": 0.3, "fusion": 0.4, "video_decoder": 0.4}
    for tower, rate in towers.items():
        of_tower = {name: values for name, values in found.items() if f"{tower}." in name}
        assert {values[0] for values in of_tower.values()} == {rate}, tower
        assert {values[1] for values in of_tower.values()} == {0.0, 0.01}, tower  # biases and norms do not decay


def test_frozen_towers_do_not_change(start, tmp_path, trainers, monkeypatch):
    before = {}

    def remember(trainer, *args, **kwargs):
        before.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return MultimodalTrainer.train(trainer, *args, **kwargs)

    monkeypatch.setattr("simple_multimodal.training.trainer.MultimodalTrainer.train", remember)
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=2, learning_rate=0.01, freeze=["text", "fusion"]))
    after = trainers[0].model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in changed if "text_encoder." in name or "fusion." in name]
    assert [name for name in changed if "audio_encoder." in name] and "matching_head.weight" in changed


def test_parameters_that_no_objective_reaches_are_not_trained(start, tmp_path, trainers):
    objectives = {f"{name}_loss_weight": 0 for name in OBJECTIVES if name != "contrastive_tv"}
    settings = {"output_dir": tmp_path, "max_steps": 1, "weight_decay": 1.0, "task": "retrieval", **objectives}
    run(*start, "--do_train", *flags(**settings))
    model, optimizer = trainers[0].model, trainers[0].optimizer
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parts = (
        "text_encoder",
        "video_encoder",
        "embedding_projections.text",
        "embedding_projections.video",
        "logit_scale",
    )
    for name, parameter in model.named_parameters():
        is_reached = name.removeprefix("multimodal.").startswith(parts)
        assert parameter.requires_grad == is_reached == (id(parameter) in trained) or "position_embeddings" in name
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.multimodal.logit_scale)] == 0.0
    assert decays[id(model.multimodal.embedding_projections["text"].weight)] == 1.0
    counted = json.loads((tmp_path / "run.json").read_text())["model"]["parameters"]
    assert counted["audio"]["trainable"] == counted["fusion"]["trainable"] == 0 < counted["text"]["trainable"]
    assert trainers[0].args.ddp_find_unused_parameters is False

    for given in ("--audio_learning_rate=1e-3", "--gradient_checkpointing_towers=audio"):
        with pytest.raises(ValueError, match="no objective reaches it"):
            run(*start, "--do_train", given, *flags(**{**settings, "output_dir": tmp_path / "refused"}))


def test_the_temperature_is_limited_after_each_step(start, tmp_path, trainers):
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=3, learning_rate=30.0, max_grad_norm=0))
    scale = trainers[0].model.multimodal.logit_scale
    assert scale.max() == torch.tensor(math.log(100)) and scale.min() < 0  # a rate of 30 moves it far away


def test_an_unknown_tower_cannot_be_frozen(start, tmp_path):
    with pytest.raises(ValueError, match="Cannot freeze 'audio': this model has text, video, fusion"):
        run(*start, *flags(output_dir=tmp_path, modalities=["text", "video"], freeze="audio"))


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory) -> str:
    """Model after two steps."""
    folder = tmp_path_factory.mktemp("trained")
    run(*start, "--do_train", *flags(output_dir=folder, max_steps=2, learning_rate=0.01, save_strategy="no"))
    return str(folder)


def evaluate(start, model: str, folder, **values) -> dict[str, float]:
    tokens = [token for name, token in zip(["", *start], start, strict=False) if "_config_name" not in name + token]
    metrics = run(*tokens, "--do_eval", *flags(model_name_or_path=model, output_dir=folder, **values))
    return {name: value for name, value in metrics.items() if not name.endswith(("_runtime", "_per_second"))}


def test_metrics_do_not_depend_on_the_batch_size(start, trained, tmp_path):
    one, three = (evaluate(start, trained, tmp_path, per_device_eval_batch_size=size) for size in (1, 3))
    assert {f"eval_{name}_loss" for name in OBJECTIVES} < one.keys()
    assert one == pytest.approx(three, rel=1e-5)


def test_matching_only_has_a_loss_without_reranking(start, trained, tmp_path):
    every, none = (evaluate(start, trained, tmp_path, rerank_top_k=top_k) for top_k in (NUM_ROWS, 0))
    protocol = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    assert {name for name in every if name not in none} == {
        name for name in every if "_matching_t" in name or "_matching_v" in name
    }
    assert none == pytest.approx({name: every[name] for name in none}, rel=1e-6) and "eval_matching_loss" in none
    assert "matching" not in protocol
    assert protocol.endswith("; of longer audio the middle 3.84 seconds")  # six windows of 64 frames


def test_every_caption_is_a_query_and_every_group_one_candidate(start, clips, trained, tmp_path):
    rows = [
        {"video": "0.mp4", "audio": "0.wav", "captions": ["a cat purrs", "a cat"], "group": "a"},
        {"video": "1.mp4", "audio": "1.wav", "caption": "two dogs", "group": "b"},
        {"video": "0.mp4", "audio": "0.wav", "caption": "purring", "group": "a"},
        {"video": "2.mp4", "audio": "2.wav", "group": "c"},  # a candidate without a caption
        {"caption": "no clip", "group": "d"},  # a query without a clip
    ]
    manifest = tmp_path / "groups.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    metrics = evaluate(start, trained, tmp_path / "out", validation_file=manifest)
    assert metrics["eval_text_to_video_num_queries"] == 4
    assert metrics["eval_text_to_video_num_candidates"] == 3
    assert metrics["eval_video_to_text_num_queries"] == 2  # the third clip has no caption
    assert metrics["eval_video_to_text_num_candidates"] == 4
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["counts"] == {
        "rows": 5,
        "captions": 4,
        "clips": 3,
        "duplicate_captions": 0,
        "rows_without_clip": 1,
    }


@pytest.mark.parametrize("dropped", ["audio", "video"])
def test_dropping_a_modality_equals_rows_without_it(start, clips, trained, tmp_path, dropped):
    manifest = tmp_path / "without.csv"
    lines = [f"{row}.txt,{'' if dropped == 'audio' else f'{row}.wav'},{'' if dropped == 'video' else f'{row}.mp4'}"
             for row in range(3)]  # fmt: skip
    manifest.write_text("\n".join(["text,audio,video", *lines]))
    full = tmp_path / "full.csv"
    full.write_text("\n".join(["text,audio,video", *(f"{row}.txt,{row}.wav,{row}.mp4" for row in range(3))]))
    groups = {"output_dir": tmp_path / "out", "per_device_eval_batch_size": 2}
    without = evaluate(start, trained, groups["output_dir"], validation_file=manifest)
    drop = evaluate(start, trained, groups["output_dir"], validation_file=full, drop_modalities=dropped)
    assert drop == pytest.approx(without, rel=1e-6)
    protocol = json.loads((groups["output_dir"] / "evaluation.json").read_text())["protocol"]
    assert f"; without {dropped}; " in protocol
    assert f"eval_{'mam' if dropped == 'audio' else 'mvm'}_loss" not in drop  # there is no loss without inputs
    assert evaluate(start, trained, groups["output_dir"], validation_file=full)["eval_loss"] != drop["eval_loss"]


def test_dropping_text_only_leaves_losses(start, trained, tmp_path):
    metrics = evaluate(start, trained, tmp_path, drop_modalities="text")
    assert metrics["eval_mvm_loss"] > 0 and metrics["eval_contrastive_av_loss"] > 0
    assert not [name for name in metrics if name.startswith(("eval_mlm", "eval_matching", "eval_contrastive_t"))]
    assert not [name for name in metrics if "R@" in name]
    assert (tmp_path / "report.html").exists()


def test_a_single_group_has_no_negatives(start, tmp_path):
    manifest = tmp_path / "same.jsonl"
    clips = [{"video": "0.mp4", "audio": "0.wav", "caption": caption, "group": "a"} for caption in CAPTIONS]
    manifest.write_text("\n".join(map(json.dumps, clips)))
    files = {"train_file": manifest, "validation_file": manifest}
    metrics = run(*start, *flags(output_dir=tmp_path / "out", max_steps=2, **files))
    assert math.isfinite(metrics["train_loss"])
    assert metrics["eval_matching_accuracy"] in (0, 1)  # one clip, for which every caption is correct
    assert metrics["eval_text_to_video_R@1"] == metrics["eval_matching_text_to_video_R@1"] == 1


@pytest.mark.parametrize(("strategy", "in_order"), [("sequential", True), ("random", False)])
def test_order_of_the_samples(start, tmp_path, trainers, strategy, in_order):
    run(*start, "--do_train", *flags(output_dir=tmp_path, num_train_epochs=1, train_sampling_strategy=strategy))
    order = [index for _, index in trainers[0]._get_train_sampler()]
    assert sorted(order) == list(range(NUM_ROWS)) and (order == sorted(order)) == in_order


def test_resuming_in_a_notebook_skips_an_incomplete_checkpoint(start, tmp_path, trainers):
    run(*start, "--do_train", *flags(output_dir=tmp_path, max_steps=2, save_steps=1))
    (tmp_path / "checkpoint-9").mkdir()
    assert trainers[0].train(resume_from_checkpoint=True).metrics == {}
    assert trainers[0].state.global_step == 2
    for number in (1, 2):
        (tmp_path / f"checkpoint-{number}/trainer_state.json").unlink()
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        trainers[0].train(resume_from_checkpoint=True)


def test_evaluation_during_training_and_the_best_model(start, tmp_path, trainers):
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    metric = {"metric_for_best_model": "mlm_loss", "early_stopping_patience": 1, "greater_is_better": True}
    metrics = run(*start, *flags(output_dir=tmp_path, max_steps=6, learning_rate=0.01, **best, **metric))
    losses = [log["eval_mlm_loss"] for log in trainers[0].state.log_history if "eval_mlm_loss" in log][:-1]
    stopped = next(
        step for step in range(1, 6) if losses[step] <= max(losses[:step])
    )  # the first one that is not better
    assert trainers[0].state.global_step == stopped + 1 == len(losses)
    assert trainers[0].state.best_metric == max(losses)
    assert metrics["eval_mlm_loss"] == pytest.approx(max(losses), rel=1e-6)  # of the best model, which was loaded
    assert json.loads((tmp_path / "evaluation.json").read_text())["selection_split"] == "validation"


def test_evaluation_in_reduced_precision_is_the_same_after_training_and_alone(start, tmp_path):
    common = flags(bf16=True, output_dir=tmp_path / "out", max_steps=1)
    after = run(*start, *common)
    assert math.isfinite(after["train_loss"])
    alone = evaluate(start, str(tmp_path / "out"), tmp_path / "alone", bf16=True)
    assert alone["eval_loss"] == pytest.approx(after["eval_loss"], rel=1e-6)
    exact = evaluate(start, str(tmp_path / "out"), tmp_path / "alone")
    assert exact["eval_loss"] != alone["eval_loss"]


def test_jit_checkpoints_are_an_error_and_leave_the_handling_of_signals_alone(start, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="enable_jit_checkpoint is not supported: this trainer handles SIGTERM"):
        run(*start, "--do_train", *flags(output_dir=tmp_path, enable_jit_checkpoint=True))
    assert signal.getsignal(signal.SIGTERM) == before
