"""Tests of `prepare multimodalhugs` and `export_table`: tables of multimodalhugs as manifests, and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.protocols import prepared_split
from simple_multimodal.prepare.benchmarks import read_annotations
from simple_multimodal.prepare.manifests import prepare_benchmark
from simple_multimodal.prepare.settings import SignalSettings
from simple_multimodal.prepare.signal_tables import write_signal_table
from tests.media.media_files import write_media
from tests.media.pose_files import points_of, write_pose

HEADER = "signal\tsignal_start\tsignal_end\tencoder_prompt\tdecoder_prompt\toutput"
ROOT = "/data/of/others/poses"
FRAMES = SignalSettings(signal_start_end_unit="frames", signal_rate=12.5)


def row(name: str, start: str = "0", end: str = "0", output: str = "ein satz", suffix: str = ".pose") -> str:
    return f"{ROOT}/{name}{suffix}\t{start}\t{end}\t__dgs__\t__de__\t{output}"


TABLES = {
    "train": [row("a/1"), row("2", "1000", "2500"), row("2", "2500", "0"), row("3", "0", "480", 'er sagt "ja"')],
    "validation": [row("4")],
    "test": [row("5", output="in der nacht"), row("6", output="ein satz")],
}
QUOTED = {'er sagt "ja"': '"er sagt ""ja"""'}  # as the csv module of Python writes it


