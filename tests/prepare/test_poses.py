"""Tests of estimating poses: frames and points pass unchanged, finished clips are kept, failures cost one clip."""

import ast
import json
import os
import signal
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from simple_multimodal import cli
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.media import FrameIndex, MediaError, get_video_backend, index_video, open_video, read_pose
from simple_multimodal.prepare import poses
from simple_multimodal.prepare.poses import DEFAULT_PYTHON, FOLDER, estimate_poses, regular_positions
from simple_multimodal.processing import PoseProcessor
from tests.media.media_files import HEIGHT, WIDTH, write_media
from tests.processes import FORKSERVER, LIMIT_SECONDS, run_command

STUB = '''
"""Finds the number of a frame and the checksum of its pixels. The number of the first frame decides what else."""

import os
import pathlib
import time
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def wait_for(name):
    for _ in range(6000):
        if (HERE / name).exists():
            return
        time.sleep(0.01)
    raise TimeoutError(name)


class Estimator:
    packages = ("numpy",)
    settings = {"threshold": 0.5}
    components = [
        {"name": "FRAME", "format": "XYC", "points": ["number_and_checksum", "missing"], "limbs": [[0, 1]]},
        {"name": "SIZE", "format": "XYC", "points": ["size"], "limbs": []},
    ]

    def estimate(self, frames):
        print("a library prints", flush=True)
        points, confidence, first = [], [], None
        for frame in frames:
            bits = frame[8:48:16, 8:64:16, 1].ravel() > 127
            number = int((bits << np.arange(12)).sum())
            if first is None:
                first = number
                if first == 300:
                    raise ValueError("no model for\\nthis clip")
                if first == 400:
                    os._exit(3)
                if first in (500, 501):
                    (HERE / f"started_{first}").touch()
                    wait_for(f"started_{1001 - first}")
                if first == 600:
                    (HERE / "started").touch()
                    wait_for("go_on")
            elif first == 700:
                break
            height, width, _ = frame.shape
            points.append([[number, zlib.crc32(frame) % 2**24], [np.nan, 7], [width, height]])
            confidence.append([1, 0, 0.5] if first != 200 else [0, 0, 0])
        if first == 800:
            points[1][2] = [np.inf, 0]
        return np.array(points)[:, None], np.array(confidence)[:, None]
'''


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub/stub.py"
    path.parent.mkdir()
    path.write_text(STUB)
    return path


def write_manifest(tmp_path, firsts: dict[str, int], name: str = "train.jsonl", **settings):
    """Write a manifest of clips whose frames are numbered from these numbers."""
    (tmp_path / "clips").mkdir(exist_ok=True)
    for clip, first in firsts.items():
        write_media(tmp_path / "clips" / clip, first_number=first, **{"num_frames": 5, **settings})
    rows = [{"id": str(number), "video": clip, "caption": clip} for number, clip in enumerate(firsts)]
    path = tmp_path / "clips" / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def estimate(manifest, out, stub, **settings):
    return estimate_poses(manifest, out, estimator=stub, python=sys.executable, **settings)


def command(manifest, out, stub, *further: str) -> list[str]:
    return ["estimate_poses", str(manifest), str(out), "--estimator", str(stub), "--python", sys.executable, *further]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_estimator_gets_the_frames_of_the_file_and_its_points_are_written(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10}, num_frames=30)
    report = estimate(manifest, tmp_path / "out", stub)
    assert (report.num_rows, report.num_files, report.num_written, report.errors) == (1, 1, 1, [])
    pose = read_pose(tmp_path / "out/a.pose")
    path = str(tmp_path / "clips/a.mp4")
    frames = get_video_backend("pyav").frames(path, range(30), index_video(path)).transpose(0, 2, 3, 1)
    assert pose.data[:, 0, 0, 0].tolist() == list(range(10, 40))
    assert pose.data[:, 0, 0, 1].tolist() == [zlib.crc32(np.ascontiguousarray(frame)) % 2**24 for frame in frames]
    assert (pose.data[:, 0, 1] == 0).all() and (pose.data[:, 0, 2] == [WIDTH, HEIGHT]).all()
    assert (pose.confidence == [1, 0, 0.5]).all()
    header = pose.header
    assert (header.width, header.height, header.rate, header.num_frames) == (WIDTH, HEIGHT, 25, 30)
    assert [(c.name, c.format, c.points, c.limbs.tolist()) for c in header.components] == [
        ("FRAME", "XYC", ("number_and_checksum", "missing"), [[0, 1]]),
        ("SIZE", "XYC", ("size",), []),
    ]


