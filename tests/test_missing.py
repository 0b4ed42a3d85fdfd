"""What is said of a model's folder that is not there, by every command that takes one."""

import sys
from pathlib import Path

import pytest

import train
from simple_multimodal.cli import main
from simple_multimodal.missing import explain, no_such_folder
from tests.training.tiny_run import flags

ERROR = OSError("no connection\n to the hub")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory: `outputs/toy`, `outputs/toy_questions`, `outputs/other`, and files."""
    for name in ("toy", "toy_questions", "other", ".hidden"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    (tmp_path / "outputs/toyy.txt").touch()
    (tmp_path / "outputs/toy/config.json").write_text("{}")
    (tmp_path / "clips.csv").write_text("video,caption,question,answer\na.mp4,a cat,what?,cat\nb.mp4,a dog,who?,dog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("outputs/toyy", ["outputs/toy"]),
        ("./outputs/toy_question", ["outputs/toy_questions"]),
        ("output/toy", ["outputs/toy"]),  # the part above is wrong
        ("output/toyy", ["outputs/toy"]),
        ("outputs/toy/config.jso", ["outputs/toy/config.json"]),  # with a suffix it is a file
        ("outptus/nothing/alike", ["outputs"]),  # as deep as there is any
        ("outputs/toy-1.5", ["outputs/toy"]),
        ("outputs/toy/checkpoint-5", []),
        ("elsewhere", []),
        ("../outputs/../nowhere/at/all", []),
    ],
)
def test_the_nearest_names(here, name, nearest):
    said = no_such_folder(name)
    assert said.startswith(f"no such {'file' if name.endswith('jso') else 'folder'}.")
    assert ("Did you mean" in said) == bool(nearest) and all(repr(near) in said for near in nearest)
    absolute = no_such_folder(here / name)
    assert all(f"'{here}/{near}'" in absolute for near in nearest)


def test_what_a_suffix_names_is_a_file(here):
    for name, kind in (("clip.mp4", "file"), ("clips.tsv", "file"), ("outputs/version-1.5", "folder")):
        assert no_such_folder(name).startswith(f"no such {kind}.")


def test_the_hub_is_mentioned_where_it_can_be_meant(here):
    for name in ("outputs/toyy", "./toyy", "/toyy", "a/b/c", "outputs/", "~/toy"):
        assert "hub" not in explain(name, ERROR) or name == "outputs/"
    for name in ("google/vit", "gpt2", "toyy"):
        assert explain(name, ERROR).endswith("As a name on the hub: no connection to the hub")
    assert explain("outputs/toy", ERROR) == "no connection to the hub"  # it is there


def error_of(capsys, run) -> str:
    try:
        code = run()
    except SystemExit as end:
        code = end.code
    assert code not in (0, None)
    lines = [*capsys.readouterr().err.splitlines(), *([code] if isinstance(code, str) else [])]
    (line,) = [line for line in lines if "error: " in line]
    return line


@pytest.mark.parametrize(
    "argv",
    [
        ["search", "outputs/toyy", "a cat", "a.mp4"],
        ["encode", "outputs/toyy", "a.mp4"],
        ["answer", "outputs/toyy", "what?", "a.mp4"],
        ["features", "outputs/toyy", "clips.csv", "--tower", "video", "--output", "out"],
        ["show", "clips.csv", "--model", "outputs/toyy"],
        ["infer", "outputs/toy", "outputs/toyy", "--output_dir", "out"],
        ["diff", "outputs/toyy", "outputs/toy"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_verb_names_it_in_one_line(here, capsys, argv):
    error = error_of(capsys, lambda: main(argv))
    assert "outputs/toyy: " in error and "no such folder. Did you mean 'outputs/toy'" in error
    assert sorted(path.name for path in here.iterdir()) == ["clips.csv", "outputs"]  # nothing was made


@pytest.mark.parametrize(
    "given",
    [
        {"model_name_or_path": "outputs/toyy"},
        {"model_name_or_path": "outputs/toyy", "task": "question_answering"},
        {"text_model_name_or_path": "outputs/toyy"},
        {"video_config_name": "outputs/toyy"},
        {"tokenizer_name": "outputs/toyy"},
        {"audio_processor_name": "outputs/toyy"},
        {"resume_from_checkpoint": "outputs/toyy"},
        {"video_root": "outputs/toyy"},
        {"features": "outputs/toyy"},
        {"pair_files": "outputs/toyy"},
        {"answers_file": "outputs/toyy", "task": "question_answering"},
    ],
    ids=lambda given: " ".join(given),
)
def test_every_flag_of_train_names_it_in_one_line(here, capsys, monkeypatch, given):
    argv = flags("--use_cpu", train_file="clips.csv", validation_file="clips.csv", output_dir="out", **given)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--cache_dir", str(here / "cache")])
    error = error_of(capsys, train.main)
    assert "outputs/toyy" in error and "no such folder. Did you mean 'outputs/toy'" in error
    assert not (here / "out").exists()


def test_infer_on_a_manifest_names_the_command_that_measures_on_it(here, capsys):
    error = error_of(capsys, lambda: main(["infer", "outputs/toy", "clips.csv", "--output_dir", "out"]))
    assert "clips.csv is a file" in error and "train.py --do_eval --task TASK" in error
    assert "--validation_file clips.csv" in error
