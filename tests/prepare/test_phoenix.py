"""Tests of `prepare phoenix2014t`: its tables, the files of its clips, and the videos made of folders of images."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.media import index_video, open_video
from simple_multimodal.media.errors import MediaError
from simple_multimodal.prepare import frame_folders
from simple_multimodal.prepare.annotations import SOURCES
from simple_multimodal.prepare.benchmarks import read_annotations
from simple_multimodal.prepare.frame_folders import in_order
from simple_multimodal.prepare.manifests import prepare_benchmark
from tests.training import tiny_run
from tests.training.tiny_run import flags

HEADER = "name|video|start|end|speaker|orth|translation"
SENTENCES = {
    "train": ["morgen regnet es", "am freitag sonne", "heute nacht schnee"],
    "dev": ["am freitag wind", "morgen regnet es"],
    "test": ["in der nacht frost", "morgen regnet es", "heute nacht schnee"],
}
BACKBONE = {
    "model_type": "m2m_100", "vocab_size": 300, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "max_position_embeddings": 128,
}  # fmt: skip


def line(name: str, sentence: str, number: int = 1) -> str:
    return f"{name}|{name}/1/*.png|-1|-1|Signer0{number}|{sentence.upper()}|{sentence}"


def write_tables(folder: Path, *, header: str = HEADER + "\n", end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, sentences in SENTENCES.items():
        lines = [line(f"{split}-{number}", sentence, number) for number, sentence in enumerate(sentences, start=1)]
        content = header.replace("\n", end) + "".join(f"{own}{end}" for own in lines)
        (folder / f"PHOENIX-2014-T.{split}.corpus.csv").write_bytes(content.encode())
    return folder


def names() -> list[tuple[str, str]]:
    return [(split, f"{split}-{n}") for split, own in SENTENCES.items() for n in range(1, len(own) + 1)]


def write_files(folder: Path, suffix: str) -> Path:
    for split, name in names():
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"{name}{suffix}").write_bytes(b"x")
    return folder


def write_images(folder: Path, numbers=range(1, 12), *, size: tuple[int, int] = (40, 32)) -> None:
    """Write frames with a brightness of ten times their number, under names whose alphabetical order is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((*size, 3), 10 * number, np.uint8)).save(folder / f"images{number}.png")


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(own) for own in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("header", [HEADER + "\n", "", "\ufeff" + HEADER + "\n"], ids=["header", "none", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_are_read_with_and_without_header(tmp_path, header, end):
    write_tables(tmp_path, header=header, end=end)
    found = read_annotations(tmp_path, "phoenix2014t", "phoenix2014t", splits=["train", "validation", "test"])
    assert {split: len(rows) for split, rows in found.rows.items()} == {"train": 3, "validation": 2, "test": 3}
    assert found.rows["train"][1] == {
        "id": "train-2",
        "clip": "train-2",
        "caption": "am freitag sonne",
        "signer": "Signer02",
        "gloss": "AM FREITAG SONNE",
    }
    assert "validation: 1 of 2 sentences stand word for word in train; unseen_BLEU leaves them out" in found.notes
    assert "test: 2 of 3 sentences stand word for word in train; unseen_BLEU leaves them out" in found.notes
    assert "test, as listed: 3 sentences of 3 signers" in found.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}\na|b|-1|-1|S|G\n", "line 2: 6 cells, but there must be 7: name|video|"),
        (line("a", "b") + "|c\n", "line 1: 8 cells, but there must be 7"),
        ("a|a/1/*.png|0|12|S|G|t\n", "line 1: start and end must be -1, for a whole clip, got '0' and '12'"),
        (line("a", "") + "\n", "line 1: the translation is empty"),
        (line("", "b") + "\n", "line 1: the name must be that of a clip, got ''"),
        (line("../a", "b") + "\n", "line 1: the name must be that of a clip, got '../a'"),
        ("", "has no rows. Annotations: PHOENIX"),
        (HEADER + "\n", "has no rows. Annotations: PHOENIX"),
        (line("a", "schön").encode("latin-1"), "line 1: is not UTF-8 text: it contains the byte 0xd6. Save the file"),
    ],
)
def test_an_invalid_table_is_refused_with_the_place(tmp_path, content, message):
    write_tables(tmp_path)
    path = tmp_path / "PHOENIX-2014-T.test.corpus.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path, "phoenix2014t", "phoenix2014t", splits=["test"])
    assert str(error.value).startswith(str(path)) and message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_table_and_a_repeated_name_are_named(tmp_path):
    write_tables(tmp_path)
    path = tmp_path / "PHOENIX-2014-T.dev.corpus.csv"
    path.write_text("".join(line("a", text) + "\n" for text in "bc"))
    found = read_annotations(tmp_path, "phoenix2014t", "phoenix2014t", splits=["validation"])
    assert [row["caption"] for row in found.rows["validation"]] == ["b"]
    assert found.deviations == ["PHOENIX-2014-T.dev.corpus.csv: 1 more than once: a"]
    path.unlink()
    with pytest.raises(ValueError, match="PHOENIX-2014-T.dev.corpus.csv is missing") as error:
        read_annotations(tmp_path, "phoenix2014t", "phoenix2014t", splits=["validation"])
    assert SOURCES["phoenix2014t"] in str(error.value)


