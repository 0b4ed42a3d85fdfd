"""Training on precomputed features: losses and gradients as with the frozen towers, and errors."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.data.features import make_fingerprint
from simple_multimodal.data.readers import AudioReader
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.models.video.videomae import VideoMAEVideoEncoder
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.closeness import assert_close
from tests.models.alpro.tiny import write_folder
from tests.training.tiny_benchmark import TEXTS, write_benchmark
from tests.training.tiny_run import flags, run

FROZEN = {"freeze": ["audio", "video"]}


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory) -> str:
    """Model after one step, with weights for all objectives."""
    folder = tmp_path_factory.mktemp("saved")
    run(*start, "--do_train", *flags(output_dir=folder, max_steps=1, save_strategy="no"))
    return str(folder)


@pytest.fixture(scope="module")
def dataset(clips) -> RowDataset:
    roots = {name: clips / name for name in ("video", "audio", "text")}
    return RowDataset.from_manifest(clips / "train.csv", roots=roots)


@pytest.fixture(scope="module")
def kept(saved, dataset, tmp_path_factory) -> Path:
    """Features of both towers of the saved model."""
    folder = tmp_path_factory.mktemp("features")
    maker = TowerFeatures.from_pretrained(saved, batch_size=3)
    for tower in ("audio", "video"):
        maker.write(tower, [dataset], folder, shard_size=4)
    return folder


@pytest.fixture
def again(start, saved):
    """Function that returns the flags of a run that starts from the saved model, without random frames."""
    settings = {"model_name_or_path": saved, "task": "retrieval", "frame_sampling": "uniform"}
    settings |= {"logging_steps": 1, "max_steps": 3, "learning_rate": 0.01}

    def again(**values) -> list[str]:
        return [*start, *flags(**(settings | values))]

    return again


def logged(trainer: MultimodalTrainer, ending: str = "loss") -> list[dict[str, float]]:
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{name: value for name, value in log.items() if name.endswith(ending)} for log in logs]


@pytest.mark.parametrize("objectives", ["retrieval", "pretraining"])
def test_losses_and_gradients_are_the_same_as_with_the_frozen_towers(
    again, kept, tmp_path, trainers, monkeypatch, objectives
):
    """Some rows have no audio or no video; pre-training only predicts words."""
    values = {"task": objectives, **FROZEN}
    if objectives == "pretraining":
        values |= {"mam_loss_weight": 0, "mvm_loss_weight": 0}
    common = [*again(**values), "--do_train", "--do_eval"]
    live = run(*common, *flags(output_dir=tmp_path / "live"))
    with monkeypatch.context() as without_towers:
        without_towers.setattr(VideoMAEVideoEncoder, "forward", None)
        without_towers.setattr(AudioReader, "read", None)
        cached = run(*common, *flags(output_dir=tmp_path / "cached", features=kept))
    assert len(logged(trainers[0])) == 3
    for plain, fast in zip(*map(logged, trainers), strict=True):
        assert fast == pytest.approx(plain, rel=1e-5) and len(plain) >= 6
    whole, fast = (trainer.model.kept for trainer in trainers)
    assert whole.keys() == fast.keys() and not [name for name in whole if "video_encoder" in name]
    assert [name for name in whole if "text_encoder" in name] and [name for name in whole if "fusion" in name]
    assert_close(fast, whole)
    of_model = [name for name in live if "loss" in name and name != "train_loss" or "R@" in name]
    assert {name: cached[name] for name in of_model} == pytest.approx(
        {name: live[name] for name in of_model}, abs=1e-5
    )
    assert "data:image" in (tmp_path / "cached/report.html").read_text()  # frames of the examples


def test_loader_processes_do_not_change_results(again, kept, tmp_path, trainers):
    for workers in (0, 2):
        run(
            *again(features=kept, output_dir=tmp_path / str(workers), dataloader_num_workers=workers, **FROZEN),
            "--do_train",
        )
    assert logged(trainers[0]) == logged(trainers[1])


def test_a_resumed_run_on_features_equals_an_uninterrupted_one(again, kept, tmp_path):
    out = tmp_path / "whole"
    words = again(features=kept, max_steps=4, save_steps=2, **FROZEN)
    run(*words, "--do_train", *flags(output_dir=out))
    shutil.copytree(out / "checkpoint-2", tmp_path / "half/checkpoint-2")
    shutil.copy(out / "run.json", tmp_path / "half")
    run(*words, "--do_train", *flags(output_dir=tmp_path / "half"))
    expected, found = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "half"))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_trained_model_still_takes_the_features(again, kept, tmp_path, trainers):
    run(*again(features=kept, output_dir=tmp_path / "first", **FROZEN), "--do_train")
    values = {"model_name_or_path": tmp_path / "first", "features": kept, "output_dir": tmp_path / "second"}
    assert run(*again(**values), "--do_eval")["eval_contrastive_tv_loss"] > 0  # nothing to freeze


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"freeze": "audio"},
            "outputs of the video tower, but this run would train that tower. Add video to --freeze",
        ),
        (
            {"freeze": "audio", "lora_rank": 2},
            r"would train LoRA adapters in that tower. Add video to --freeze \(and not to --lora_towers\)",
        ),
        ({"task": "pretraining", "mam_loss_weight": 0, **FROZEN}, "which the objective mvm needs. Pass --mvm_loss_w"),
        ({"task": "pretraining", "mvm_loss_weight": 0, **FROZEN}, "which the objective mam needs. Pass --mam_loss_w"),
        ({"frame_sampling": "dense", **FROZEN}, "other settings: frame_sampling 'uniform' there and 'dense' here"),
        ({"max_audio_windows": 1, **FROZEN}, "other settings: max_windows 6 there and 1 here"),
    ],
)
def test_settings_that_do_not_fit_the_features_are_errors(again, kept, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        run(*again(features=kept, output_dir=tmp_path / "out", **values), "--do_train")
    assert not (tmp_path / "out").exists()


def test_features_of_other_sizes_and_weights_are_errors(start, kept, tmp_path):
    """With a new model, whose tower has other random weights or other input sizes."""
    shutil.copytree(kept / "video", tmp_path / "kept/video")
    new = {"features": tmp_path / "kept", "output_dir": tmp_path / "out", **FROZEN}
    with pytest.raises(ValueError, match="num_frames 2 there and 4 here, size .*: 32.* there and .*: 16.* here"):
        run(*start, *flags(num_frames=4, video_size=16, **new), "--do_train")
    with pytest.raises(ValueError, match="other settings: other weights or another configuration of the tower"):
        run(*start, *flags(seed=1, **new), "--do_train")


def test_rows_without_features_are_errors_before_training(again, saved, kept, clips, tmp_path):
    common = again(features=tmp_path / "kept", **FROZEN)
    roots = {f"{name}_root": tmp_path / "clips" / name for name in ("video", "audio", "text")}
    shutil.copytree(clips, tmp_path / "clips")
    shutil.copytree(kept, tmp_path / "kept")
    index = json.loads((kept / "video/index.json").read_text())
    # The second shard holds two clips.
    (tmp_path / "kept/video/index.json").write_text(json.dumps(index | {"shards": index["shards"][:-1]}))
    with pytest.raises(
        ValueError, match=r"2 rows have no features.*row 5 \(id '5'\).*video/5\.mp4' is not among them"
    ):
        run(*common, *flags(output_dir=tmp_path / "out", **roots), "--do_train")
    assert not (tmp_path / "out").exists()
    run(*common, *flags(output_dir=tmp_path / "few", max_train_samples=5, max_eval_samples=5, **roots), "--do_train")
    os.utime(tmp_path / "clips/video/2.mp4")
    with pytest.raises(ValueError, match=r"1 rows have no features.*video/2\.mp4' was changed after its features"):
        run(
            *common,
            *flags(output_dir=tmp_path / "out", max_train_samples=5, max_eval_samples=5, **roots),
            "--do_train",
        )


def test_augmentations_without_effect_give_warnings(again, kept, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("simple_multimodal.training.features.logger.warning", said.append)
    one = {"features": kept, "max_steps": 1, **FROZEN}
    run(*again(output_dir=tmp_path / "fixed", **one), "--do_train")
    assert not said
    run(*again(output_dir=tmp_path / "flip", random_flip=True, **one), "--do_train")
    run(*again(output_dir=tmp_path / "jitter", **(one | {"frame_sampling": "jittered"})), "--do_train")
    told = [message.partition(". --features")[0] for message in said]
    assert told == ["Ignored: random_flip", "Ignored: frame_sampling jittered"]


def test_alpro_trains_on_features_of_its_timesformer(tmp_path, trainers):
    write_benchmark(tmp_path, "msrvtt_ret")
    model = write_folder(tmp_path / "model", "retrieval", TEXTS)
    manifests, videos = tmp_path / "datasets/msrvtt_ret", tmp_path / "data/msrvtt_ret/videos"
    datasets = [
        RowDataset.from_manifest(manifests / f"{n}.jsonl", roots={"video": videos}, modalities=())
        for n in ("train", "validation")
    ]
    maker = TowerFeatures.from_pretrained(model, batch_size=2)
    assert maker.write("video", datasets, tmp_path / "kept").unreadable == []
    settings = {
        "task": "retrieval",
        "model_name_or_path": model,
        "train_file": manifests / "train.jsonl",
        "validation_file": manifests / "validation.jsonl",
        "video_root": videos,
        "cache_dir": tmp_path / "cache",
        "dataloader_num_workers": 0,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "freeze": "video",
        "frame_sampling": "alpro",
    }
    for values in ({}, {"features": tmp_path / "kept"}):
        output = tmp_path / f"out{len(values)}"
        run("--use_cpu", "--disable_tqdm", *flags(**settings, output_dir=output, **values), "--do_train")
    for plain, fast in zip(*map(logged, trainers), strict=True):
        assert fast == pytest.approx(plain, rel=1e-5) and len(plain) == 3


def test_older_features_fit_the_same_processor_without_window_settings():
    """Their index has neither `min_window_frames` nor `crop`."""

    def settings(**values) -> dict:
        processor = MultimodalProcessor(feature_extractor=AudioFeatureExtractor(max_windows=2, **values))
        return make_fingerprint("audio", "", processor, video_backend="pyav")

    assert not {"min_window_frames", "crop"} & settings().keys() and settings()["max_windows"] == 2
    assert settings(min_window_frames=16, crop="random").items() >= {"min_window_frames": 16, "crop": "random"}.items()