def test_two_runs_write_the_same_bytes(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10, "b.mp4": 20, "c.avi": 30})
    estimate(manifest, tmp_path / "one", stub, num_processes=1)
    estimate(manifest, tmp_path / "three", stub, num_processes=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(contents(tmp_path / "one")) == 7  # poses, sidecars and the manifest


def test_frames_are_upright(tmp_path, shared_dir, stub):
    turned = shared_dir / "data/media/derived/nasa_h264_rot90.mp4"
    (tmp_path / "train.csv").write_text(f"video,caption\n{turned.name},x\n")
    estimate(tmp_path / "train.csv", tmp_path / "out", stub, video_root=turned.parent)
    pose = read_pose(tmp_path / f"out/{turned.stem}.pose")
    assert (pose.header.width, pose.header.height) == (270, 480) and (pose.data[:, 0, 2] == [270, 480]).all()


def test_missing_frames_are_filled(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 0}, num_frames=7, ticks=[0, 1, 2, 4, 5, 6, 9])
    estimate(manifest, tmp_path / "out", stub)
    pose = read_pose(tmp_path / "out/a.pose")
    assert pose.header.rate == 25
    assert pose.data[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 3, 4, 5, 5, 5, 6]
    facts = json.loads((tmp_path / "out/a.pose.json").read_text())
    assert [facts[name] for name in ("num_frames", "num_clip_frames", "num_clip_frames_used")] == [10, 7, 7]


@pytest.mark.parametrize(
    "seconds, rate, positions",
    [
        ([0, 0.04, 0.08], 25, [0, 1, 2]),
        ([0, 0.033, 0.067, 0.1], 30, [0, 1, 2, 3]),  # rounded
        ([0, 0.04, 0.12], 25, [0, 1, 1, 2]),
        ([0, 0.04, 0.041, 0.08, 0.12], 25, [0, 2, 3, 4]),  # two on the same moment
        ([0, 0, 0, 0, 0.2], 20, [3, 3, 3, 3, 4]),  # no usual distance
        ([0, 0.001, 0.002, 2.0], 1.5, [2, 2, 2, 3]),  # a rate of 1000 would need 2001 frames
        ([0], 5, [0]),
    ],
)
def test_poses_have_a_constant_rate(seconds, rate, positions):
    index = FrameIndex(len(seconds), np.array(seconds, dtype=float), WIDTH, HEIGHT, seconds[-1] + 0.2)
    found_rate, found = regular_positions(index)
    assert found_rate == pytest.approx(rate) and found.tolist() == positions


@pytest.mark.parametrize("seconds, duration", [([0, 100.0], 200), ([0, 1e-4], 2e-4), ([0], 0)])
def test_clips_without_a_rate_are_refused(seconds, duration):
    index = FrameIndex(len(seconds), np.array(seconds, dtype=float), WIDTH, HEIGHT, duration)
    with pytest.raises(MediaError, match="but a pose file has 0.1 to 1000 frames per second"):
        regular_positions(index)