@pytest.mark.parametrize(("suffix", "column"), [(".pose", "poses"), (".npy", "poses"), (".mp4", "videos")])
def test_poses_features_and_videos_are_found_by_name(tmp_path, suffix, column):
    write_tables(tmp_path / "tables")
    files = write_files(tmp_path / "files", suffix)
    (files / "test/test-3").mkdir()  # without images, it is a folder
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **{column: files})
    assert [(name, split.num_rows) for name, split in made.splits.items()] == [
        ("train", 3), ("validation", 2), ("test", 3)
    ]  # fmt: skip
    name = {"poses": "pose", "videos": "video"}[column]
    assert list(rows_of(tmp_path / "out", "test")[0]) == ["id", name, "caption", "signer", "gloss"]
    assert rows_of(tmp_path / "out", "test")[0][name] == f"test/test-1{suffix}"
    assert made.flags == f"--{name}_root {files}" and "--task translation" in made.to_text()
    assert ("--modalities pose" in made.to_text()) == (name == "pose")
    assert "protocol: 642 clips, 642 sentences" in made.to_text()
    assert "test: the annotations list 3 clips and 3 sentences, phoenix2014t has 642 and 642" in made.deviations


def test_a_row_has_both_files_and_is_left_out_without_one_of_them(tmp_path, capsys):
    write_tables(tmp_path / "tables")
    poses, videos = write_files(tmp_path / "poses", ".pose"), write_files(tmp_path / "videos", ".mp4")
    (videos / "test/test-2.mp4").unlink()
    (poses / "dev/dev-1.pose").unlink()
    argv = ["prepare", "phoenix2014t", "--annotations", str(tmp_path / "tables"), "--output", str(tmp_path / "out")]
    assert main([*argv, "--poses", str(poses), "--videos", str(videos)]) == 1
    assert [row["id"] for row in rows_of(tmp_path / "out", "test")] == ["test-1", "test-3"]
    assert rows_of(tmp_path / "out", "validation") == [
        {
            "id": "dev-2",
            "pose": "dev/dev-2.pose",
            "video": "dev/dev-2.mp4",
            "caption": "morgen regnet es",
            "signer": "Signer02",
            "gloss": "MORGEN REGNET ES",
        }
    ]
    printed = capsys.readouterr().out
    assert "test: 1 of 3 clips have no usable file, so 1 rows are left out: test-2" in printed
    assert "--modalities video pose" in printed and "where to get the missing files. Annotations: PHOENIX" in printed


