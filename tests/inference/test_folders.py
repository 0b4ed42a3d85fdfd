"""Commands on real-world folders: many media types, hidden files of macOS, subfolders."""

import json
import os
import shutil
from pathlib import Path

import pytest

from simple_multimodal.cli import main
from simple_multimodal.data import files
from simple_multimodal.tasks.retrieval.retriever import ClipIndex
from tests.media.media_files import write_media

FIVE = ["a.mp4", "b.MTS", "c.opus", "d.gif", "e.vob"]


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The log lines that count files."""
    said: list[str] = []
    monkeypatch.setattr(files.logger, "warning", said.append)
    return said


def ids_of(capfd, *argv: str) -> list[str]:
    """Return the ids of the clips that a command prints."""
    capfd.readouterr()
    assert main(list(argv)) == 0
    return sorted(json.loads(line)["clip"] for line in capfd.readouterr().out.splitlines())


@pytest.fixture
def folder(clips, tmp_path) -> Path:
    """Two clips, one in a subfolder, each with a hidden file as macOS creates on other file systems."""
    folder = tmp_path / "clips"
    for name, source in (("IMG_1.mp4", 0), ("trip/IMG_2.MOV", 1)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / f"video/{source}.mp4", path)
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(4092))
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_of_many_media_types_is_encoded(retrieval_model, shared_dir, said, capfd):
    folder = str(shared_dir / "data/reported/folder_of_many_kinds")
    assert ids_of(capfd, "search", retrieval_model, "a red circle", folder) == FIVE and said == []


def test_hidden_files_of_macos_are_skipped(retrieval_model, shared_dir, tmp_path, capfd):
    out = str(tmp_path / "embeddings")
    assert main(["encode", retrieval_model, str(shared_dir / "data/reported/folder_from_macos"), "--out", out]) == 0
    assert capfd.readouterr().out == f"{out}: 1 clips\n"
    index = ClipIndex.load(out)
    assert index.ids == ["IMG_0001.mp4"] and index.bad_samples == []


def test_every_command_skips_hidden_files_and_can_include_subfolders(
    retrieval_model, question_model, folder, said, tmp_path, capfd
):
    out = str(tmp_path / "embeddings")
    shallow = f"{folder}: 1 media files; skipped: 1 of other kinds (.txt), 1 hidden, 1 folders (searched "
    for argv in (["search", retrieval_model, "a cat", str(folder)], ["answer", question_model, "who?", str(folder)]):
        assert ids_of(capfd, *argv) == ["IMG_1.mp4"]
        assert ids_of(capfd, *argv, "--recursive") == ["IMG_1.mp4", "trip/IMG_2.MOV"]
        assert said == [
            f"{shallow}with `recursive`).",
            f"{folder}: 2 media files; skipped: 1 of other kinds (.txt), 2 hidden.",
        ]
        said.clear()
    for flags, ids in (([], ["IMG_1.mp4"]), (["--recursive"], ["IMG_1.mp4", "trip/IMG_2.MOV"])):
        assert main(["encode", retrieval_model, str(folder), "--out", out, *flags]) == 0
        assert ClipIndex.load(out).ids == ids
    assert main(["search", retrieval_model, "a cat", out, "--recursive"]) == 2
    assert "recursive applies to folders of media files" in capfd.readouterr().err


def test_files_whose_names_are_not_utf8_are_left_out_and_listed(retrieval_model, clips, tmp_path, capfd):
    folder = os.fsencode(tmp_path / "clips")
    os.mkdir(folder)
    try:
        shutil.copy(clips / "video/0.mp4", folder + b"/caf\xe9.mp4")
    except OSError:
        pytest.skip("this file system takes no such name")
    write_media(tmp_path / "clips/b.mkv", num_frames=6)
    write_media(tmp_path / "clips/c.ts", num_frames=6, codec="mpeg2video", codec_options={})
    with open(folder + b"/bad\xff.mp4", "wb") as file:
        file.write(b"x" * 1000)
    flags = ("--max_bad_fraction", "0.5")
    found = ids_of(capfd, "search", retrieval_model, "a cat", str(tmp_path / "clips"), *flags)
    assert [os.fsencode(name) for name in found] == [b"b.mkv", b"c.ts", b"caf\xe9.mp4"]
    out = str(tmp_path / "embeddings")
    assert main(["encode", retrieval_model, str(tmp_path / "clips"), "--out", out, *flags]) == 0
    assert "3 clips (1 could not be read, left out)" in capfd.readouterr().out
    assert [os.fsencode(sample.id) for sample in ClipIndex.load(out).bad_samples] == [b"bad\xff.mp4"]