def test_a_sidecar_says_how_a_pose_was_made(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    estimate(manifest, tmp_path / "out", stub)
    facts = json.loads((tmp_path / "out/a.pose.json").read_text())
    assert facts["clip"] == "a.mp4" and facts["estimator"] == "stub.py" and len(facts["clip_sha256"]) == 64
    assert facts["settings"] == {"threshold": 0.5}
    assert facts["versions"] == {"python": sys.version.split()[0], "numpy": np.__version__}
    assert (facts["rate"], facts["num_clip_frames_with_person"]) == (25, 5)


def test_the_manifest_has_the_rows_and_their_poses(tmp_path, stub):
    write_manifest(tmp_path, {"a.mp4": 10, "deeper.mp4": 20})
    (tmp_path / "clips/sub").mkdir()
    (tmp_path / "clips/deeper.mp4").rename(tmp_path / "clips/sub/b.mp4")
    (tmp_path / "clips/x.txt").write_text("from a file")
    rows = [
        {"id": "one", "video": "a.mp4", "captions": ["x"], "start_seconds": 0.04, "end_seconds": 0.12, "label": "dog"},
        {"id": "two", "video": "a.mp4", "caption": "again"},
        {"id": "three", "video": "sub/b.mp4", "audio": "", "text": "x.txt", "group": "g"},
        {"id": "four", "caption": "no clip"},
    ]  # fmt: skip
    path = tmp_path / "clips/train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = estimate(path, tmp_path / "out", stub)
    assert (report.num_rows, report.num_files, report.num_written) == (4, 2, 2)
    before = RowDataset.from_manifest(path, modalities=None)
    assert report.roots == dict.fromkeys(("video", "text"), tmp_path / "clips")
    after = RowDataset.from_manifest(report.manifest, modalities=("pose",), roots=report.roots)
    for old, new in zip(before, after, strict=True):
        assert {**new, "pose": None} == old
    found = [row["pose"] for row in after]
    a, b = (str(tmp_path / "out" / name) for name in ("a.pose", "sub/b.pose"))
    assert found == [a, a, b, None]
    pose = read_pose(a, start_seconds=0.04, end_seconds=0.12)
    assert pose.data[:, 0, 0, 0].tolist() == [11, 12]


def test_finished_clips_are_kept_until_they_would_be_made_otherwise(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10, "b.mp4": 20})
    estimate(manifest, tmp_path / "out", stub)
    before = contents(tmp_path / "out")
    assert estimate(manifest, tmp_path / "out", stub).num_written == 0
    (tmp_path / "out/a.pose").unlink()
    assert estimate(manifest, tmp_path / "out", stub).num_written == 1
    (tmp_path / "out/a.pose.json").write_text("{")
    assert estimate(manifest, tmp_path / "out", stub).num_written == 1
    assert contents(tmp_path / "out") == before
    write_manifest(tmp_path, {"a.mp4": 11})  # other content
    manifest = write_manifest(tmp_path, {"a.mp4": 11, "b.mp4": 20})
    assert estimate(manifest, tmp_path / "out", stub).num_written == 1
    assert read_pose(tmp_path / "out/a.pose").data[0, 0, 0, 0] == 11
    stub.write_text(STUB.replace('"threshold": 0.5', '"threshold": 0.6'))
    assert estimate(manifest, tmp_path / "out", stub).num_written == 2


def test_a_killed_run_only_repeats_the_unfinished_clip(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10, "b.mp4": 600})
    process = FORKSERVER.Process(
        target=run_command, args=(command(manifest, tmp_path / "out", stub, "--num_processes", "1"),)
    )
    process.start()
    ends = time.monotonic() + LIMIT_SECONDS
    while not (stub.parent / "started").exists() and process.exitcode is None and time.monotonic() < ends:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "out").glob("*.pose*")} == {"a.pose", "a.pose.json"}
    finished = (tmp_path / "out/a.pose").stat().st_mtime_ns
    (stub.parent / "go_on").touch()
    report = estimate(manifest, tmp_path / "out", stub)
    assert (report.num_files, report.num_written) == (2, 1)
    assert (tmp_path / "out/a.pose").stat().st_mtime_ns == finished
    assert read_pose(tmp_path / "out/b.pose").data[:, 0, 0, 0].tolist() == list(range(600, 605))


def test_clips_are_estimated_at_the_same_time(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 500, "b.mp4": 501})  # they wait for each other
    assert estimate(manifest, tmp_path / "out", stub, num_processes=2).num_written == 2


