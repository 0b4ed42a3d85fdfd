"""Folders of media files: which files are used, their names, and the report on other files."""

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from simple_multimodal.data import files
from simple_multimodal.data.files import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.media import index_video, read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.prepare.clip_files import CLIP_SUFFIXES

# A muxer and a codec for each suffix.
MADE_WITH = {
    **dict.fromkeys((".mp4", ".f4v", ".m4v"), ("mp4", "libx264")),
    **dict.fromkeys((".mov", ".qt", ".mj2"), ("mov", "mjpeg")),
    **dict.fromkeys((".ts", ".m2t", ".m2ts", ".mts"), ("mpegts", "mpeg2video")),
    **dict.fromkeys((".mpg", ".mpeg", ".mpe"), ("mpeg", "mpeg1video")),
    **dict.fromkeys((".avi", ".divx"), ("avi", "mpeg4")),
    **dict.fromkeys((".asf", ".wmv"), ("asf", "wmv2")),
    ".vob": ("vob", "mpeg2video"),
    ".3gp": ("3gp", "libx264"),
    ".3g2": ("3g2", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx"),
    ".ogv": ("ogg", "libvpx"),
    ".flv": ("flv", "flv"),
    ".gif": ("gif", "gif"),
    **dict.fromkeys((".aif", ".aiff", ".aifc"), ("aiff", "pcm_s16be")),
    **dict.fromkeys((".m4a", ".m4b"), ("ipod", "aac")),
    **dict.fromkeys((".opus", ".ogg"), ("ogg", "libopus")),
    ".oga": ("ogg", "flac"),
    ".aac": ("adts", "aac"),
    ".flac": ("flac", "flac"),
    ".mka": ("matroska", "libopus"),
    ".weba": ("webm", "libopus"),
    ".mp2": ("mp2", "mp2"),
    ".mp3": ("mp3", "libmp3lame"),
    ".wma": ("asf", "libmp3lame"),
    ".wav": ("wav", "pcm_s16le"),
    ".w64": ("w64", "pcm_s16le"),
}


def write(path: Path, muxer: str, codec: str) -> None:
    """Write eight frames, or 0.2 s of silence."""
    with av.open(str(path), "w", format=muxer) as output:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            stream = output.add_stream(codec, rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for number in range(8):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 * number, np.uint8))
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts = number
                output.mux(stream.encode(frame))
        else:
            stream = output.add_stream(codec, rate=48000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = 48000, 0
            resampler = av.AudioResampler(stream.format, "mono", 48000, frame_size=stream.frame_size or 1024)
            for frame in (*resampler.resample(silence), *resampler.resample(None)):
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory) -> Path:
    """Make a folder with a file of each kind; every other suffix is in capitals, as cameras write them."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, (suffix, how) in enumerate(MADE_WITH.items()):
        write(folder / f"a{suffix.upper() if number % 2 else suffix}", *how)
    return folder


def listed(paths, **options) -> list[Row]:
    return list(RowDataset.from_files(paths, **options).rows(files="named"))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(files.logger, "warning", said.append)
    return said


def test_every_suffix_belongs_to_a_readable_container(every_kind, said):
    assert MADE_WITH.keys() == MEDIA_SUFFIXES and not VIDEO_SUFFIXES & AUDIO_SUFFIXES
    assert CLIP_SUFFIXES == VIDEO_SUFFIXES | {""}  # used by `prepare`
    rows = listed(every_kind)
    assert sorted(Path(row["id"]).suffix.lower() for row in rows) == sorted(MEDIA_SUFFIXES) and said == []
    for row in rows:
        assert (row["video"] is not None) == (Path(row["id"]).suffix.lower() in VIDEO_SUFFIXES), row["id"]
        if row["video"] is not None:
            assert len(index_video(row["video"]).seconds) == 8, row["id"]
        else:
            assert len(read_audio(row["audio"], 16000)) > 3000, row["id"]


def test_skipped_files_are_counted(every_kind, tmp_path, said):
    names = ["b.mp4", "a.OPUS", "notes.txt", "b.json", "c.json", "LICENSE", "._b.mp4", ".DS_Store", ".hidden.mkv"]
    for name in names:
        shutil.copy(every_kind / "a.mp4", tmp_path / name)
    for name in ("season1", "season2.mp4", ".cache"):
        (tmp_path / name).mkdir()
        shutil.copy(every_kind / "a.mp4", tmp_path / name / "deeper.mp4")
    assert [row["id"] for row in listed(tmp_path)] == ["a.OPUS", "b.mp4"]
    assert said == [
        f"{tmp_path}: 2 media files; skipped: 4 of other kinds (.json, .txt, no suffix), 4 hidden, "
        "2 folders (searched with `recursive`)."
    ]


def test_subfolders_are_searched_on_request(every_kind, tmp_path, said):
    for name in ("b.mp4", "a/c.mp4", "a/b/c.mp4", "a/b/._c.mp4", "a/.git/d.mp4", "z/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(every_kind / "a.mp4", tmp_path / name)
    (tmp_path / "z/loop").symlink_to(tmp_path, target_is_directory=True)
    rows = listed(tmp_path, recursive=True)
    assert [row["id"] for row in rows] == ["a/b/c.mp4", "a/c.mp4", "b.mp4"]
    assert rows[0]["video"] == str(tmp_path / "a/b/c.mp4")
    left_out = "1 of other kinds (.txt), 2 hidden, 1 linked folders (name them directly)"
    assert said == [f"{tmp_path}: 3 media files; skipped: {left_out}."]


def test_links_to_files_in_a_folder_are_followed(every_kind, tmp_path):
    (tmp_path / "elsewhere.mp4").symlink_to(every_kind / "a.mp4")
    dataset = RowDataset.from_files(tmp_path)
    dataset.check_links()
    assert dataset[0]["video"] == str(tmp_path / "elsewhere.mp4")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX systems only")
@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff\xfe.mp4", "über/naïve.mp4".encode("latin-1")])
def test_names_that_are_not_utf8_are_read(every_kind, tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        shutil.copy(every_kind / "a.mp4", path)
    except OSError:
        pytest.skip("this file system does not accept such names")
    (row,) = listed(tmp_path, recursive=True)
    assert row == RowDataset.from_files(tmp_path, recursive=True)[0] and row["audio"] == row["video"] == row["group"]
    assert os.fsencode(row["id"]) == name and len(index_video(row["video"]).seconds) == 8
    with open(path, "wb") as file:
        file.write(b"x" * 100)
    with pytest.raises(MediaError) as error:
        index_video(row["video"])
    str(error.value).encode()  # the message can be printed


def test_bad_input_is_named(every_kind, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}: no media files found \(looked for .3g2 .*.wmv\)\.$"):
        listed(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "deeper").mkdir()
    with pytest.raises(ValueError, match=r"1 of other kinds \(.txt\), 1 folders \(searched with `recursive`\)"):
        listed(tmp_path)
    with pytest.raises(ValueError, match=r"`recursive` searches the subfolders of a folder, but '\S+a.mp4' is not"):
        listed(str(every_kind / "a.mp4"), recursive=True)
    (tmp_path / "b.mp4").write_bytes(b"no media")
    assert [row["id"] for row in listed(tmp_path)] == ["b.mp4"]  # the error surfaces when it is read
