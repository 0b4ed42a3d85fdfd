"""Unreadable files in a whole run: what is trained, what is listed, and what counts as wrong."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from simple_multimodal.data import bad_samples
from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.tasks.registry import get_task
from simple_multimodal.training.quarantine import Quarantine
from simple_multimodal.training.trainer import MultimodalTrainer
from tests.training.tiny_run import NUM_ROWS, data_flags, flags, run


@pytest.fixture(autouse=True)
def retry_without_waiting(monkeypatch):
    monkeypatch.setattr(bad_samples, "RETRY_SECONDS", (0.0,))


@pytest.fixture
def spoiled(clips, start, tmp_path):
    """Function that empties files, such as `video/1.mp4`, in a copy of the clips, and returns the run's flags."""

    def spoil(*files: str, data: str = "clips") -> list[str]:
        folder = shutil.copytree(clips, tmp_path / data)
        for file in files:
            (folder / file).write_bytes(b"")
        return [*start[len(data_flags(clips)) :], *data_flags(folder)]

    return spoil


def quarantine(folder: Path) -> list[dict]:
    path = folder / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


BAD = ("video/1.mp4", "audio/5.wav", "text/6.txt")


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_a_run_leaves_out_bad_samples_and_lists_them(spoiled, tmp_path, policy, capfd):
    common = [*spoiled(*BAD), "--do_train", *flags(num_train_epochs=2, learning_rate=0.01, on_bad_sample=policy)]
    for name, num_workers in (("a", 0), ("b", 2)):
        run(*common, *flags(output_dir=tmp_path / name, dataloader_num_workers=num_workers))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    told = capfd.readouterr().err  # each file once, although it was read in two epochs
    assert all(
        f"Bad:    3 training files could not be read, see {tmp_path}/{name}/quarantine" in told for name in "ab"
    )
    lines = quarantine(tmp_path / "a")
    assert lines == quarantine(tmp_path / "b")
    assert sorted(line["file"] for line in lines) == sorted(str(tmp_path / "clips" / file) for file in BAD)
    assert sorted(line["id"] for line in lines) == ["1", "5", "6"]
    for line in lines:
        assert line["file"] in line["reason"] and line["split"] == "training"
        assert line["epoch"] == 0 and 1 <= line["step"] <= 4
    log = json.loads((tmp_path / "a/trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(value) for entry in log for value in entry.values())


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_a_batch_of_only_bad_samples(spoiled, tmp_path, policy):
    common = spoiled("video/0.mp4", "audio/1.wav", "text/2.txt")
    order = flags(train_sampling_strategy="sequential", num_train_epochs=1, on_bad_sample=policy)
    metrics = run(*common, "--do_train", *flags(output_dir=tmp_path / "out", logging_steps=1), *order)
    assert math.isfinite(metrics["train_loss"])
    log = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 4 and (losses[0] == 0.0) == (policy == "skip") and losses[2] > 0
    assert [(line["id"], line["step"]) for line in quarantine(tmp_path / "out")][:2] == [("0", 1), ("1", 1)]
    assert log[0]["bad_samples"] >= 2


def test_fail_ends_the_run_and_names_the_file(spoiled, tmp_path):
    common = spoiled("video/1.mp4")
    with pytest.raises(ValueError, match=r"row 1 \(id '1'\): .*1\.mp4.* is empty"):
        run(*common, "--do_train", *flags(output_dir=tmp_path / "out", num_train_epochs=1, on_bad_sample="fail"))


def test_too_many_bad_samples_end_the_run(spoiled, tmp_path):
    common = spoiled(*[f"video/{row}.mp4" for row in range(NUM_ROWS) if row != 4], "audio/4.wav")
    # Where no replacement can be read, a place stays empty, which is not an attempt that succeeded.
    message = rf"{NUM_ROWS} of {NUM_ROWS} training rows could not be read so far: (\d+) of \1 attempts failed"
    with pytest.raises(ValueError, match=message):
        run(*common, "--do_train", *flags(output_dir=tmp_path / "out", num_train_epochs=9))
    assert len(quarantine(tmp_path / "out")) == NUM_ROWS
    run(*common, "--do_train", *flags(output_dir=tmp_path / "all", num_train_epochs=1, max_bad_fraction=1))


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_the_trainer_refuses_rows_whose_files_are_all_missing(tmp_path, name):
    model, processor = SimpleNamespace(config=SimpleNamespace()), SimpleNamespace(modalities=("text", "video"))
    rows = {name: [{"video": "0.mp4", "caption": "a cat"}], "roots": tmp_path}
    with pytest.raises(ValueError, match="0.mp4 does not exist"):
        MultimodalTrainer(model, None, processor=processor, task=get_task("retrieval")(), **rows)


def test_a_resumed_run_with_bad_samples_equals_an_uninterrupted_one(spoiled, tmp_path, monkeypatch):
    common = [*spoiled(*BAD[:2]), "--do_train", *flags(num_train_epochs=2, save_steps=2)]
    run(*common, *flags(output_dir=tmp_path / "straight"))
    original = MultimodalTrainer._maybe_log_save_evaluate

    def die(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MultimodalTrainer, "_maybe_log_save_evaluate", die)
        with pytest.raises(KeyboardInterrupt):
            run(*common, *flags(output_dir=tmp_path / "broken"))
    with open(tmp_path / "broken/quarantine.jsonl", "a") as file:
        file.write('{"id": "half a li')
    run(*common, *flags(output_dir=tmp_path / "broken"))
    assert_same(weights(tmp_path / "straight"), weights(tmp_path / "broken"))
    assert quarantine(tmp_path / "broken") == quarantine(tmp_path / "straight") and len(
        quarantine(tmp_path / "broken")
    )
    run(*common, "--overwrite_output_dir", *flags(output_dir=tmp_path / "broken", max_steps=0, num_train_epochs=0.01))
    assert len(quarantine(tmp_path / "broken")) < 3


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    run(*start, "--do_train", *flags(output_dir=folder, max_steps=2, learning_rate=0.01, save_strategy="no"))
    return str(folder)


def evaluate(common: list[str], model: str, folder: Path, **values) -> tuple[dict, MultimodalTrainer]:
    tokens = [token for name, token in zip(["", *common], common, strict=False) if "_config_name" not in name + token]
    made = []

    class KeptTrainer(MultimodalTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simple_multimodal.training.trainer.MultimodalTrainer", KeptTrainer)
        metrics = run(*tokens, "--do_eval", *flags(model_name_or_path=model, output_dir=folder, **values))
    return metrics, made[0]


def test_a_bad_sample_ranks_last_in_retrieval(spoiled, trained, tmp_path):
    _, whole = evaluate(spoiled(), trained, tmp_path / "whole")
    pairs = tmp_path / "audio_pairs.jsonl"
    pairs.write_text('{"a": "1", "b": "0"}\n{"a": "2", "b": "3"}\n')
    common = spoiled("video/1.mp4", "text/6.txt", data="bad")
    metrics, trainer = evaluate(common, trained, tmp_path / "out", pair_files=pairs, dataloader_num_workers=1)
    scores = whole.last_evaluation.details.scores.whole()  # row i: caption i, column i: clip i
    good = [0, 2, 3, 4, 5]
    ranks = [1 + sum(scores[row, other] >= scores[row, row] for other in good if other != row) for row in good]
    ranks += [NUM_ROWS, NUM_ROWS]
    assert metrics["eval_text_to_video_num_queries"] == metrics["eval_video_to_text_num_queries"] == NUM_ROWS
    assert metrics["eval_text_to_video_R@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / NUM_ROWS)
    assert metrics["eval_text_to_video_mean_rank"] == pytest.approx(sum(ranks) / NUM_ROWS)
    assert metrics["eval_matching_text_to_video_mean_rank"] >= 2 * NUM_ROWS / NUM_ROWS
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["eval_audio_num_pairs"] == 2
    choice = [float(scores[a, a] > scores[a, b]) for a, b in ((2, 3), (3, 2))]
    assert metrics["eval_audio_pair_accuracy"] == sum(choice) / 4  # the pair with the bad sample is wrong
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert report["counts"] == {"rows": 7, "captions": 7, "clips": 7, "duplicate_captions": 0, "bad_samples": 2}
    assert [(sample["id"], Path(sample["file"]).name) for sample in report["bad_samples"]] == [
        ("1", "1.mp4"),
        ("6", "6.txt"),
    ]
    assert [(line["split"], line["id"]) for line in quarantine(tmp_path / "out")] == [
        ("evaluation", "1"),
        ("evaluation", "6"),
    ]
    assert (tmp_path / "out/report.html").exists()


def test_a_good_row_replaces_the_clip_of_a_bad_row_of_its_group(spoiled, trained, tmp_path):
    common = spoiled("audio/1.wav")
    manifest = tmp_path / "groups.jsonl"
    rows = [
        {"video": f"{row}.mp4", "audio": f"{row}.wav", "caption": "a cat", "group": str(row % 2)} for row in (1, 2)
    ]
    rows.append({"video": "1.mp4", "audio": "5.wav", "caption": "a dog", "group": "1"})
    manifest.write_text("\n".join(map(json.dumps, rows)))
    metrics, trainer = evaluate(common, trained, tmp_path / "out", validation_file=manifest)
    ranking = trainer.last_evaluation.details
    assert sorted(clip["index"] for clip in ranking.found.clips) == [1, 2] and ranking.found.is_read.all()
    assert metrics["eval_text_to_video_num_queries"] == 3
    assert [row["index"] for row, _ in ranking.found.captions] == [0, 1, 2]
    assert (ranking.scores.whole()[0] == -math.inf).all() and (ranking.scores.whole()[1:] > -math.inf).all()


def test_an_evaluation_of_only_bad_samples(spoiled, trained, tmp_path):
    common = spoiled(*[f"text/{row}.txt" for row in range(NUM_ROWS)])
    metrics, _ = evaluate(common, trained, tmp_path / "out")
    assert metrics["eval_text_to_video_mean_rank"] == NUM_ROWS
    assert not any(name.endswith("_loss") for name in metrics)  # 0 would be the best possible value
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_question_about_a_bad_clip_counts_as_wrong(spoiled, start, clips, tmp_path):
    manifest = tmp_path / "questions.jsonl"
    rows = [{"video": f"{row}.mp4", "question": "is there a cat?", "answer": "yes" if row < 6 else "no"}
            for row in (0, 1, 2, 3, 5, 6)]  # fmt: skip
    manifest.write_text("\n".join(map(json.dumps, rows)))
    files = flags("--task", "question_answering", train_file=manifest, validation_file=manifest)
    run(*start, *files, "--do_train", *flags(output_dir=tmp_path / "model", max_steps=20, learning_rate=0.02))
    shown = {}
    for name, bad in (("whole", ()), ("bad", ("video/0.mp4", "video/6.mp4"))):
        common = [*spoiled(*bad, data=name), *files]
        shown[name], trainer = evaluate(common, str(tmp_path / "model"), tmp_path / f"out_{name}")
    assert shown["whole"]["eval_accuracy"] == pytest.approx(5 / 6)  # the model always answers yes
    assert shown["bad"]["eval_accuracy"] == pytest.approx(4 / 6)
    assert trainer.last_evaluation.counts["questions"] == 6
    report = json.loads((tmp_path / "out_bad/evaluation.json").read_text())
    assert [sample["id"] for sample in report["bad_samples"]] == ["0", "5"]


def test_the_quarantine_lists_each_file_once(tmp_path):
    list_of_run = Quarantine(tmp_path, num_rows=20, starts_over=True, writes=True, max_bad_fraction=0.5)
    for step, (row, file) in enumerate([(3, "a"), (4, "b"), (5, "a"), (6, None), (6, None)]):
        list_of_run.add([BadSample(row, 0, f"r{row}", file, "no")], 10, step)
        assert len(list_of_run.settle()) == 1
    again = Quarantine(tmp_path, num_rows=20, starts_over=False, writes=True, max_bad_fraction=0.5)
    again.add([BadSample(8, 1, "r8", "b", "no"), BadSample(9, 1, "r9", "c", "no")], 10, 7)
    again.settle("evaluation")
    found = [(line["id"], line["file"], line["epoch"], line["step"], line["split"]) for line in quarantine(tmp_path)]
    assert found == [
        ("r3", "a", 0, 0, "training"),
        ("r4", "b", 0, 1, "training"),
        ("r6", None, 0, 3, "training"),
        ("r9", "c", 1, 7, "evaluation"),
    ]
    Quarantine(tmp_path, num_rows=20, starts_over=True, writes=True, max_bad_fraction=0.5)
    assert quarantine(tmp_path) == []


def test_the_bad_fraction_is_computed_from_at_least_a_hundred_samples(tmp_path):
    list_of_run = Quarantine(tmp_path, num_rows=20, starts_over=True, writes=True, max_bad_fraction=0.1)
    bad = [BadSample(row, 0, str(row), str(row), f"reason {row}.") for row in range(11)]
    list_of_run.add(bad[:10], 10, 1)
    list_of_run.settle()
    list_of_run.add(bad[10:], 10, 2)
    message = "11 of 20 attempts failed, more than `max_bad_fraction=0.1` of them; the last one: reason 10. "
    with pytest.raises(ValueError, match=message):
        list_of_run.settle()
    enough = Quarantine(tmp_path, num_rows=20, starts_over=True, writes=False, max_bad_fraction=0.1)
    enough.add(bad, 110, 1)
    enough.settle()