def test_broken_poses_count_as_missing_if_files_are_opened(tmp_path):
    write_tables(tmp_path / "tables")
    poses = write_files(tmp_path / "poses", ".npy")
    for file in poses.rglob("*.npy"):
        np.save(file, np.zeros((5, 3), np.float32))
    np.save(poses / "dev/dev-1.npy", np.array([{}], dtype=object))
    options = {"poses": poses, "opens_files": True}
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **options)
    assert made.splits["validation"].missing == ["dev-1"] and made.splits["train"].num_rows == 3
    assert any(note.startswith("unreadable: ") and "dev-1.npy" in note for note in made.notes)


@pytest.mark.parametrize("camera", ["", "1"])
def test_folders_of_images_become_videos_in_the_order_of_their_numbers(tmp_path, camera):
    write_tables(tmp_path / "tables")
    for split, name in names():
        write_images(tmp_path / "frames" / split / name / camera)
    options = {"videos": tmp_path / "frames"}
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **options)
    assert made.video_root == tmp_path / "out/videos" and made.splits["train"].num_rows == 3
    path = tmp_path / "out/videos/test-1.mp4"
    index = index_video(path)
    np.testing.assert_allclose(index.seconds, np.arange(11) / 25, atol=1e-6)
    frames = open_video(path).frames(range(11))
    assert np.abs(frames.reshape(11, -1).mean(axis=1) - 10 * np.arange(1, 12)).max() < 2
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    assert protocol["frame_videos"] == {
        "rate": 25.0, "codec": "h264", "pixel_format": "yuv420p", "crf": 18, "group_size": 1
    }  # fmt: skip
    assert rows_of(tmp_path / "out", "test")[0]["video"] == "test-1.mp4"
    rows = RowDataset.from_manifest(
        tmp_path / "out/test.jsonl", roots=made.video_root, modalities=["video"], cache_dir=tmp_path / "cache"
    )
    assert rows[0]["video"] == str(path)

    before = {file: file.stat().st_mtime_ns for file in made.video_root.iterdir()}
    write_images(tmp_path / "frames/test/test-1" / camera, [12])  # one more image
    prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **options)
    changed = [file.name for file, time in before.items() if file.stat().st_mtime_ns != time]
    assert changed == ["test-1.mp4"] and index_video(path).num_frames == 12


def test_a_folder_with_broken_images_costs_its_clip(tmp_path):
    write_tables(tmp_path / "tables")
    frames = tmp_path / "frames"
    for split, name in names():
        write_images(frames / split / name, range(1, 4))
    (frames / "train/train-1/images2.png").write_bytes((frames / "train/train-1/images2.png").read_bytes()[:60])
    write_images(frames / "train/train-2", [4], size=(40, 48))
    (frames / "dev/dev-1/images02.png").write_bytes((frames / "dev/dev-1/images2.png").read_bytes())
    write_images(frames / "copy/dev-2", [1])
    (frames / "test/test-1/.hidden.png").write_bytes(b"x")
    (frames / "test/test-2/images2.png").unlink()
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", videos=frames)
    assert made.splits["train"].missing == ["train-1", "train-2"] and made.splits["validation"].missing == ["dev-1"]
    assert made.splits["test"].num_rows == 3
    notes = "\n".join(made.notes)
    assert "train-1/images2.png': is not an image that can be read" in notes
    assert "train-2/images4.png': has 48x40 pixels, but the images before it have 32x40" in notes
    assert "the image 'images2.png' has the same number as 'images02.png'" in notes
    assert "1 clips lack images between their first and last: test-2" in notes
    assert "1 clips have several folders of images; the first is used: dev-2" in notes
    assert not (tmp_path / "out/videos/train-1.mp4").exists()


def test_a_full_disk_ends_the_writing_of_videos(tmp_path, monkeypatch):
    write_tables(tmp_path / "tables")
    for split, name in names():
        write_images(tmp_path / "frames" / split / name, [1])

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frame_folders, "_encode", fail)
    with pytest.raises(OSError, match="No space left"):
        prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", videos=tmp_path / "frames")
    assert not list((tmp_path / "out/videos").iterdir()) and not (tmp_path / "out/train.jsonl").exists()


