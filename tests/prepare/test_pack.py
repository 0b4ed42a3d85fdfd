"""Tests of packing: the copy has the frames, times, audio and rows of the original, and is written once."""

import hashlib
import json
import subprocess

import av
import numpy as np
import pytest

from simple_multimodal import cli
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.media import get_video_backend, has_audio, index_video, read_audio
from simple_multimodal.prepare import pack
from simple_multimodal.prepare.pack import PackSettings, pack_manifest
from tests.media.media_files import HEIGHT, WIDTH, read_number, write_media


def tone(times: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * times) / 2


@pytest.fixture
def manifest(tmp_path):
    """Clips of different codecs and clocks: with audio that starts late, without audio, with audio in a file."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_media(folder / "a.mp4", num_frames=30, waveform=tone, audio_codec="aac", audio_start=0.2, audio_seconds=1.0)
    write_media(folder / "b.avi", num_frames=20, rate=10, codec="mpeg4", codec_options={"qscale": "2"})
    write_media(folder / "c.mkv", num_frames=6, ticks=[50, 51, 53, 60, 61, 75])
    write_media(folder / "d.wav", waveform=tone, audio_rate=8000, audio_seconds=1.0)
    (folder / "text.txt").write_text("from a file")
    rows = [
        {
            "id": "one",
            "video": "a.mp4",
            "audio": "a.mp4",
            "captions": ["x", "y"],
            "start_seconds": 0.4,
            "label": "dog",
        },
        {"id": "two", "video": "b.avi", "audio": "d.wav", "text": "text.txt"},
        {"id": "three", "video": "c.mkv", "audio": "", "caption": "z", "group": "g"},
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_copy_has_the_same_frames_at_the_same_times(manifest, tmp_path):
    report = pack_manifest(manifest, tmp_path / "packed", settings=PackSettings(crf=10))
    assert (report.num_rows, report.num_files, report.num_written, report.errors) == (3, 4, 4, [])
    originals = RowDataset.from_manifest(manifest, modalities=())
    copies = RowDataset.from_manifest(report.manifest, modalities=())
    backend = get_video_backend("pyav")
    for number in range(3):
        original, copy = (index_video(table[number]["video"]) for table in (originals, copies))
        np.testing.assert_array_equal(copy.seconds, original.seconds)
        assert copy.table is not None and len(copy.table.entries) == copy.num_frames
        frames = backend.frames(copies[number]["video"], range(copy.num_frames), copy)
        assert [read_number(frame) for frame in frames] == list(range(copy.num_frames))


def test_the_copy_has_the_same_audio_and_rows(manifest, tmp_path):
    report = pack_manifest(manifest, tmp_path / "packed")
    originals, copies = (RowDataset.from_manifest(path, modalities=()) for path in (manifest, report.manifest))
    for number in (0, 1):
        expected, audio = (read_audio(table[number]["audio"], 16000) for table in (originals, copies))
        assert len(audio) == len(expected)
        np.testing.assert_allclose(audio, expected, atol=2**-15)
    assert copies[2]["audio"] is None and not has_audio(copies[2]["video"])
    rows = [copies[number] for number in range(3)]
    assert [row["id"] for row in rows] == ["one", "two", "three"]
    assert [row["captions"] for row in rows] == [["x", "y"], ["from a file"], ["z"]]
    assert (rows[0]["start_seconds"], rows[0]["label"], rows[2]["group"]) == (0.4, "dog", "g")
    assert [row["group"] for row in rows] == [originals[number]["group"] for number in range(3)]


def test_existing_files_are_kept(manifest, tmp_path):
    first = pack_manifest(manifest, tmp_path / "packed")
    victim = next((tmp_path / "packed").glob("??/*.mp4"))
    content = victim.read_bytes()
    victim.unlink()
    second = pack_manifest(manifest, tmp_path / "packed")
    assert (first.num_written, second.num_written) == (4, 1)
    assert victim.read_bytes() == content  # the same bytes
    assert not list((tmp_path / "packed").rglob("*.tmp"))
    left_over = victim.with_name(f".{victim.name}.1.2.tmp")  # from a process that was killed
    left_over.write_bytes(b"half")
    other = pack_manifest(manifest, tmp_path / "packed", settings=PackSettings(short_side=32))
    assert other.num_written == 4  # other settings, other files
    assert left_over.name not in (tmp_path / "packed/checksums.sha256").read_text()
    subprocess.run(["sha256sum", "-c", "--quiet", "checksums.sha256"], cwd=tmp_path / "packed", check=True)
    digest, name = (tmp_path / "packed/checksums.sha256").read_text().splitlines()[0].split("  ")
    assert hashlib.sha256((tmp_path / "packed" / name).read_bytes()).hexdigest() == digest


def test_frames_are_scaled_down_and_upright(tmp_path, shared_dir):
    turned = shared_dir / "data/media/derived/nasa_h264_rot90.mp4"
    (tmp_path / "train.csv").write_text(f"video,caption\n{turned.name},x\n")
    report = pack_manifest(
        tmp_path / "train.csv", tmp_path / "packed", video_root=turned.parent, settings=PackSettings(short_side=90)
    )
    path = RowDataset.from_manifest(report.manifest, modalities=())[0]["video"]
    original, copy = index_video(turned), index_video(path)
    assert (original.width, original.height, copy.width, copy.height) == (270, 480, 90, 160)
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.width == 90  # without a display matrix
    backend = get_video_backend("pyav")
    frames = [backend.frames(file, [40], index, (160, 90)) for file, index in ((turned, original), (path, copy))]
    assert ((frames[0].astype(float) - frames[1]) ** 2).mean() < 10**-3 * 255**2  # 30 dB


@pytest.mark.parametrize("group_size", [1, 4])
def test_groups_have_the_requested_size(manifest, tmp_path, group_size):
    report = pack_manifest(manifest, tmp_path / "packed", settings=PackSettings(group_size=group_size, crf=10))
    path = RowDataset.from_manifest(report.manifest, modalities=())[0]["video"]
    index = index_video(path)
    assert np.diff(index.table.entries).tolist() == [group_size] * (len(index.table.entries) - 1)
    frames = get_video_backend("pyav").frames(path, range(30), index)
    assert [read_number(frame) for frame in frames] == list(range(30))
    assert frames.shape[2:] == (HEIGHT, WIDTH)  # not enlarged


def test_the_command_leaves_out_and_reports_unreadable_files(manifest, tmp_path, capsys):
    (manifest.parent / "b.avi").write_bytes(b"broken")
    (manifest.parent / "c.mkv").unlink()
    assert cli.main(["pack", str(manifest), str(tmp_path / "packed"), "--crf", "30"]) == 1
    said = capsys.readouterr().out
    assert "1 rows, 1 files" in said and said.count("left out: ") == 2 and "b.avi" in said and "c.mkv" in said
    assert len((tmp_path / "packed/train.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "packed/pack.json").read_text())["crf"] == 30


def test_a_manifest_is_not_packed_over_itself(manifest, capsys):
    assert cli.main(["pack", str(manifest), str(manifest.parent)]) == 2
    assert "is the manifest itself" in capsys.readouterr().err


def write_manifest(folder, name: str):
    (folder / "train.csv").write_text(f"video,caption\n{name},x\n")
    return folder / "train.csv"


@pytest.mark.parametrize("name", ["joined.mpg", "joined.ts", "joined.vob"])
def test_recordings_joined_into_one_file_are_packed_in_sequence(tmp_path, name):
    settings = {} if name.endswith(".ts") else {"codec": "mpeg2video", "codec_options": {"qscale": "2"}}
    parts = [
        write_media(
            tmp_path / name,
            num_frames=50,
            first_number=first,
            waveform=tone,
            audio_codec="mp2",
            audio_rate=44100,
            audio_seconds=2.0,
            **settings,
        ).read_bytes()
        for first in (0, 50)
    ]
    (tmp_path / name).write_bytes(b"".join(parts))
    report = pack_manifest(write_manifest(tmp_path, name), tmp_path / "packed", settings=PackSettings(crf=10))
    assert report.errors == []
    copy = RowDataset.from_manifest(report.manifest, modalities=())[0]["video"]
    index = index_video(copy)
    np.testing.assert_allclose(index.seconds, np.arange(100) / 25, atol=1e-3)
    frames = get_video_backend("pyav").frames(copy, range(100), index)
    assert [read_number(frame) for frame in frames] == list(range(100))
    expected, audio = read_audio(tmp_path / name, 16000), read_audio(copy, 16000)
    assert len(audio) == len(expected) and len(audio) / 16000 == pytest.approx(4, abs=0.1)
    np.testing.assert_allclose(audio, expected, atol=2**-15)


def test_frames_at_the_same_time_are_packed(tmp_path):
    """MP4 cannot hold two frames at the same time: the second is placed one tick later."""
    path = write_media(tmp_path / "clip.mkv", num_frames=20, codec="mjpeg", codec_options={"qscale": "2"}, rate=2000)
    assert len(np.unique(index_video(path).seconds)) < 20  # Matroska counts milliseconds
    report = pack_manifest(write_manifest(tmp_path, path.name), tmp_path / "packed")
    assert report.errors == []
    copy = index_video(RowDataset.from_manifest(report.manifest, modalities=())[0]["video"])
    np.testing.assert_allclose(copy.seconds, index_video(path).seconds, atol=2e-3)
    assert len(np.unique(copy.seconds)) == copy.num_frames == 20


@pytest.mark.parametrize("name", ["empty.mkv", "empty.mov"])
def test_a_clip_with_an_empty_audio_track_is_packed_without_audio(tmp_path, name):
    write_media(tmp_path / name, num_frames=20, waveform=tone, audio_seconds=0.0)
    report = pack_manifest(write_manifest(tmp_path, name), tmp_path / "packed")
    assert report.errors == [] and report.num_rows == 1
    assert not has_audio(RowDataset.from_manifest(report.manifest, modalities=())[0]["video"])


def test_an_error_in_writing_the_copy_is_not_blamed_on_the_original(tmp_path, monkeypatch):
    write_media(tmp_path / "clip.mp4", num_frames=20)

    def fail(*_):
        raise av.error.InvalidDataError(22, "Invalid argument", "copy.mp4")

    monkeypatch.setattr(pack, "_write_copy", fail)
    report = pack_manifest(write_manifest(tmp_path, "clip.mp4"), tmp_path / "packed")
    (error,) = report.errors
    assert "clip.mp4': its copy cannot be written to" in error and "accepted containers" not in error
