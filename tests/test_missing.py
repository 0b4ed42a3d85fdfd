"""Errors of all commands that take a model, for folders that do not exist and names that the hub does not have."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

import simple_multimodal as smm
import train
from arguments import ModelArguments
from simple_multimodal.cli import main
from simple_multimodal.missing import check_found, no_such_folder, reading
from tests.training.tiny_run import flags


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Fail tests that ask the hub, which would take half a minute without a connection; [`hub`] answers."""
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr("transformers.utils.hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))


@pytest.fixture
def hub(monkeypatch) -> Callable[[BaseException | None], list[str]]:
    """Function that makes the hub answer, or fail with an error, and returns the list of the requests."""

    def answer(error: BaseException | None) -> list[str]:
        asked = []

        def get_hf_file_metadata(url: str) -> None:
            asked.append(url)
            if error is not None:
                raise error

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", get_hf_file_metadata)
        return asked

    return answer


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Working directory with `outputs/toy`, `outputs/toy_questions`, `outputs/other`, and files."""
    for name in ("toy", "toy_questions", "other", ".hidden"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    (tmp_path / "outputs/toyy.txt").touch()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/protocol.json").write_text('{"protocol": "msvd"}')
    (tmp_path / "outputs/toy/config.json").write_text("{}")
    (tmp_path / "clips.csv").write_text("video,caption,question,answer\na.mp4,a cat,what?,cat\nb.mp4,a dog,who?,dog\n")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("outputs/toyy", ["outputs/toy"]),
        ("./outputs/toy_question", ["outputs/toy_questions"]),
        ("output/toy", ["outputs/toy"]),  # the parent folder is wrong
        ("output/toyy", ["outputs/toy"]),
        ("outputs/toy/config.jso", ["outputs/toy/config.json"]),  # a name with a suffix is a file
        ("outptus/nothing/alike", ["outputs"]),  # the deepest similar folder
        ("outputs/toy-1.5", ["outputs/toy"]),
        ("outputs/toy/checkpoint-5", []),
        ("elsewhere", []),
        ("nothing_like_it/../nowhere/at/all", []),
    ],
)
def test_similar_names_are_suggested(here, name, nearest):
    said = no_such_folder(name)
    assert said.startswith(f"no such {'file' if name.endswith('jso') else 'folder'}.")
    assert ("Did you mean" in said) == bool(nearest) and all(repr(near) in said for near in nearest)
    absolute = no_such_folder(here / name)
    assert all(f"'{here}/{near}'" in absolute for near in nearest)


def test_names_with_a_suffix_are_files(here):
    for name, kind in (("clip.mp4", "file"), ("clips.tsv", "file"), ("outputs/version-1.5", "folder")):
        assert no_such_folder(name).startswith(f"no such {kind}.")


def said_of(name: str, read: Callable[[], None]) -> str:
    with pytest.raises(ValueError) as raised, reading(name, "PROBLEM:"):
        read()
    return str(raised.value)


def no_connection() -> None:
    raise OSError("no connection\n to the hub")


def test_the_hub_is_only_asked_for_possible_names(here, hub, monkeypatch):
    asked = hub(None)
    monkeypatch.setenv("HOME", str(here))
    for name in ("outputs/toyy", "./toyy", "/toyy", "a/b/c", "~/toy", "outputs/toy/x"):
        assert said_of(name, lambda: pytest.fail("looked for on the hub")).startswith("PROBLEM: no such folder.")
    assert f"Did you mean '{here}/outputs/toy'" in said_of("~/outputs/toy", lambda: pytest.fail("it is not expanded"))
    for name in ("google/vit", "gpt2", "toyy"):
        said = said_of(name, no_connection)
        assert said == "PROBLEM: no such folder. As a name on the hub: no connection to the hub"
        assert asked.pop().endswith(f"/{name}/resolve/main/config.json") and not asked
    assert said_of("outputs/toy", no_connection) == "PROBLEM: no connection to the hub"  # it exists


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind("the hub says no", response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            http_error(errors.RepositoryNotFoundError, 401),
            "The hub has no such model either; a private one needs `hf auth login`.",
        ),
        (
            errors.HTTPError("Name or service not known"),  # that of the library which sends the requests
            "It is not in the cache of the hub either, and the hub cannot be reached.",
        ),
        (
            errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"),
            "It is not in the cache of the hub either, and HF_HUB_OFFLINE is set.",
        ),
        (http_error(errors.GatedRepoError, 403), None),
        (http_error(errors.RemoteEntryNotFoundError, 404), None),
        (http_error(errors.HfHubHTTPError, 429), None),
        (None, None),
    ],
)
def test_names_that_the_hub_does_not_have_are_asked_for_once(here, hub, error, reason):
    asked = hub(error)
    said = said_of("toyy", no_connection)  # it is only read if the hub may have it
    expected = reason or "As a name on the hub: no connection to the hub"
    assert said == f"PROBLEM: no such folder. {expected}" and len(asked) == 1


def test_names_of_the_hub_can_be_downloaded_elsewhere(here, hub):
    hub(errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"))
    assert "connection, `hf download org/toyy --local-dir FOLDER` saves it" in said_of("org/toyy", no_connection)
    with pytest.raises(ValueError, match="`hf download org/toyy --repo-type dataset --local-dir FOLDER`"):
        check_found("org/toyy", "--flag", kind="dataset")


def test_cached_and_impossible_names_are_not_asked_for(here, monkeypatch):
    """The hub may be out of reach for a model that is in one of the caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    (here / "cache/models--org--toyy").mkdir(parents=True)
    (here / "own/datasets--toyy").mkdir(parents=True)
    check_found("org/toyy", "--flag")
    check_found("toyy", "--flag", kind="dataset", cache_dir=str(here / "own"))
    with pytest.raises(
        ValueError, match=r"^--flag a--b: no such folder\. It is not a valid name on the hub either\.$"
    ):
        check_found("a--b", "--flag")


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
        ["infer", "outputs/toyy", "prepared", "--output_dir", "out"],
        ["diff", "outputs/toyy", "outputs/toy"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_every_verb_names_the_missing_folder_in_one_line(here, capsys, argv):
    error = error_of(capsys, lambda: main(argv))
    assert "outputs/toyy" in error and "no such folder. Did you mean 'outputs/toy'" in error
    assert sorted(path.name for path in here.iterdir()) == [
        "a.mp4",
        "b.mp4",
        "clips.csv",
        "outputs",
        "prepared",
    ]  # nothing was written


@pytest.mark.parametrize(
    "call",
    [
        lambda: smm.load("outputs/toyy"),
        lambda: smm.evaluate("outputs/toyy", "clips.csv"),
        lambda: smm.from_towers(text="outputs/toyy"),
        lambda: smm.Retriever.from_pretrained("outputs/toyy"),
        lambda: smm.QuestionAnswerer.from_pretrained(Path("outputs/toyy")),
    ],
)
def test_every_library_function_names_the_missing_folder(here, call):
    with pytest.raises(ValueError, match=r"outputs/toyy.*no such folder\. Did you mean 'outputs/toy'"):
        call()


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
def test_every_flag_of_train_names_the_missing_folder_in_one_line(here, capsys, monkeypatch, given):
    argv = flags("--use_cpu", train_file="clips.csv", validation_file="clips.csv", output_dir="out", **given)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--cache_dir", str(here / "cache")])
    error = error_of(capsys, train.main)
    kind = "file" if "answers_file" in given else "folder"
    assert "outputs/toyy" in error and f"no such {kind}. Did you mean 'outputs/toy'" in error
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"model_name_or_path": "toyy"},
        {"model_name_or_path": "toyy", "task": "retrieval"},
        {"text_model_name_or_path": "toyy"},
        {"video_config_name": "toyy.json"},
        {"tokenizer_name": "toyy"},
        {"audio_processor_name": "toyy"},
        {"fusion_model_name_or_path": "toyy"},
        {"dataset_name": "toyy"},
    ],
    ids=lambda given: " ".join(given),
)
def test_every_flag_of_train_names_what_the_hub_does_not_have_in_one_line(here, hub, capsys, monkeypatch, given):
    """A bare name may be on the hub, but is often a folder that does not exist."""
    asked = hub(errors.HTTPError("Name or service not known"))
    files = {} if "dataset_name" in given else {"train_file": "clips.csv", "validation_file": "clips.csv"}
    argv = flags("--use_cpu", output_dir="out", **files, **given)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--cache_dir", str(here / "cache")])
    error = error_of(capsys, train.main)
    (flag, name), *_ = given.items()
    kind = "file" if name.endswith("json") else "folder"
    missing = f"no such {kind}. It is not in the cache of the hub either, and the hub cannot be reached."
    assert error == f"train.py: error: --{flag} {name}: {missing}"
    assert len(asked) == 1


