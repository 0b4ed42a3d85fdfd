"""The check that test rows are not clips that a model was trained on; files are compared by identity and contents."""

import json
import os
import shutil
from pathlib import Path

import pytest

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.tasks import training_clips
from simple_multimodal.tasks.training_clips import TrainingClips


def make_file(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def rows(*paths: Path) -> RowDataset:
    return RowDataset([{"video": str(path)} for path in paths], modalities=())


@pytest.fixture
def trained(tmp_path) -> TrainingClips:
    """Clips `0` and `1`, read back from the model's folder."""
    files = [make_file(tmp_path / f"train/{n}.mp4", f"clip {n}") for n in range(2)]
    TrainingClips().with_rows(rows(*files)).write(tmp_path)
    return TrainingClips.read(tmp_path)


def test_a_file_is_refused_under_any_name(trained, tmp_path):
    first = tmp_path / "train/0.mp4"
    (tmp_path / "test").mkdir()
    links = {name: tmp_path / f"test/{name}.mp4" for name in ("linked", "twice", "hard", "copied")}
    links["linked"].symlink_to(first)
    links["twice"].symlink_to(links["linked"])
    os.link(first, links["hard"])
    (tmp_path / "alias").symlink_to(tmp_path / "train")
    (tmp_path / "copy").mkdir()
    shutil.copy(first, tmp_path / "copy/0.mp4")
    for path in (first, *links.values(), tmp_path / "alias/1.mp4", tmp_path / "copy/0.mp4"):
        if path.stem != "copied":
            with pytest.raises(
                ValueError,
                match=f"1 of the 1 test clips of msvd .*: {path.stem} \\({tmp_path}/train/[01].mp4\\). Results",
            ):
                trained.check(rows(path), "msvd")


def test_different_files_are_accepted_with_a_warning(trained, tmp_path, caplog):
    trained.check(rows(make_file(tmp_path / "test/other.mp4", "clip 2")), "msvd")
    assert not caplog.records
    trained.check(rows(make_file(tmp_path / "test/0.mp4", "clip 3")), "msvd")  # the same size as the training clip
    message = "1 test clips have the names of training clips but other contents, and are treated as different clips: "
    assert message + f"0 ({tmp_path}/train/0.mp4)." in caplog.text
    trained.check(rows(make_file(tmp_path / "test/renamed.mp4", "clip 1")), "msvd")
    message = "1 test clips have the same contents as training clips of other names: "
    assert message + f"renamed ({tmp_path}/train/1.mp4)." in caplog.text
    TrainingClips().check(rows(tmp_path / "train/0.mp4"), "msvd")  # no known training clips


def test_measuring_on_training_clips_causes_a_warning(trained, tmp_path, caplog):
    trained.warn_about(rows(make_file(tmp_path / "test/other.mp4", "clip 2")))
    assert not caplog.records
    copy = make_file(tmp_path / "test/renamed.mp4", "clip 1")
    trained.warn_about(rows(tmp_path / "train/0.mp4", copy, tmp_path / "test/other.mp4"))
    assert "The model was trained on 2 of the 3 clips that it is measured on" in caplog.text


def test_each_file_is_hashed_once(trained, tmp_path, monkeypatch):
    hashed = []
    plain = training_clips.content_hash
    monkeypatch.setattr(training_clips, "content_hash", lambda path: hashed.append(path) or plain(path))
    tested = [make_file(tmp_path / f"test/{name}.mp4", f"clip {name}") for name in "abc"]  # the size of both trained
    trained.check(rows(*tested), "msvd")
    assert sorted(hashed) == sorted(map(str, [*tested, tmp_path / "train/0.mp4", tmp_path / "train/1.mp4"]))


def test_equal_names_are_refused_if_files_cannot_be_compared(trained, tmp_path):
    other = rows(make_file(tmp_path / "test/0.mp4", "another release"))
    trained.check(other, "msvd")
    absent = rows(tmp_path / "absent/1.mp4")
    converted = rows(make_file(tmp_path / "test/1.avi", "another format"))
    (tmp_path / "train/0.mp4").unlink()  # as on another machine
    for clips, name in ((other, "0"), (absent, "1"), (converted, "1")):
        with pytest.raises(ValueError, match=rf"1 of the 1 test clips .*: {name} \(.*/train/{name}.mp4\)"):
            trained.check(clips, "msvd")


def test_folders_of_earlier_versions_contain_only_names(trained, tmp_path):
    old = tmp_path / "old"
    make_file(old / "training_clips.json", json.dumps({"clips": ["0", "a"]}))
    test = rows(make_file(tmp_path / "test/0.mp4", "other"), make_file(tmp_path / "test/a.mp4", "a"))
    later = tmp_path / "later"
    later.mkdir()
    TrainingClips.read(old).with_rows(rows(tmp_path / "train/0.mp4")).write(later)  # trained further
    for folder in (old, later):
        with pytest.raises(ValueError, match="2 of the 2 test clips of msvd .*: 0, a. Results"):
            TrainingClips.read(folder).check(test, "msvd")
    assert json.loads((later / "training_clips.json").read_text())["clips"] == ["0", "0", "a"]
    assert TrainingClips.read(None) == TrainingClips.read(tmp_path / "test") == TrainingClips()