def test_a_clip_without_a_person_is_missing_points_and_a_warning(tmp_path, stub, capsys):
    manifest = write_manifest(tmp_path, {"a.mp4": 10, "empty.mp4": 200})
    for num_new in (2, 0):  # also when it is finished already
        assert cli.main(command(manifest, tmp_path / "out", stub)) == 0
        said, advice = capsys.readouterr()
        assert f"2 rows, 2 poses ({num_new} of them new)" in said
        assert advice == f"Pass --video_root {tmp_path / 'clips'}\n"
        assert said.count("warning: ") == 1 and "empty.mp4': no person was found" in said
    pose = read_pose(tmp_path / "out/empty.pose")
    assert pose.data.shape == (5, 1, 3, 2) and not pose.data.any() and not pose.confidence.any()


@pytest.mark.parametrize(
    "first, message",
    [
        (300, "its poses cannot be estimated: ValueError: no model for this clip"),
        (400, "its poses cannot be estimated: its process ended with exit code 3: a library prints"),
        (
            700,
            "shape (1, 1, 3, 2), but the shape must be (frames, people, points, dims), with 5 frames, 3 points",
        ),
        (800, "the estimator returned points that are infinite or not a number"),
    ],
)
def test_a_failure_costs_its_clip(tmp_path, stub, capsys, first, message):
    manifest = write_manifest(tmp_path, {"bad.mp4": first, "good.mp4": 10})
    assert cli.main(command(manifest, tmp_path / "out", stub)) == 1
    said = capsys.readouterr().out
    assert "1 rows, 1 poses (1 of them new)" in said and said.count("left out: ") == 1
    assert "bad.mp4': " in said and message in said
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [row["pose"] for row in rows] == ["good.pose"]
    assert not list((tmp_path / "out").glob("*bad*"))


def test_an_estimator_may_stop_reading(tmp_path, stub):
    """More points than a pipe holds, of more frames than a pipe holds, do not block each other."""
    stub.write_text(
        STUB.replace(
            "return np.array(points)[:, None], np.array(confidence)[:, None]",
            "return np.zeros((100, 1, 99, 99)), np.zeros((100, 1, 99))",
        )
    )
    manifest = write_manifest(tmp_path, {"bad.mp4": 700}, num_frames=100)
    (error,) = estimate(manifest, tmp_path / "out", stub).errors
    assert "(100, 1, 99, 99), but the shape must be" in error


def test_files_that_cannot_be_read_cost_their_rows(tmp_path, stub):
    manifest = write_manifest(tmp_path, {"a.mp4": 10, "broken.mp4": 20, "missing.mp4": 30})
    (tmp_path / "clips/broken.mp4").write_bytes(b"broken")
    (tmp_path / "clips/missing.mp4").unlink()
    report = estimate(manifest, tmp_path / "out", stub)
    assert report.num_rows == 1
    assert len(report.errors) == 2 and "missing.mp4" in report.errors[0] and "broken.mp4" in report.errors[1]


def test_an_index_that_promises_other_frames_is_built_again(tmp_path, stub, monkeypatch):
    manifest = write_manifest(tmp_path, {"a.mp4": 10}, num_frames=6)
    path = str(tmp_path / "clips/a.mp4")
    right = index_video(path)
    wrong = FrameIndex(**{**vars(right), "num_frames": 5, "seconds": right.seconds[:5]})
    poses.with_index.__globals__["index_cache"].put(path, wrong, os.stat(path))
    estimate(manifest, tmp_path / "out", stub)
    assert read_pose(tmp_path / "out/a.pose").data[:, 0, 0, 0].tolist() == list(range(10, 16))


def test_manifests_share_a_folder_unless_names_clash(tmp_path, stub):
    train = write_manifest(tmp_path, {"a.mp4": 10, "b.mp4": 20})
    test = write_manifest(tmp_path, {"a.mp4": 10, "b.avi": 30}, name="test.jsonl")
    assert estimate(train, tmp_path / "out", stub).num_written == 2
    report = estimate(test, tmp_path / "out", stub)
    assert (report.num_rows, report.num_written) == (1, 0)
    assert "b.avi" in report.errors[0] and "is the pose of 'b.mp4'; use another folder" in report.errors[0]
    assert read_pose(tmp_path / "out/b.pose").data[0, 0, 0, 0] == 20


