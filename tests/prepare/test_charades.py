"""Tests of `prepare charades`: its annotation files, what is odd in them, and the counts of the published ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.protocols import get_protocol
from simple_multimodal.prepare.benchmarks import read_annotations
from simple_multimodal.prepare.manifests import prepare_benchmark
from simple_multimodal.prepare.toy.media import write_clip

COLUMNS = "id subject scene quality relevance verified script objects descriptions actions length".split()
CLASSES = ["c000 Holding a cup", "c001 Running", "c002 Laughing at something"]


def write_split(folder: Path, split: str, rows: list[dict[str, str]], *, encoding: str = "utf-8") -> Path:
    """Write a CSV file as published: quoted where necessary, with CRLF at the ends of lines."""
    path = folder / f"Charades_v1_{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(name: str, actions: str = "", length: str = "10.00", **further: str) -> dict[str, str]:
    return {
        "id": name,
        "subject": "S" + name[:1],
        "script": f"Someone is in {name}.",
        "objects": "cup",
        "descriptions": "Someone holds a cup.",
        "actions": actions,
        "length": length,
    } | further


TRAIN = [
    row("AAA01", "c002 1.00 2.00;c000 0.00 9.50;c002 3.00 4.00", script='She says "hi", then runs.'),
    row("AAA02"),
    row("BBB03", "c001 5.00 12.00;c000 11.00 12.00;c002 7.00 6.00;c000 10.00 11.00"),
]
TEST = [row("CCC01", "c000 0.00 1.50", length="1.00"), row("CCC02", "c001 0.00 1.00")]


@pytest.fixture
def charades(tmp_path) -> Path:
    """A folder with annotations, and with a placeholder for each clip."""
    folder = tmp_path / "annotations"
    write_split(folder, "train", TRAIN)
    write_split(folder, "test", TEST, encoding="utf-8-sig")
    (folder / "Charades_v1_classes.txt").write_text("".join(f"{line}\n" for line in CLASSES), encoding="utf-8")
    (tmp_path / "videos/more").mkdir(parents=True)
    for name in ("AAA01.mp4", "AAA02.mp4", "more/BBB03.avi", "CCC01.mp4", "CCC02.mkv"):
        (tmp_path / "videos" / name).write_bytes(b"x")
    return tmp_path


def prepare(folder: Path, **options):
    options = {"num_validation_clips": 1, "videos": folder / "videos"} | options
    return prepare_benchmark("charades", folder / "annotations", folder / "out", **options)


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"out/{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_rows_have_labels_in_class_order_and_actions_with_times(charades):
    found = read_annotations(charades / "annotations", "charades", "charades", splits=["train", "test"])
    assert found.labels == ["Holding a cup", "Running", "Laughing at something"]
    assert found.rows["train"][0] == {
        "id": "AAA01",
        "clip": "AAA01",
        "labels": ["Holding a cup", "Laughing at something"],  # once each
        "actions": [
            {"label": "Laughing at something", "start_seconds": 1.0, "end_seconds": 2.0},
            {"label": "Holding a cup", "start_seconds": 0.0, "end_seconds": 9.5},
            {"label": "Laughing at something", "start_seconds": 3.0, "end_seconds": 4.0},
        ],
        "length_seconds": 10.0,
    }
    assert found.rows["train"][1]["labels"] == found.rows["train"][1]["actions"] == []  # known to have none
    assert found.rows["test"][0]["actions"][0]["end_seconds"] == 1.0


def test_odd_intervals_are_cut_or_left_out_and_counted(charades):
    (charades / "videos/more/BBB03.avi").rename(charades / "videos/BBB03.avi")
    write_split(charades / "annotations", "train", [*TRAIN, row("BBB04", "c001 -2.00 1.00;c001 -2.00 -1.00")])
    found = read_annotations(charades / "annotations", "charades", "charades", splits=["train"])
    odd, negative = found.rows["train"][2:]
    assert odd["labels"] == ["Holding a cup", "Running", "Laughing at something"]  # the labels stay
    assert odd["actions"] == [
        {"label": "Running", "start_seconds": 5.0, "end_seconds": 10.0},
        {"label": "Holding a cup", "start_seconds": 10.0, "end_seconds": 10.0},  # it begins exactly at the end
    ]
    assert negative["actions"] == [{"label": "Running", "start_seconds": 0.0, "end_seconds": 1.0}]
    assert found.notes == [
        "train, as annotated: 4 rows, 2 subjects, 9 intervals, 6 positives (row and label), 1 rows without actions; "
        "rows per label: fewest 2 (c002 Laughing at something), most 2 (c000 Holding a cup); length in seconds: "
        "median 10.00, longest 10.00",
        "train: 5 intervals reach beyond their clip, and are cut to it",
        "train: 3 intervals are left out of `actions`, but not of `labels`: 1 begin after the end of their clip, 1 "
        "end before they begin",
    ]
    assert found.deviations == []


def test_the_script_is_a_caption_only_under_its_own_protocol(charades):
    made = prepare(charades, protocol="charades+script")
    text = (charades / "out/train.jsonl").read_text() + (charades / "out/validation.jsonl").read_text()
    assert json.loads((charades / "out/protocol.json").read_text())["protocol"] == "charades+script"
    captions = {row["id"]: row["caption"] for split in ("train", "validation") for row in rows_of(charades, split)}
    assert captions["AAA01"] == 'She says "hi", then runs.' and len(captions) == 3
    assert "holds a cup" not in text and '"cup"' not in text  # descriptions and objects
    assert "2 clips, 2 scripts; " in made.to_text()
    prepare(charades)
    rows = [row for split in ("train", "validation", "test") for row in rows_of(charades, split)]
    assert {row["caption"] for row in rows} == {None}  # the column is there for models that also read text


def test_a_misspelled_protocol_is_not_another_one(charades):
    with pytest.raises(ValueError, match=r"'charades\+scripts' has a suffix, .* the protocol is 'charades'"):
        prepare(charades, protocol="charades+scripts")


def test_an_empty_script_is_no_caption(charades):
    write_split(charades / "annotations", "test", [row("CCC01", script=" ")])
    rows = read_annotations(charades / "annotations", "charades", "charades+script", splits=["test"]).rows
    assert "caption" not in rows["test"][0]


def test_manifests_and_report(charades, capsys):
    argv = ["prepare", "charades", "--annotations", str(charades / "annotations")]
    argv += ["--videos", str(charades / "videos"), "--output", str(charades / "out"), "--num_validation_clips", "1"]
    assert main(argv) == 1
    text = capsys.readouterr().out
    assert "train:      2 rows, 2 clips; listed: 3 clips, including 1 clips set aside" in text
    assert "; protocol: 7985 clips\n" in text
    assert "DEVIATES: test: the annotations list 2 clips and 0 scripts, charades has 1863 and 0\n" in text
    assert "DEVIATES: test: the annotations have 3 labels, charades has 157\n" in text
    assert "note: test.jsonl has no row with 1 of the 3 labels: Laughing at something\n" in text
    assert "python train.py --task video_classification --model_name_or_path BASE" in text
    assert f"--labels_file {charades / 'out/labels.txt'} --video_root" in text
    assert (charades / "out/labels.txt").read_text() == "Holding a cup\nRunning\nLaughing at something\n"
    assert rows_of(charades, "test")[1]["video"] == "CCC02.mkv"
    record = json.loads((charades / "out/protocol.json").read_text())
    assert record["labels"] == ["Holding a cup", "Running", "Laughing at something"]
    assert record["validation_split"] == {"seed": 0, "num_clips": 1}
    (charades / "videos/CCC02.mkv").unlink()
    made = prepare(charades)
    assert "test: 1 of 2 clips have no usable file, so 1 rows are left out: CCC02" in made.deviations
    assert "test.jsonl has no row with 2 of the 3 labels: Running, Laughing at something" in made.notes


def test_the_loader_reads_the_manifests(charades, caplog):
    prepare(charades)
    loaded = RowDataset.from_manifest(
        charades / "out/test.jsonl",
        roots={"video": charades / "videos"},
        cache_dir=charades / "cache",
    )
    first = loaded[0]
    assert (first["id"], first["video"], first["start_seconds"]) == ("CCC01", str(charades / "videos/CCC01.mp4"), None)
    assert first["captions"] == [] and first["labels"] == ["Holding a cup"] and first["length_seconds"] == 1.0
    assert first["actions"] == [{"label": "Holding a cup", "start_seconds": 0.0, "end_seconds": 1.0}]
    assert "Did you mean" not in caplog.text  # `captions` instead of `actions`, `end_seconds` of `length_seconds`


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            row("CCC01", "c000 0.00 1.00;c157 0.00 1.00"),
            r"test.csv, line 2: the class 'c157' is not in Charades_v1_cl",
        ),
        (row("CCC01", "c000 0.00"), "test.csv, line 2: an action must be a class, a start and an end, .*'c000 0.00'"),
        (row("CCC01", "c000 0.00 soon"), "line 2: a time of the action 'c000 0.00 soon' must be a number of seconds"),
        (row("CCC01", "c000 0.00 nan"), "line 2: a time of the action 'c000 0.00 nan' must be a number of seconds"),
        (row("CCC01", length=""), "line 2: 'length' must be a number of seconds, got ''"),
        (row("CCC01", length="0"), "line 2: 'length' must be more than 0 seconds, got 0"),
        (row("", length="1"), "line 2: 'id' is empty"),
    ],
)
def test_errors_name_file_and_line(charades, wrong, message):
    write_split(charades / "annotations", "test", [wrong])
    with pytest.raises(ValueError, match=message):
        prepare(charades)
    assert not (charades / "out").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "Charades_v1_classes.txt: 0 classes; at least two are needed"),
        (CLASSES[:1], "Charades_v1_classes.txt: 1 classes; at least two"),
        ([*CLASSES, "c003 Running"], "Charades_v1_classes.txt: the class 'Running' is listed twice"),
        ([*CLASSES, "c001 Walking"], "Charades_v1_classes.txt, line 4: the class 'c001' occurred before"),
        ([*CLASSES, "c003"], "Charades_v1_classes.txt, line 4: must be a class and its name"),
    ],
)
def test_errors_in_the_list_of_classes(charades, lines, message):
    (charades / "annotations/Charades_v1_classes.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    with pytest.raises(ValueError, match=message):
        prepare(charades)


def test_labels_are_in_the_order_of_the_ids(charades):
    (charades / "annotations/Charades_v1_classes.txt").write_text("\n".join(CLASSES[::-1]), encoding="utf-8")
    assert prepare(charades).labels == ["Holding a cup", "Running", "Laughing at something"]


def test_repeated_clips_are_reported(charades):
    write_split(charades / "annotations", "test", [*TEST, row("CCC01", "c002 0.00 1.00")])
    assert "Charades_v1_test.csv: 1 more than once: CCC01" in prepare(charades).deviations
    assert rows_of(charades, "test")[0]["labels"] == ["Holding a cup"]


# The published files.


@pytest.fixture(scope="module")
def published(shared_dir) -> Path:
    folder = shared_dir / "data/annotations/charades"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder


@pytest.fixture(scope="module")
def prepared(published, tmp_path_factory) -> tuple[Path, str]:
    """The published annotations with 24 generated clips, 16 to train and 8 to test, and the printed report."""
    folder = tmp_path_factory.mktemp("charades")
    (folder / "videos").mkdir()
    rows = read_annotations(published, "charades", "charades", splits=["train", "test"]).rows
    tone = np.sin(np.arange(6400) / 6).astype(np.float32)
    for number, row in enumerate([*rows["train"][:16], *rows["test"][:8]]):
        frames = np.full((4, 48, 64, 3), 10 * number, dtype=np.uint8)
        write_clip(folder / f"videos/{row['clip']}.mp4", frames, tone)
    made = prepare_benchmark(
        "charades", published, folder / "out", videos=folder / "videos", num_validation_clips=4000, opens_files=True
    )
    return folder, made.to_text()


def test_the_published_files_have_the_published_counts(prepared):
    _, text = prepared
    for line in (
        "note: train, as annotated: 7985 rows, 214 subjects, 49809 intervals, 48684 positives (row and label), 174 "
        "rows without actions; rows per label: fewest 25 (c101 Throwing a broom somewhere), most 1417 (c097 Walking "
        "through a doorway); length in seconds: median 30.54, longest 194.33",
        "note: train: 14596 intervals reach beyond their clip, and are cut to it",
        "note: train: 7 intervals are left out of `actions`, but not of `labels`: 5 begin after the end of their "
        "clip, 7 end before they begin",
        "note: test, as annotated: 1863 rows, 53 subjects, 16691 intervals, 16285 positives (row and label), 49 rows "
        "without actions; rows per label: fewest 6 (c045 Throwing a box somewhere), most 430 (c097 Walking through a "
        "doorway); length in seconds: median 30.58, longest 72.04",
        "note: test: 5027 intervals reach beyond their clip, and are cut to it",
    ):
        assert f"{line}\n" in text
    assert "listed: 7985 clips, including 4000 clips set aside" in text and "listed: 1863 clips; " in text
    assert "DEVIATES: test: 1855 of 1863 clips have no usable file" in text
    assert "the annotations" not in text  # neither sizes nor the number of labels deviate


def test_manifests_of_the_published_files(prepared, published):
    folder, _ = prepared
    counts = {split: len(rows_of(folder, split)) for split in ("train", "validation", "test")}
    assert counts["test"] == 8 and counts["train"] + counts["validation"] == 16 and counts["train"] > 0
    lines = (published / "Charades_v1_classes.txt").read_text().splitlines()
    assert (folder / "out/labels.txt").read_text().splitlines() == [line.partition(" ")[2] for line in lines]
    assert get_protocol("charades").num_labels == len(lines) == 157


def test_points_of_localisation_can_be_taken_from_the_actions(published):
    """The authors label 25 points of a clip by the file's intervals; those of the manifest give the same labels."""
    rows = read_annotations(published, "charades", "charades", splits=["test"]).rows["test"]
    labels = [
        {
            action["label"]
            for action in row["actions"]
            if action["start_seconds"] <= point / 25 * row["length_seconds"] <= action["end_seconds"]
        }
        for row in rows
        for point in range(25)
    ]
    assert (len(labels), sum(map(len, labels)), labels.count(set())) == (46_575, 175_341, 3518)