def test_a_missing_default_is_not_taken_for_a_flag_that_was_given(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output_dir", "out"])
    assert error_of(capsys, train.main) == (
        "train.py: error: train.csv (the default of --train_file): no such file. Pass --train_file; without data of "
        "your own, make some with `simple-multimodal toy datasets/small --num_train_clips 24`, and pass --data_root "
        "datasets/small --train_file train.jsonl --validation_file validation.jsonl."
    )
    monkeypatch.setattr(sys, "argv", ["train.py", "--train_file", "none.csv"])
    assert error_of(capsys, train.main).startswith("train.py: error: --train_file none.csv: no such file.")


def test_names_that_are_not_used_are_not_asked_for(here):
    ours = ModelArguments(model_name_or_path="outputs/toy", text_model_name_or_path="toyy")
    assert ours.named_places == {"model_name_or_path": "outputs/toy"}
    silent = ModelArguments(modalities=["text", "video"], audio_model_name_or_path="toyy")
    assert "audio_model_name_or_path" not in silent.named_places and "video_config_name" in silent.named_places


def test_infer_on_a_manifest_names_the_command_that_evaluates_on_it(here, capsys):
    error = error_of(capsys, lambda: main(["infer", "outputs/toy", "clips.csv", "--output_dir", "out"]))
    assert "clips.csv is a file" in error and "train.py --do_eval --model_name_or_path MODEL" in error
    assert "--validation_file clips.csv" in error


def test_a_missing_manifest_is_not_taken_for_a_file_of_another_kind(here):
    (here / "train.py").touch()
    assert no_such_folder("train.csv") == "no such file."
    (here / "train.jsonl").touch()
    assert no_such_folder("train.csv") == "no such file. Did you mean 'train.jsonl'?"