@pytest.fixture
def tables(tmp_path) -> Path:
    """A folder of tables, and a placeholder for each file."""
    (tmp_path / "tables").mkdir()
    for split, rows in TABLES.items():
        write_table(tmp_path, split, rows)
    for rows in TABLES.values():
        for line in rows:
            file = tmp_path / "poses" / line.partition("\t")[0].removeprefix(f"{ROOT}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
    return tmp_path


def write_table(folder: Path, split: str, rows: list[str], *, header: str = HEADER, end: str = "\r\n") -> Path:
    path = folder / f"tables/signs_of_training.{split}.tsv"
    text = "".join(f"{line}{end}" for line in [header, *rows])
    for plain, quoted in QUOTED.items():
        text = text.replace(plain, quoted)
    path.write_bytes(text.encode())
    return path


def prepare(folder: Path, **options):
    settings = {"poses": folder / "poses", "signals": SignalSettings(signal_root=ROOT)} | options
    return prepare_benchmark("multimodalhugs", folder / "tables", folder / "out", **settings)


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"out/{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_row_has_seconds_prompts_and_a_relative_path(tables):
    made = prepare(tables)
    assert (made.protocol, made.deviations) == ("multimodalhugs", [])
    prompts = {"encoder_prompt": "__dgs__", "decoder_prompt": "__de__"}
    assert rows_of(tables, "train") == [
        {"id": "a/1", "pose": "a/1.pose", "caption": "ein satz", **prompts},
        {"id": "2#1", "pose": "2.pose", "start_seconds": 1.0, "end_seconds": 2.5, "caption": "ein satz", **prompts},
        {"id": "2#2", "pose": "2.pose", "start_seconds": 2.5, "caption": "ein satz", **prompts},
        {"id": "3", "pose": "3.pose", "end_seconds": 0.48, "caption": 'er sagt "ja"', **prompts},
    ]
    assert "test: 1 of 2 sentences stand word for word in train; unseen_BLEU leaves them out" in made.notes
    assert prepared_split(tables / "out/test.jsonl", ["5.pose"]) == "test"
    assert prepared_split(tables / "out/train.jsonl", ["a/1.pose"]) == "train"


@pytest.mark.parametrize("end", ["crlf", "lf"])
@pytest.mark.parametrize("unit", [SignalSettings(signal_root=ROOT), FRAMES])
def test_a_table_goes_in_and_out_unchanged(tables, capsys, end, unit):
    signals = SignalSettings(**vars(unit) | {"signal_root": ROOT})
    before = {
        split: write_table(tables, split, rows, end={"crlf": "\r\n", "lf": "\n"}[end])
        for split, rows in TABLES.items()
    }
    made = prepare(tables, signals=signals)
    assert not [note for note in made.notes if "export_table" in note]
    flags = ["--signal_root", ROOT, "--line_end", end]
    if unit is FRAMES:
        flags += ["--signal_start_end_unit", "frames", "--signal_rate", "12.5"]
        assert rows_of(tables, "train")[3]["end_seconds"] == 480 / 12.5
    for split, table in before.items():
        argv = ["export_table", str(tables / f"out/{split}.jsonl"), str(tables / f"{split}.tsv")]
        assert main([*argv, *flags]) == 0
        assert (tables / f"{split}.tsv").read_bytes() == table.read_bytes()
    assert capsys.readouterr().out.splitlines() == [str(tables / f"{split}.tsv") for split in before]


def test_every_millisecond_and_frame_goes_in_and_out_unchanged(tables):
    for signals in (SignalSettings(signal_root=ROOT), SignalSettings(**vars(FRAMES) | {"signal_root": ROOT})):
        rows = [row("2", str(time), str(time + 1 + time % 7)) for time in range(1, 4000)]
        table = write_table(tables, "train", [*rows, row("2", str(2**31), str(2**31 + 1))])
        prepare(tables, signals=signals, splits=["train"])
        assert write_signal_table(tables / "out/train.jsonl", tables / "out/again.tsv", signals=signals) == []
        assert (tables / "out/again.tsv").read_bytes() == table.read_bytes()
        (tables / "out/train.jsonl").unlink()


def test_relative_paths_stay_relative(tables):
    rows = [line.replace(f"{ROOT}/", "") for line in TABLES["train"]]
    table = write_table(tables, "train", rows)
    prepare(tables, splits=["train"], signals=None)
    assert write_signal_table(tables / "out/train.jsonl", tables / "again.tsv") == []
    assert (tables / "again.tsv").read_bytes() == table.read_bytes()


def test_a_table_that_would_be_written_otherwise_is_named(tables):
    write_table(tables, "train", ['x.pose\t0\t0\ta\tb\tsagt "ja" dazu', *TABLES["train"]])
    (tables / "poses/x.pose").write_bytes(b"x")
    made = prepare(tables)
    assert [note for note in made.notes if "export_table" in note] == [
        "train: signs_of_training.train.tsv is not exactly as multimodalhugs writes such a table (order of columns, "
        "quotation marks, ends of lines, paths, or rows that are left out), so that `export_table` would write other "
        "bytes"
    ]
    assert rows_of(tables, "train")[0]["caption"] == 'sagt "ja" dazu'


def test_the_folder_of_the_clips_is_the_default_root(tables):
    rows = [line.replace(ROOT, str(tables / "poses")) for line in TABLES["test"]]
    write_table(tables, "test", rows)
    made = prepare(tables, splits=["test"], signals=None)
    assert made.splits["test"].num_rows == 2


@pytest.mark.parametrize("signal", ["/data/of/others/poses2/5.pose", "/data/of/others/poses/../5.pose", "/5.pose"])
def test_an_absolute_path_outside_the_root_is_refused(tables, signal):
    path = write_table(tables, "test", [f"{signal}\t0\t0\ta\tb\tc"])
    with pytest.raises(InputError) as error:
        prepare(tables)
    assert str(error.value) == (
        f"{path}, line 2: the path {signal!r} is absolute and not below {ROOT}. Give the folder that paths of the "
        "table begin with as `signal_root`."
    )
    assert not (tables / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("5", "1.5"), "signal_start must be a whole number of milliseconds, 0 or more, got '1.5'"),
        (row("5", "0", "-1"), "signal_end must be a whole number of milliseconds, 0 or more, got '-1'"),
        (row("5", "10", "10"), "signal_end is 10, which is not after signal_start, 10"),
        (row("5", "10", "9"), "signal_end is 9, which is not after signal_start, 10"),
        (row("5", suffix=".txt"), "'5.txt' is neither a video nor a .pose or .npy file"),
        ("../5.pose\t0\t0\ta\tb\tc", "leaves its folder by '..'"),
        (row("5") + "\tmore", "7 cells, but the header has 6"),
        (row("5").rpartition("\t")[0], "5 cells, but the header has 6"),
    ],
)
def test_an_invalid_row_is_refused_with_the_place(tables, line, message):
    path = write_table(tables, "test", [row("6"), line])
    with pytest.raises(InputError) as error:
        prepare(tables)
    assert str(error.value).startswith(f"{path}, line 3: ") and message in str(error.value)
    assert "\n" not in str(error.value) and not (tables / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER.replace("output", "target") + "\n" + row("5"), "the columns must be signal, signal_start, .*target"),
        (row("5"), "the columns must be signal, "),
        ("", "they are missing"),
        (f"{HEADER}\n{row('5', output='schön')}".encode("latin-1"), "line 2: is not UTF-8 text: .* 0xf6. Save the"),
        (HEADER.replace("\t", ","), "the separator seems to be ','"),
    ],
)
def test_an_invalid_table_is_refused(tables, content, message):
    path = tables / "tables/signs_of_training.test.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        prepare(tables)