def refused(capsys, *argv: str) -> str:
    assert cli.main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_wrong_manifests_are_refused(tmp_path, stub, capsys):
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    poses_of = command(manifest, tmp_path / "out", stub)
    assert "is the manifest itself" in refused(capsys, *command(manifest, manifest.parent, stub))
    manifest.write_text('{"pose": "a.pose", "video": "a.mp4"}\n')
    assert "has poses already" in refused(capsys, *poses_of)
    manifest.write_text('{"audio": "a.mp4", "caption": "x"}\n')
    assert "has no videos" in refused(capsys, *poses_of)
    write_manifest(tmp_path, {"a.mp4": 10, "a.avi": 20})
    assert "'a.mp4' and 'a.avi' would both have the pose 'a.pose'" in refused(capsys, *poses_of)
    assert not list(tmp_path.glob("out/*.pose"))


def test_a_missing_environment_names_the_script(tmp_path, stub, capsys, monkeypatch):
    monkeypatch.setattr(poses, "DEFAULT_PYTHON", tmp_path / "nothing/bin/python")
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    said = refused(capsys, "estimate_poses", str(manifest), str(tmp_path / "out"), "--estimator", "mediapipe")
    assert "nothing/bin/python does not exist; run `bash run_scripts/setup_pose.sh`" in said and "--python" in said


@pytest.mark.parametrize(
    "code, message",
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", "the file has no class `Estimator`"),
        ("import os; os._exit(7)", "its process ended with exit code 7"),
        (STUB.replace('"numpy",', '"no-such-package",'), "no-such-package"),
        (STUB.replace('"XYC"', '"XYZKC"'), "its components are not as docs/poses.md describes them"),
        (STUB.replace('"limbs": []', '"edges": []'), "its components are not as docs/poses.md describes them"),
    ],
)
def test_estimators_that_do_not_run_are_refused_at_the_start(tmp_path, stub, capsys, code, message):
    stub.write_text(code)
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    said = refused(capsys, *command(manifest, tmp_path / "out", stub))
    assert message in said and "stub.py" in said


def test_unknown_estimators_and_wrong_pythons_are_refused(tmp_path, stub, capsys):
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    said = refused(capsys, *command(manifest, tmp_path / "out", "openpose"))
    assert "--estimator 'openpose' is not one of mediapipe, and not a Python file" in said
    words = command(manifest, tmp_path / "out", stub)
    assert "cannot run the estimator" in refused(capsys, *words[:-1], str(manifest))  # not a program


def test_the_estimator_does_not_see_our_packages(tmp_path, stub, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('found through PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    manifest = write_manifest(tmp_path, {"a.mp4": 10})
    assert estimate(manifest, tmp_path / "out", stub).num_written == 1


def test_stand_alone_files_import_nothing_of_the_package():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("simple_multimodal", "."))], path


@pytest.mark.skipif(not DEFAULT_PYTHON.exists(), reason="needs the environment of run_scripts/setup_pose.sh")
def test_mediapipe_finds_the_points_of_pose_format(tmp_path, shared_dir):
    """The same 20 frames give the same points; on other processors they may differ in the last digits."""
    frames = open_video(shared_dir / "data/clips/videos/clip055.avi").frames(range(20, 40)).transpose(0, 2, 3, 1)
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        video = output.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "rgb24"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    (tmp_path / "train.csv").write_text("video,caption\na.mkv,x\n")
    report = estimate_poses(tmp_path / "train.csv", tmp_path / "out", estimator="mediapipe")
    assert report.errors == [] and report.without_person == []
    ours, expected = read_pose(tmp_path / "out/a.pose"), read_pose(shared_dir / "data/poses/clip055.pose")
    assert ours.header.components == expected.header.components  # names and formats
    for own, other in zip(ours.header.components, expected.header.components, strict=True):
        assert own.limbs.tolist() == sorted(other.limbs.tolist())
    assert (ours.header.rate, ours.data.shape) == (expected.header.rate, expected.data.shape)
    np.testing.assert_allclose(ours.data, expected.data, atol=0.5)
    np.testing.assert_allclose(ours.confidence, expected.confidence, atol=0.01)
    assert PoseProcessor()([ours])["pose_values"].shape == (1, 20, 534)
