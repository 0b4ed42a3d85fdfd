"""The console script: each verb does its work, and a user's error is one line with exit code 2."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simple_multimodal import doctor
from simple_multimodal.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_doctor_prints_json_for_programs(capsys, project):
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


def test_doctor_prints_lines_for_people(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The core works."
    assert any(line.split()[:2] == ["ok", "pyav"] for line in lines)


@pytest.mark.parametrize(
    ("requirement", "detail", "remedy"),
    [
        ("no-such-package>=1", "is not installed", "pip install 'no-such-package>=1'"),
        ("numpy>=99", "is too old, needs >=99", "pip install 'numpy>=99'"),
    ],
)
def test_doctor_fails_where_the_core_does_not_work(capsys, monkeypatch, requirement, detail, remedy):
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


TOY_SIZE = (
    "--num_train_clips 3 --num_validation_pictures 2 --num_validation_sounds 2 --num_question_clips 9 --num_pairs 2"
)


def test_toy_writes_the_data_set_and_leaves_a_finished_one(tmp_path, capsys):
    argv = ["toy", str(tmp_path / "toy"), *TOY_SIZE.split(), "--num_processes", "1"]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'toy'}\n"
    assert len((tmp_path / "toy/train.jsonl").read_text().splitlines()) == 3
    clip = next((tmp_path / "toy/train").glob("*.mp4"))
    written = clip.stat().st_mtime_ns
    assert main(argv) == 0
    assert clip.stat().st_mtime_ns == written


def test_clips_writes_one_manifest_per_split(tmp_path, capsys):
    clips = [
        {"id": f"clip{i}", "file": f"videos/{i}.mp4", "split": split, "captions": ["a", "b"]}
        | {"label": "l", "question": "q", "answer": "a"}
        for i, split in enumerate(["train", "test"])
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    assert main(["clips", str(tmp_path / "clips.jsonl"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / "out/train.jsonl"), str(tmp_path / "out/validation.jsonl")]
    assert json.loads(Path(printed[1]).read_text())["video"] == "videos/1.mp4"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clips", "missing.jsonl", "out"], "missing.jsonl"),
        (["toy", "README.md/toy"], "Not a directory: 'README.md/toy'"),
        (["toy", "absent/toy", "--num_pairs", "0"], "num_pairs must be at least 1"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("simple-multimodal: error: ") and error.count("\n") == 1 and message in error


def test_an_unknown_verb_is_an_error(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["doctro"])
    assert exit_info.value.code == 2
    assert "choose from 'doctor', 'toy', 'clips'" in capsys.readouterr().err


def test_python_m_reaches_the_verbs_and_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from simple_multimodal.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for arguments in (["-m", "simple_multimodal", "--help"], ["-c", code]):
        result = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "usage: simple-multimodal" in result.stdout