def test_columns_may_have_another_order(tables):
    swapped = "\t".join(reversed(HEADER.split("\t")))
    write_table(tables, "test", ["\t".join(reversed(line.split("\t"))) for line in TABLES["test"]], header=swapped)
    made = prepare(tables)
    assert [line["caption"] for line in rows_of(tables, "test")] == ["in der nacht", "ein satz"]
    assert any("order of columns" in note for note in made.notes)


def test_rows_that_would_be_dropped_without_a_word_are_named(tables):
    empty = "\t".join([f"{ROOT}/5.pose", "", "", "", "__de__", ""])
    write_table(tables, "train", [*TABLES["train"], row("7"), row("3", "500", output=" "), "\t0\t0\ta\tb\tc"])
    write_table(tables, "test", [*TABLES["test"], empty])
    made = prepare(tables)
    assert made.deviations == [
        "train: 1 rows have no signal and are left out: line 8",
        "train: 1 rows have no output and are left out: line 7",
        "train: 1 of 4 clips have no usable file, so 1 rows are left out: 7",
    ]
    kept = [note for note in made.notes if "multimodalhugs leaves them out, here they are kept" in note]
    assert [note.partition(";")[0] for note in kept] == [
        f"test: 1 rows have an empty {column}" for column in ("signal_start", "signal_end", "encoder_prompt", "output")
    ]
    assert len(rows_of(tables, "train")) == 4
    assert rows_of(tables, "test")[2] == {"id": "5#2", "pose": "5.pose", "decoder_prompt": "__de__"}
    assert (made.splits["test"].num_rows, made.splits["test"].num_texts) == (3, 2)


def test_a_table_of_the_wrong_unit_is_noticed(tables):
    write_table(tables, "test", [row("5", "1", "4"), row("6", "0", "3")])
    notes = [note for note in prepare(tables).notes if "the longest segment" in note]
    assert notes == [
        "test: the longest segment has 0.003 seconds; are times in milliseconds? Set signal_start_end_unit, or "
        "multiply times in seconds by 1000"
    ]


