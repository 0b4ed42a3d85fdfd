"""`--dataset_name`: training on a dataset of the `datasets` library."""

import json

import datasets
import pytest

from arguments import parse_args
from arguments.inputs import load_split
from tests.training import tiny_run
from tests.training.tiny_run import CAPTIONS, flags, run


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny_run.write_clips(tmp_path_factory.mktemp("dataset") / "clips")


@pytest.fixture(scope="module")
def saved(clips, tmp_path_factory):
    """Dataset with two splits and other column names, written by `save_to_disk`."""
    rows = [
        {"clip": str(clips / f"video/{row}.mp4"), "sentence": text} for row, text in enumerate(CAPTIONS) if row != 4
    ]
    columns = datasets.Features({"clip": datasets.Video(decode=False), "sentence": datasets.Value("string")})
    split = datasets.Dataset.from_list(
        [{**row, "clip": {"path": row["clip"], "bytes": None}} for row in rows], columns
    )
    folder = tmp_path_factory.mktemp("saved") / "mine"
    datasets.DatasetDict({"train": split, "held_out": split.select(range(4))}).save_to_disk(folder)
    return folder


RENAMED = ["--rename_columns", "clip=video", "sentence=caption", "--validation_split", "held_out"]


def test_a_run_on_a_dataset(saved, tmp_path):
    configs = tiny_run.config_flags(tiny_run.write_configs(tmp_path))
    settings = flags(per_device_train_batch_size=2, cache_dir=tmp_path / "cache", output_dir=tmp_path / "out")
    metrics = run(
        "--dataset_name", str(saved), *RENAMED, *configs, *settings, "--max_steps", "1", "--max_eval_samples", "3"
    )
    assert metrics["train_loss"] > 0
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["counts"]["captions"] == 3
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["arguments"]["dataset_name"] == str(saved) and set(record["data"]) == {"training", "evaluation"}


def load(name, *argv):
    model_args, data_args, *_ = parse_args(["--output_dir", "unused", "--use_cpu", *argv])
    return load_split(name, model_args, data_args)


def test_a_folder_of_data_files(tmp_path):
    lines = [json.dumps({"video": f"{row}.mp4", "caption": "a cat"}) for row in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    found = load(
        "train", "--dataset_name", str(tmp_path), "--train_split", "train[:2]", "--cache_dir", str(tmp_path / "c")
    )
    assert found["video"][:] == ["0.mp4", "1.mp4"]


def test_parts_of_saved_splits(saved):
    found = load("train", "--dataset_name", str(saved), "--train_split", "train[:2]+held_out[3:]")
    assert found["sentence"][:] == [*CAPTIONS[:2], CAPTIONS[3]]


def test_a_single_saved_dataset_is_the_training_split(saved, tmp_path):
    datasets.load_from_disk(saved)["train"].save_to_disk(tmp_path / "single")
    named = ["--dataset_name", str(tmp_path / "single")]
    assert load("train", *named)["sentence"][:] == [text for row, text in enumerate(CAPTIONS) if row != 4]
    assert len(load("validation", *named, "--validation_split", "train[50%:]")) == 3
    message = "one split, which is called 'train', but --validation_split is 'validation'. Give a part of it, such as"
    with pytest.raises(ValueError, match=message):
        load("validation", *named)


def test_errors_name_missing_splits_columns_and_folders(saved, tmp_path):
    named = ["--dataset_name", str(saved)]
    with pytest.raises(ValueError, match=r"one of \['train', 'held_out'\]. --validation_split is 'validation'"):
        load("validation", *named)
    with pytest.raises(ValueError, match="--rename_columns names text; the columns of .* are clip, sentence"):
        load("train", *named, "--rename_columns", "text=caption")
    with pytest.raises(ValueError, match="--dataset_name .*nothing: no such folder"):
        load("train", "--dataset_name", str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--dataset_name .*empty cannot be loaded"):
        load("train", "--dataset_name", str(tmp_path / "empty"))
    (tmp_path / "train.jsonl").write_text('{"video": "a.mp4"}')
    with pytest.raises(ValueError, match="--test_split is 'test'"):
        load("test", "--dataset_name", str(tmp_path), "--cache_dir", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train_split", "train"], "--train_split would have no effect without --dataset_name"),
        (["--dataset_name", "a/b", "--train_file", "x.csv"], "--dataset_name cannot be combined with --train_file"),
        (["--dataset_name", "a/b", "--rename_columns", "clip"], "give each column as OLD=NEW"),
    ],
)
def test_incompatible_flags_are_errors(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--output_dir", "unused", *argv])
    assert message in capsys.readouterr().err
