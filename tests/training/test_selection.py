"""Split that selects a checkpoint: it is recorded, inherited, and only the test split with `--select_on_test`."""

import json
import shutil
from pathlib import Path

import pytest

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.protocols import prepared_split
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.run_record import selection_split
from tests.models.alpro.tiny import write_folder
from tests.training.tiny_benchmark import TEXTS, write_benchmark
from tests.training.tiny_run import flags, run


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("selection"), "msrvtt_ret")


def dataset(manifest: Path) -> RowDataset:
    return RowDataset.from_manifest(
        manifest, roots={"video": manifest.parents[2] / "data/msrvtt_ret/videos"}, modalities=()
    )


def choose(manifest: Path, *, selects: bool = True, on_test: bool = False, source: Path | None = None) -> str | None:
    return selection_split(dataset(manifest), selects=selects, on_test=on_test, source=source)


def test_the_split_is_known_from_its_clips(manifests, tmp_path):
    for split, clips in (("train", ["video0", "video4"]), ("validation", ["video5"]), ("test", ["video7"])):
        assert prepared_split(manifests / f"{split}.jsonl", clips) == split
        assert choose(manifests / f"{split}.jsonl", on_test=split == "test") == split
    renamed = manifests / "mixed.jsonl"  # one test clip is enough
    renamed.write_text((manifests / "validation.jsonl").read_text() + (manifests / "test.jsonl").read_text())
    assert choose(renamed, on_test=True) == "test"
    renamed.unlink()
    assert prepared_split(manifests / "own.jsonl", ["another"]) is None
    assert prepared_split(tmp_path / "test.jsonl", ["video7"]) is None  # it has no protocol.json


def test_clips_that_are_named_by_their_paths_may_have_the_same_file_name(tmp_path):
    clips = {"train": ["train/cat/1"], "validation": ["val/cat/1", "val/Café/2.5"], "test": ["test/cat/1", "1"]}
    splits = {name: {"clips": own} for name, own in clips.items()}
    (tmp_path / "protocol.json").write_text(json.dumps({"splits": splits}))
    manifest = tmp_path / "validation.jsonl"
    assert prepared_split(manifest, ["val/cat/1.mp4", "train/cat/1.mp4"]) == "validation"
    assert prepared_split(manifest, ["./val/Cafe\u0301/2.5.mp4 "]) == "validation"
    assert prepared_split(manifest, ["train/cat/1.avi"]) == "train"
    assert (
        prepared_split(manifest, ["val/cat/1.mp4", "test/cat/1.mp4"]) == prepared_split(manifest, ["1.mp4"]) == "test"
    )
    assert prepared_split(manifest, ["1/2.mp4", "cat/1.mp4"]) is None


def test_selection_on_test_clips_needs_select_on_test(manifests):
    with pytest.raises(ValueError, match="test.jsonl holds test clips, .* pass --select_on_test True"):
        choose(manifests / "test.jsonl")
    assert choose(manifests / "test.jsonl", selects=False) is None
    for manifest, selects in (("validation.jsonl", True), ("test.jsonl", False)):
        with pytest.raises(ValueError, match="--select_on_test has no effect"):
            choose(manifests / manifest, selects=selects, on_test=True)
    assert selection_split(None, selects=False, on_test=False, source="a/hub-name") is None


def test_the_selection_split_of_the_base_model_counts(manifests, tmp_path):
    record = tmp_path / "run.json"
    for earlier, own, expected in (
        ("validation", None, "validation"),
        ("test", None, "test"),
        ("test", "validation", "test"),
        (None, "validation", "validation"),
        (None, None, None),
    ):
        record.write_text(json.dumps({"selection_split": earlier}))
        assert choose(manifests / "validation.jsonl", selects=own is not None, source=tmp_path) == expected
    record.write_text("{}")
    assert choose(manifests / "validation.jsonl", selects=False, source=tmp_path) is None


@pytest.mark.parametrize(
    ("values", "selects"),
    [
        ({}, False),
        ({"load_best_model_at_end": True}, True),
        ({"load_best_model_at_end": True, "do_eval": True}, False),  # nothing is trained
        ({"early_stopping_patience": 2, "metric_for_best_model": "loss"}, True),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, True),
    ],
)
def test_arguments_whose_evaluations_select_the_weights(tmp_path, values, selects):
    evaluates = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    args = MultimodalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **evaluates, **values)
    assert args.selects is selects


@pytest.mark.parametrize(
    ("metric", "is_better"),
    [("BLEU", True), ("text_to_video_R@1", True), ("WER", False), ("eval_CER", False), ("eval_mlm_loss", False),
     ("text_to_video_mean_rank", False)],
)  # fmt: skip
def test_the_direction_of_a_metric_follows_from_its_name(tmp_path, metric, is_better):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "metric_for_best_model": metric}
    assert MultimodalTrainingArguments(**settings).greater_is_better is is_better
    assert MultimodalTrainingArguments(**settings, greater_is_better=True).greater_is_better is True


def test_every_result_records_the_selection_split(manifests, tmp_path):
    model = write_folder(tmp_path / "alpro", "retrieval", TEXTS)
    videos = manifests.parents[1] / "data/msrvtt_ret/videos"
    unprepared = tmp_path / "own.jsonl"
    shutil.copy(manifests / "validation.jsonl", unprepared)
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True, "max_steps": 1}
    common = ["--use_cpu", "--disable_tqdm", *flags(task="retrieval", dataloader_num_workers=0, cache_dir=tmp_path)]
    common += flags(train_file=manifests / "train.jsonl", video_root=videos)

    def written(file: Path) -> str | None:
        return json.loads(file.read_text())["selection_split"]

    def fine_tune(name: str, validation_file: Path, **values) -> Path:
        start = flags(model_name_or_path=model, validation_file=validation_file, output_dir=tmp_path / name)
        run(*common, *start, *flags(**(best | values)))
        return tmp_path / name

    with pytest.raises(ValueError, match="--select_on_test True"):
        fine_tune("refused", manifests / "test.jsonl")
    assert not (tmp_path / "refused").exists()
    assert written(fine_tune("own", unprepared) / "evaluation.json") == "validation"
    chosen = fine_tune("test", manifests / "test.jsonl", select_on_test=True)
    assert written(chosen / "evaluation.json") == "test" and written(chosen / "checkpoint-1/run.json") == "test"
    with pytest.raises(ValueError, match="2 of the 2 test clips of msrvtt-1ka-7k are also training"):
        mixed = tmp_path / "mixed.jsonl"
        mixed.write_text((manifests / "train.jsonl").read_text() + (manifests / "test.jsonl").read_text())
        fine_tune("seen", unprepared, do_predict=True, do_train=True, train_file=mixed,
                  test_file=manifests / "test.jsonl")  # fmt: skip
    assert not (tmp_path / "seen").exists()
    alone = flags(model_name_or_path=chosen, validation_file=manifests / "validation.jsonl")
    run(*common, *alone, "--do_eval", *flags(output_dir=tmp_path / "alone"))
    assert written(tmp_path / "alone/evaluation.json") == "test"
    for split in ("test", "validation"):
        argv = ["infer", str(chosen), str(manifests), "--video_root", str(videos), "--split", split]
        assert main([*argv, "--output_dir", str(tmp_path / f"infer_{split}")]) == 0
        assert written(tmp_path / f"infer_{split}/metrics.json") == "test"
