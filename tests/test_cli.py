"""Console script: its verbs, and user errors in one line with exit code 2."""

import functools
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import simple_multimodal
from simple_multimodal import doctor
from simple_multimodal.cli import VERBS, main, models
from simple_multimodal.cli.options import print_json_line
from simple_multimodal.defaults import Precision, VideoBackendName
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import PRECISIONS
from simple_multimodal.flags import EVALUATION, flag
from simple_multimodal.media import VIDEO_BACKENDS
from simple_multimodal.tasks.flags import OPTIONS, options_from_flags
from simple_multimodal.tasks.options import TaskOptions

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_doctor_prints_json(capsys, project):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["core_works"] is True
    assert [package["name"] for package in report["packages"]] == [
        Requirement(line).name for line in project["dependencies"]
    ]
    assert [backend["name"] for backend in report["video_backends"]] == ["pyav", "torchcodec", "decord"]
    assert {extra["name"] for extra in report["extras"]} == set(project["optional-dependencies"])
    assert report["machine"]["torch threads"] == "1"
    assert report["machine"]["devices"].startswith("cpu")


def test_doctor_prints_a_line_per_check(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The core works."
    assert any(line.split()[:2] == ["ok", "pyav"] for line in lines)


@pytest.mark.parametrize(
    ("requirement", "detail", "remedy"),
    [
        ("no-such-package>=1", "is not installed", "pip install 'no-such-package>=1'"),
        ("numpy>=99", "is not supported, needs >=99", "pip install 'numpy>=99'"),
        ("numpy<1", "is not supported, needs <1", "pip install 'numpy<1'"),
    ],
)
def test_doctor_fails_if_the_core_does_not_work(capsys, monkeypatch, requirement, detail, remedy):
    monkeypatch.setattr(doctor, "_requirements", lambda: ([Requirement(requirement)], {}))
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert detail in output and remedy in output
    assert output.endswith("The core does not work: see what is missing above.\n")


def test_doctor_names_the_command_for_a_missing_extra(capsys, monkeypatch):
    extras = {"track": [Requirement('no-such-board>=2; extra == "track"')]}
    monkeypatch.setattr(doctor, "_requirements", lambda: ([Requirement("numpy")], extras))
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "missing  track        for --report_to tensorboard" in output
    assert "-> pip install 'no-such-board>=2'" in output


def test_doctor_says_why_a_decoder_does_not_work(monkeypatch):
    def without_package() -> str:
        import no_such_decoder  # noqa: F401

        return "unreachable"

    def without_library() -> str:
        raise RuntimeError("finds no FFmpeg\nand a page of details")

    monkeypatch.setattr(doctor, "_use_decord", without_package)
    monkeypatch.setattr(doctor, "_use_torchcodec", without_library)
    report = doctor.examine()
    _, torchcodec, decord = report.video_backends
    assert torchcodec == doctor.Finding("torchcodec", False, "finds no FFmpeg")
    assert decord == doctor.Finding("decord", False, "is not installed", "pip install decord")
    assert report.core_works


def test_doctor_knows_every_extra(project):
    assert set(doctor.EXTRA_PURPOSES) == set(project["optional-dependencies"])


def test_the_lock_pins_every_requirement_to_a_version_it_allows(project):
    lines = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line[0] != "#"]
    locked = {}
    for line in lines:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        locked[canonicalize_name(requirement.name)] = specifier.version
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement.name
    assert any(line.startswith("decord==") and "x86_64" in line for line in lines)


def test_the_wheel_only_contains_the_library():
    setuptools = pytest.importorskip("setuptools")
    include = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    files = REPOSITORY.glob("simple_multimodal/**/__init__.py")
    own = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in files}
    assert set(setuptools.find_packages(str(REPOSITORY), **include)) == own


def test_transformers_is_limited_to_the_major_release_whose_trainer_is_extended(project):
    (transformers,) = (line for line in project["dependencies"] if line.startswith("transformers"))
    assert Requirement(transformers).specifier.contains("5.99") and "6" not in Requirement(transformers).specifier


