"""Tests of the data check, as a command and as a function."""

import dataclasses
import json

import numpy as np
import pytest

from simple_multimodal import cli
from simple_multimodal.media.index_cache import index_cache, index_video
from simple_multimodal.prepare.check import check_manifests
from tests.media.media_files import write_media


@pytest.fixture
def folder(tmp_path):
    """Clips in two manifests: one is in both under two names, one is damaged, one is missing."""
    write_media(tmp_path / "a.mp4", num_frames=25, waveform=np.sin, audio_seconds=1.0, audio_codec="aac")
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    write_media(tmp_path / "b.mpg", num_frames=50, codec="mpeg2video", codec_options={"qscale": "2"})
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    write_media(tmp_path / "audio.wav", waveform=np.sin, audio_seconds=1.0)
    rows = ["video,audio,caption", "a.mp4,a.mp4,one", "b.mpg,audio.wav,two", "broken.mp4,,three", "absent.mp4,,four"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "validation.csv").write_text("video,caption\ncopy.mp4,one\n")
    return tmp_path


def test_rows_are_counted_and_unreadable_and_shared_files_are_reported(folder, tmp_path):
    manifests = [folder / "train.csv", folder / "validation.csv"]
    report = check_manifests(manifests, index_dir=tmp_path / "index")
    assert list(report.num_rows.values()) == [4, 1]
    files = {file.path.rpartition("/")[2]: file for file in report.files}
    assert (files["a.mp4"].num_frames, files["a.mp4"].is_sparse, files["b.mpg"].is_sparse) == (25, True, False)
    assert files["a.mp4"].streams == "h264 64x48, aac 16000 Hz" and files["audio.wav"].streams == "pcm_s16le 16000 Hz"
    assert ["broken.mp4" in file.error or "absent.mp4" in file.error for file in report.unreadable] == [True, True]
    (shared,) = report.shared.values()
    assert shared == [str(folder / "a.mp4")]
    text = report.to_text()
    assert "are in both" in text and text.count("unreadable: ") == 2
    assert "slow: 1 files are decoded from their start" in text  # the MPEG program stream


def test_the_command_prints_json_and_fails_for_unreadable_files(folder, capsys):
    assert cli.main(["index", str(folder / "train.csv"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert sum(bool(file["error"]) for file in report["files"]) == 2
    assert "absent.mp4 does not exist" in " ".join(file["error"] for file in report["files"])
    assert cli.main(["index", str(folder / "train.csv")]) == 1
    assert f"Paths are relative to {folder} (--video_root)." in capsys.readouterr().out
    assert cli.main(["index", str(folder / "validation.csv")]) == 0
    assert "1 files, 0 unreadable" in capsys.readouterr().out


def test_the_columns_of_manifests_are_listed_and_other_names_of_columns_are_a_warning(folder, capsys, caplog):
    (folder / "title.csv").write_text("label,video,title\nx,a.mp4,one\n")
    manifests = [str(folder / "title.csv"), str(folder / "validation.csv")]
    assert cli.main(["index", *manifests]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("title.csv: 1 rows; columns: video; only passed on to tasks: label, title")
    assert second.endswith("validation.csv: 1 rows; columns: video, caption")
    (record,) = caplog.records
    assert record.message.endswith(
        "title.csv: further columns are passed on, but not read. Did you mean 'caption' instead of 'title'?"
    )
    assert check_manifests(manifests).to_dict()["columns"][manifests[0]] == ["label", "video", "title"]


def test_decoding_finds_frames_that_the_index_misses(tmp_path, monkeypatch):
    """Damage inside a frame that no other frame refers to is only found by decoding that frame."""
    path = write_media(tmp_path / "a.mp4", num_frames=30)
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,one\n")
    index = index_video(path)
    shorter = dataclasses.replace(index, num_frames=29, seconds=index.seconds[:29])
    index_cache.put(path, shorter, path.stat())
    assert check_manifests([tmp_path / "train.csv"]).files[0].num_frames == 29
    assert check_manifests([tmp_path / "train.csv"], decodes=True).files[0].num_frames == 30