def write_poses(folder: Path, num_frames: int) -> None:
    data, confidence = points_of()
    repeats = -(-num_frames // len(data))
    for file in (folder / "poses").rglob("*.pose"):
        points = [np.concatenate([own] * repeats)[:num_frames] for own in (data, confidence)]
        write_pose(file, *points)


def test_segments_and_lengths_are_compared_with_opened_files(tables):
    write_poses(tables, 100)  # 4 seconds
    write_table(tables, "test", [row("5", "3999"), row("6", "4000"), row("5", "1000", "2000000")])
    made = prepare(tables, opens_files=True)
    late = "test: 1 segments start after the end of their clip, and cannot be read: 6"
    assert made.deviations == [late]  # one that ends after the end is cut there
    write_table(tables, "test", [row("5", "1000000", "2001000")])
    with pytest.raises(InputError, match=r"5: the segment ends at 2001 s, but its clip at 4\.000 s. Times seem to be"):
        prepare(tables, opens_files=True)
    write_poses(tables, 301)
    write_table(tables, "test", TABLES["test"])
    made = prepare(tables, opens_files=True)
    kept = "rows have more than 300 frames; multimodalhugs leaves them out by default, here they are kept"
    assert [note for note in made.notes if "300" in note] == [f"train: 1 {kept}: a/1", f"validation: 1 {kept}: 4"]
    (tables / "poses/4.pose").write_bytes(b"x")
    assert prepare(tables, opens_files=True).splits["validation"].missing == ["4"]


def test_videos_are_a_column_of_their_own(tables):
    (tables / "videos").mkdir()
    for name in "56":
        write_media(tables / f"videos/{name}.mp4", num_frames=8)
    write_table(tables, "test", [row("5", suffix=".mp4"), row("6", "40", "120", suffix=".mp4")])
    options = {"poses": None, "videos": tables / "videos", "splits": ["test"]}
    made = prepare(tables, opens_files=True, **options)
    assert made.deviations == [] and [line["video"] for line in rows_of(tables, "test")] == ["5.mp4", "6.mp4"]
    rows = RowDataset.from_manifest(
        tables / "out/test.jsonl", roots=tables / "videos", modalities=["video"], cache_dir=tables / "cache"
    )
    assert (rows[1]["start_seconds"], rows[1]["end_seconds"], rows[1]["encoder_prompt"]) == (0.04, 0.12, "__dgs__")
    with pytest.raises(InputError, match=r"'5.mp4', which the annotations name, is not a file of `poses`. Give the"):
        prepare(tables, splits=["test"])


def test_only_the_named_file_is_used(tables):
    (tables / "poses/5.npy").write_bytes(b"x")  # precedes 5.pose
    assert prepare(tables).deviations == [] and rows_of(tables, "test")[0]["pose"] == "5.pose"
    (tables / "poses/5.pose").unlink()
    assert prepare(tables).splits["test"].missing == ["5"]
    write_table(tables, "test", [row("5"), row("5", suffix=".npy")])
    with pytest.raises(InputError, match="'5.pose' and '5.npy' have the same name; rename one of the files"):
        prepare(tables)


def test_tables_are_told_apart_by_their_names(tables):
    (tables / "tables/signs_of_training.validation.tsv").rename(tables / "tables/dev.tsv")
    found = read_annotations(
        tables / "tables",
        "multimodalhugs",
        "multimodalhugs",
        splits=["validation", "test"],
        signals=SignalSettings(signal_root=ROOT),
    )
    assert {split: len(rows) for split, rows in found.rows.items()} == {"validation": 1, "test": 2}
    (tables / "tables/val.tsv").write_text(HEADER)
    with pytest.raises(InputError, match=r"dev.tsv and .*val.tsv could both be the validation table"):
        prepare(tables)


def test_validation_clips_are_set_aside_without_a_table(tables):
    (tables / "tables/signs_of_training.validation.tsv").unlink()
    (tables / "tables/signs_of_training.test.tsv").unlink()
    made = prepare(tables)
    assert made.validation_split == {"seed": 0, "num_clips": 1} and "no test clips are listed" in made.notes
    assert made.splits["train"].num_rows + made.splits["validation"].num_rows == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"signal_start_end_unit": "frames"}, "so `signal_rate` must be the frames per second of the clips, above 0"),
        ({"signal_start_end_unit": "frames", "signal_rate": 0.0}, "above 0, got 0.0"),
        ({"signal_start_end_unit": "frames", "signal_rate": float("nan")}, "above 0, got nan"),
        ({"signal_rate": 25.0}, "`signal_rate` has no effect on milliseconds"),
    ],
)
def test_settings_must_fit_together(given, message):
    with pytest.raises(InputError, match=message):
        SignalSettings(**given)


def test_settings_of_tables_are_refused_for_other_data(tables):
    with pytest.raises(InputError, match="signal_root, signal_start_end_unit and signal_rate have no effect on msvd"):
        prepare_benchmark("msvd", tables / "tables", tables / "out", signals=FRAMES)