TOY_SIZE = (
    "--num_train_clips 3 --num_validation_videos 2 --num_validation_audio 2 --num_question_clips 9 --num_pairs 2"
)


def test_toy_writes_the_dataset_and_does_not_change_a_complete_one(tmp_path, capsys):
    argv = ["toy", str(tmp_path / "toy"), *TOY_SIZE.split(), "--num_processes", "1"]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'toy'}\n"
    assert len((tmp_path / "toy/train.jsonl").read_text().splitlines()) == 3
    clip = next((tmp_path / "toy/train").glob("*.mp4"))
    written = clip.stat().st_mtime_ns
    assert main(argv) == 0
    assert clip.stat().st_mtime_ns == written


def test_toy_writes_the_dataset_of_signs(tmp_path, capsys):
    sizes = "--num_train_clips 30 --num_validation_clips 1 --num_test_clips 1 --num_frames 20 --num_signers 1"
    argv = ["toy", str(tmp_path / "toy"), "--world", "signs", *sizes.split(), "--num_processes", "1"]
    assert main([*argv, "--difficulty", "hard", "--hidden_hand", "left", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'toy'}\n"
    described = json.loads((tmp_path / "toy/toy.json").read_text())
    assert described["world"] == "signs" and described["parameters"] == {
        "difficulty": "hard",
        "num_train_clips": 30,
        "num_validation_clips": 1,
        "num_test_clips": 1,
        "num_signers": 1,
        "num_frames": 20,
        "hidden_hand": "left",
        "seed": 3,
    }


def test_clips_writes_one_manifest_per_split(tmp_path, capsys):
    clips = [
        {"id": f"clip{i}", "file": f"videos/{i}.mp4", "split": split, "captions": ["a", "b"]}
        | {"label": "l", "question": "q", "answer": "a"}
        for i, split in enumerate(["train", "test"])
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    assert main(["clips", str(tmp_path / "clips.jsonl"), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    printed = captured.out.split()
    assert captured.err == f"Pass --video_root {tmp_path}\n"
    assert printed == [str(tmp_path / "out/train.jsonl"), str(tmp_path / "out/validation.jsonl")]
    assert json.loads(Path(printed[1]).read_text())["video"] == "videos/1.mp4"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clips", "missing.jsonl", "out"], "missing.jsonl"),
        (["toy", "README.md/toy"], "Not a directory: 'README.md/toy'"),
        (["toy", "absent/toy", "--num_pairs", "0"], "num_pairs must be at least 1"),
        (["toy", "absent/toy", "--world", "signs", "--num_frames", "19"], "num_frames must be at least 20, got 19"),
        (
            ["toy", "absent/toy", "--world", "signs", "--num_pairs", "9"],
            "--num_pairs does not apply to --world signs. Leave it out, or change --world.",
        ),
        (["toy", "absent/toy", "--difficulty", "hard"], "--difficulty does not apply to --world shapes"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("simple-multimodal: error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["doctro"], "choose from 'doctor', 'toy', 'clips'"),
        (
            ["infer", "model", "data"],
            "the following arguments are required: --output_dir; see simple-multimodal infer",
        ),
        (["pack", "a.csv", "out", "--crf", "high"], "--crf: invalid int value: 'high'"),
        (["encode", "model", "clips", "--bach_size", "2"], "unrecognized arguments: --bach_size 2"),
        (["features", "model", "a.csv", "--tower", "text", "--output", "out"], "--tower: invalid choice: 'text'"),
        (["infer", "a", "b", "--output_dir", "c", "--rerank_top_k", "most"], "'most' is neither a number nor 'all'"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, argv, message):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("simple-multimodal") and error.count("\n") == 1 and message in error


def test_help_is_printed_without_a_verb(capsys):
    assert main([]) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: simple-multimodal")
    for name, (_, line) in VERBS.items():
        assert re.search(rf"^ +{name}\s+{re.escape(line)}$", output, re.MULTILINE)


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"simple-multimodal {simple_multimodal.__version__}\n"


MY_VERBS = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(kw_only=True)
class Size:
    width: Annotated[int | None, "in pixels"] = None
    scale: Annotated[float, "factor"] = 0.5


def draw(
    name: Annotated[str, "what"],
    points: Annotated[Sequence[int], "where"],
    *,
    size: Size,
    form: Annotated[Literal["line", "area"], "how"] = "line",
    out: Annotated[str, "image", "FILE"],
    tags: Annotated[Sequence[str], "words", ("a", "b")] = ("a",),
    dry: Annotated[bool, "draw nothing"] = False,
) -> int:
    '''Draw something.

    More about it.
    '''
    print((name, points, size.width, size.scale, form, out, tags, dry))
    return 3
"""


def test_a_verb_is_a_function_with_an_entry_in_the_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_verbs.py").write_text(MY_VERBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "draw", ("my_verbs:draw", "draw something"))
    assert main(["draw", "tree", "1", "2", "--out", "a.png"]) == 3
    assert eval(capsys.readouterr().out) == ("tree", [1, 2], None, 0.5, "line", "a.png", ("a",), False)
    argv = ["--out", "a.png", "--width", "7", "--scale", "2", "--form", "area", "--tags", "b", "a", "--dry"]
    assert main(["draw", "tree", "1", *argv]) == 3
    assert eval(capsys.readouterr().out) == ("tree", [1], 7, 2.0, "area", "a.png", ["b", "a"], True)
    monkeypatch.setenv("COLUMNS", "119")
    with pytest.raises(SystemExit):
        main(["draw", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "Draw something." in lines and "More about it." not in lines
    assert "--width INT           in pixels" in lines
    assert "--scale FLOAT         factor; default: 0.5" in lines
    assert "--form {line,area}    how; default: line" in lines
    assert "--out FILE            image" in lines
    assert "--dry                 draw nothing" in lines


@dataclass(frozen=True)
class OwnOptions(TaskOptions):
    kinds: list[str] = flag([], EVALUATION, "Kinds to count.", choices=("a", "b"), commands=("train", "infer"))
    unit: float = flag(2.5, EVALUATION, "Unit of the numbers.", commands=("infer",))
    share: float = flag(0.5, EVALUATION, "For training.")


def test_infer_has_the_options_of_registered_tasks(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(OPTIONS, "own", OwnOptions)
    with pytest.raises(SystemExit):
        main(["infer", "--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--unit FLOAT Unit of the numbers; default: 2.5" in lines
    assert any(line.startswith("--rerank_top_k INT Candidates per query") for line in lines)
    assert not any(line.startswith("--share") for line in lines)

    given = []
    monkeypatch.setattr(models, "infer", functools.wraps(models.infer)(lambda **values: given.append(values) or 0))
    assert main(["infer", str(tmp_path), str(tmp_path), "--output_dir", "out", "--kinds", "b", "a"]) == 0
    assert options_from_flags("own", given[0]["options"]) == OwnOptions(kinds=["b", "a"])
    with pytest.raises(ValueError, match="--kinds is an option of --task own, and would be ignored"):
        options_from_flags("retrieval", given[0]["options"])


HEAVY = ("torch", "transformers", "datasets", "numpy", "av", "PIL", "accelerate", "yaml")


def test_help_and_errors_in_flags_import_nothing_heavy(tmp_path):
    code = f"""
import sys
import simple_multimodal
assert len([name for name in sys.modules if name.startswith("simple_multimodal")]) == 1
from simple_multimodal.cli import VERBS, main
named = (["infer", "./missing", ".", "--output_dir", "out"], ["pack", "missing.csv", "out"])
named = (*named, ["index", "a.csv", "--video_root", "missing"])
without_verb = ([], ["--version"], ["--wrong"])
for argv in (*without_verb, *named, *([verb, flag] for verb in VERBS for flag in ("--help", "--wrong"))):
    try:
        assert main(argv) == (2 if argv in named else 0), argv
    except SystemExit as end:
        assert end.code == (2 if argv[-1] == "--wrong" else 0), argv
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (argv, heavy)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_python_m_runs_the_console_script(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "simple_multimodal", "--help"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: simple-multimodal" in result.stdout


@pytest.mark.parametrize(
    ("verb", "function"),
    [
        ("simple_multimodal.cli.data:WorldOptions", "simple_multimodal.prepare.toy:make_toy_world"),
        ("simple_multimodal.cli.data:WorldOptions", "simple_multimodal.prepare.toy:make_sign_world"),
        ("simple_multimodal.cli.data:ToyOptions", "simple_multimodal.prepare.toy:make_toy_world"),
        ("simple_multimodal.cli.data:SignOptions", "simple_multimodal.prepare.toy:make_sign_world"),
        ("simple_multimodal.cli.data:index", "simple_multimodal.prepare.check:check_manifests"),
        ("simple_multimodal.cli.data:prepare", "simple_multimodal.prepare.manifests:prepare_benchmark"),
        ("simple_multimodal.cli.models:search", "simple_multimodal.tasks.retrieval.retriever:Retriever.search"),
        (
            "simple_multimodal.cli.models:answer",
            "simple_multimodal.tasks.question_answering.answerer:QuestionAnswerer.answer_each",
        ),
        ("simple_multimodal.cli.models:infer", "simple_multimodal.tasks.measure:measure_benchmark"),
        ("simple_multimodal.cli.models:features", "simple_multimodal.inference.features:TowerFeatures.write"),
        (
            "simple_multimodal.cli.options:PipelineOptions",
            "simple_multimodal.inference.features:TowerFeatures.__init__",
        ),
    ],
)
def test_defaults_are_the_same_as_in_the_library(verb, function):
    own, library = (inspect.signature(pkgutil.resolve_name(name)).parameters for name in (verb, function))
    shared = [name for name, item in own.items() if name in library and item.default is not item.empty]
    assert shared
    for name in shared:
        # A positional argument in the library; the name of a type; `from_pretrained` finds the precision of training.
        if name not in ("annotations", "dtype", "precision"):
            assert own[name].default == library[name].default, name


def test_decoders_and_precisions_are_the_same_as_in_the_library():
    assert get_args(VideoBackendName) == VIDEO_BACKENDS
    assert get_args(Precision) == PRECISIONS


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("Set `follow_links=True`, or pass `video_root`.", "Set --follow_links, or pass --video_root."),
        (
            "`epoch=3`, `row`: `epoch` is not in `captions` or `top_k`",
            "--epoch 3, --row: --epoch is not in `captions` or `top_k`",
        ),
    ],
)
def test_messages_name_flags_instead_of_parameters(monkeypatch, capsys, message, printed):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        video_root: Annotated[str | None, "a folder"] = None
        follow_links: Annotated[bool, "a switch"] = False

    def verb(
        captions: Annotated[str, "a file"],
        *,
        epoch: Annotated[int, "N"] = 0,
        row: Annotated[int, "N"] = 0,
        options: Options,
    ) -> int:
        raise InputError(message)

    verb.__annotations__["options"] = Options
    monkeypatch.setattr("simple_multimodal.cli._load", lambda place: verb)
    assert main(["doctor", "rows"]) == 2
    assert capsys.readouterr().err == f"simple-multimodal: error: {printed}\n"


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("a wrong flag"), 2), (OSError("a full disk"), 2), (ValueError("a fault"), None)]
)
def test_only_errors_of_users_are_one_line(monkeypatch, capsys, error, code):
    def verb() -> int:
        raise error

    monkeypatch.setattr("simple_multimodal.cli._load", lambda place: verb)
    if code is None:
        with pytest.raises(ValueError, match="a fault"):
            main(["doctor"])
    else:
        assert main(["doctor"]) == code
        assert capsys.readouterr().err == f"simple-multimodal: error: {error}\n"


def test_results_are_printed_with_six_significant_digits(capsys):
    print_json_line(
        {"clip": "0.123456789", "score": 0.1234567890123, "answers": [{"score": 1.23456789e-12}], "top": 3}
    )
    assert capsys.readouterr().out == (
        '{"clip": "0.123456789", "score": 0.123457, "answers": [{"score": 1.23457e-12}], "top": 3}\n'
    )