def test_the_order_of_images_needs_numbers():
    assert in_order(["f10.png", "f9.png", "f0011.png"]) == ["f9.png", "f10.png", "f0011.png"]
    assert in_order(["2_10.jpg", "2_9.jpg", "1_99.jpg"]) == ["1_99.jpg", "2_9.jpg", "2_10.jpg"]
    with pytest.raises(MediaError, match="'first.png' has no number"):
        in_order(["1.png", "first.png"])


def test_a_link_out_of_the_folder_of_images_is_not_followed(tmp_path):
    write_tables(tmp_path / "tables")
    for split, name in names():
        write_images(tmp_path / "frames" / split / name, [1])
    (tmp_path / "frames/test/test-1").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "frames/test/test-1")
    options = {"videos": tmp_path / "frames"}
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **options)
    assert made.splits["test"].missing == ["test-1"]
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", tmp_path / "out", **options, follow_links=True)
    assert made.splits["test"].missing == []


def test_a_model_is_trained_on_and_measured_on_folders_of_images(tmp_path):
    write_tables(tmp_path / "tables", header="")
    for split, name in names():
        write_images(tmp_path / "frames" / split / name)
    out = tmp_path / "out"
    made = prepare_benchmark("phoenix2014t", tmp_path / "tables", out, videos=tmp_path / "frames")
    configs = tiny_run.write_configs(tmp_path)
    (tmp_path / "backbone.json").write_text(json.dumps(BACKBONE))
    tiny_run.run(
        *tiny_run.config_flags({tower: configs[tower] for tower in ("video", "fusion")}),
        *flags(task="translation", modalities="video", backbone_config_name=tmp_path / "backbone.json"),
        *flags(train_file=out / "train.jsonl", validation_file=out / "validation.jsonl", video_root=made.video_root),
        *flags(output_dir=tmp_path / "model", cache_dir=tmp_path / "cache", max_steps=1),
        *flags(max_target_length=12, num_beams=1),
    )
    argv = ["infer", str(tmp_path / "model"), str(out), "--video_root", str(made.video_root)]
    assert main([*argv, "--output_dir", str(tmp_path / "results")]) == 0
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    assert (metrics["protocol"], metrics["primary_metric"]) == ("phoenix2014t+deviating", "BLEU")
    assert metrics["counts"]["rows"] == 3
    assert "unseen_BLEU" in metrics["metrics"] and metrics["counts"]["unseen_rows"] == 1


def test_the_published_tables_match_the_protocol(shared_dir, tmp_path):
    folder = shared_dir / "data/annotations/phoenix2014t"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    found = read_annotations(folder, "phoenix2014t", "phoenix2014t", splits=["train", "validation", "test"])
    (tmp_path / "poses").mkdir()
    for rows in found.rows.values():
        for row in rows:
            (tmp_path / f"poses/{row['clip']}.pose").write_bytes(b"x")
    made = prepare_benchmark("phoenix2014t", folder, tmp_path / "out", poses=tmp_path / "poses")
    assert made.deviations == []
    assert [split.num_rows for split in made.splits.values()] == [7096, 519, 642]
    assert made.notes[-2:] == [
        "validation: 25 of 519 sentences stand word for word in train; unseen_BLEU leaves them out",
        "test: 32 of 642 sentences stand word for word in train; unseen_BLEU leaves them out",
    ]
    assert {row["signer"] for row in found.rows["test"]} == {f"Signer0{number}" for number in range(1, 10)}
    assert max(len(row["caption"].split()) for rows in found.rows.values() for row in rows) == 52


def test_the_published_layout_of_images_is_read(shared_dir, tmp_path):
    folder = shared_dir / "data/annotations/phoenix2014t/release_v3_layout"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    options = {"videos": folder, "splits": ["train"]}
    made = prepare_benchmark("phoenix2014t", folder, tmp_path / "out", **options)
    index = index_video(tmp_path / "out/videos" / rows_of(tmp_path / "out", "train")[0]["video"])
    assert (index.num_frames, index.height, index.width) == (2, 260, 210) and made.splits["train"].missing == []