# Other manifests.


def export(folder: Path, rows: list[dict], **options) -> tuple[list[str], list[list[str]]]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    notes = write_signal_table(folder / "rows.jsonl", folder / "rows.tsv", **options)
    lines = (folder / "rows.tsv").read_bytes().decode().split("\r\n")
    assert lines[0] == HEADER and lines[-1] == ""
    return notes, [line.split("\t") for line in lines[1:-1]]


def test_any_manifest_can_be_written_as_a_table(tmp_path):
    rows = [
        {"video": "a.mp4", "captions": ["eins"], "start_seconds": 1.2345, "encoder_prompt": "x"},
        {"video": "./Re:Zero.mp4", "caption": "zwei\ndrei\tvier", "end_seconds": 2},
        {"video": "/data/c.mp4", "caption": ""},
    ]
    notes, table = export(tmp_path, rows, decoder_prompt="__de__", signals=SignalSettings(signal_root="/videos/"))
    assert table == [
        ["/videos/a.mp4", "1234", "0", "x", "__de__", "eins"],
        ["/videos/Re:Zero.mp4", "0", "2000", "", "__de__", "zwei drei vier"],
        ["/data/c.mp4", "0", "0", "", "__de__", ""],
    ]
    assert notes == [
        "1 rows: times are rounded to milliseconds",
        "1 rows: line breaks and tabs become spaces",
        "2 rows: an empty cell, for which multimodalhugs leaves the row out",
    ]


def test_what_a_table_cannot_hold_is_refused(tmp_path):
    both = [{"video": "a.mp4", "pose": "a.pose", "caption": "eins"}]
    with pytest.raises(InputError, match="has both `pose` and `video`; choose one as `column`"):
        export(tmp_path, both)
    assert export(tmp_path, both, column="pose")[1][0][0] == "a.pose"
    with pytest.raises(InputError, match="has no files in `pose` or `video`, which a table"):
        export(tmp_path, [{"caption": "eins"}])
    with pytest.raises(
        InputError, match="line 2: the column 'video' is empty; a table of multimodalhugs needs a file"
    ):
        export(tmp_path, [{"video": "a.mp4"}, {"caption": "eins"}])
    with pytest.raises(InputError, match="line 1: has several captions, but a row of a table"):
        export(tmp_path, [{"video": "a.mp4", "captions": ["eins", "zwei"]}])


def test_the_command_exits_with_1_if_something_is_lost(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("video,caption\na.mp4,eins\n")
    argv = ["export_table", str(tmp_path / "rows.csv"), str(tmp_path / "rows.tsv")]
    assert main(argv) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note: 1 rows: an empty cell, for which multimodalhugs leaves the row out"
    ]
    assert main([*argv, "--encoder_prompt", "a", "--decoder_prompt", "b"]) == 0
    assert main([*argv, "--signal_rate", "25"]) == 2
    assert "--signal_rate has no effect on milliseconds" in capsys.readouterr().err


def test_the_published_examples_go_in_and_out_unchanged(shared_dir, tmp_path):
    folder = shared_dir / "data/annotations/phoenix2014t/multimodalhugs"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    (tmp_path / "poses").mkdir()
    root = ""
    for table in folder.glob("*.tsv"):
        for line in table.read_text(encoding="utf-8").splitlines()[1:]:
            root, _, name = line.partition("\t")[0].rpartition("/")
            (tmp_path / "poses" / name).write_bytes(b"x")
    signals = SignalSettings(signal_root=root)
    made = prepare_benchmark("multimodalhugs", folder, tmp_path / "out", poses=tmp_path / "poses", signals=signals)
    assert made.deviations == made.notes == []
    for split in ("train", "validation", "test"):
        assert write_signal_table(tmp_path / f"out/{split}.jsonl", tmp_path / "again.tsv", signals=signals) == []
        assert (tmp_path / "again.tsv").read_bytes() == (folder / f"rwth_phoenix2014_t.{split}.tsv").read_bytes()
