"""Tests of the benchmarks' annotation formats, and of the manifests and reports of `prepare`.

The small annotation files below have the published formats. The published files themselves are tested if they are
available.
"""

import hashlib
import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from simple_multimodal import cli
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.protocols import BENCHMARKS, PROTOCOLS, SPLITS, SplitSize, get_protocol
from simple_multimodal.prepare.benchmarks import SOURCES, alpro_folder, clip_name, read_annotations
from simple_multimodal.prepare.manifests import prepare_benchmark, set_aside

REPOSITORY = Path(__file__).resolve().parents[2]

datasets.disable_progress_bars()


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def videodatainfo(splits: dict[int, str]) -> dict:
    """Return annotations in the challenge's format, with two captions per clip."""
    return {
        "info": {"year": "2016"},
        "videos": [
            {"video_id": f"video{i}", "split": split, "category": 9, "url": "", "start time": 1.5, "end time": 9.0}
            for i, split in splits.items()
        ],
        "sentences": [
            {"caption": f"caption {j} of {i}", "video_id": f"video{i}", "sen_id": 2 * i + j}
            for j in range(2)
            for i in splits
        ],
    }


def write_msrvtt(folder: Path) -> None:
    """Write eight clips: 0 to 3 for training, 4 for validation, 5 to 7 for testing; 1k-A tests on 6 and 7."""
    train = dict.fromkeys(range(4), "train") | {4: "validate"}
    write(folder / "train_val_annotation/train_val_videodatainfo.json", videodatainfo(train))
    write(folder / "test_videodatainfo.json", videodatainfo(dict.fromkeys((5, 6, 7), "test")))
    rows = ["ret0,msr7,video7,one for 7", 'ret1,msr6,video6,"one, for 6 "']
    write(folder / "lists/MSRVTT_JSFUSION_test.csv", "\n".join(["key,vid_key,video_id,sentence", *rows, ""]))
    for name, number in (("9k", 6), ("7k", 5)):
        names = [f"video{i}" for i in range(number)]
        write(folder / f"lists/MSRVTT_train.{name}.csv", "\n".join(["video_id", *names, ""]))


def write_didemo(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        moments = [
            (f"1@N00_{number}_a.mov", "first."),
            (f"2@N00_{number}_b.", "alone"),
            (f"1@N00_{number}_a.mov.mp4", " second "),
        ]
        rows = [
            {"video": video, "description": text, "annotation_id": 10 * number + i, "times": [[0, 0]]}
            for i, (video, text) in enumerate(moments)
        ]
        write(folder / f"data/{split}_data.json", rows)


def write_msvd(folder: Path) -> None:
    write(folder / "captions_msvd.json", {f"-{name}_1_9": ["a cat", "a cat", f"{name} "] for name in "abc"})
    for name, split in zip("abc", ("train", "val", "test"), strict=True):
        write(folder / f"{split}_list.txt", f"-{name}_1_9\n")


def write_qa(folder: Path) -> None:
    """Write two questions per split, about clips 1, 2 and 3."""
    for number, split in enumerate(("train", "val", "test")):
        rows = [
            {"answer": "couch", "id": 2 * number, "question": "What is it?", "video_id": number + 1},
            {"answer": "two", "id": 2 * number + 1, "question": "how many are there?", "video_id": number + 1},
        ]
        write(folder / f"{split}_qa.json", rows)
    write(folder / "youtube_mapping.txt", "".join(f"-{name}_1_9 vid{i}\n" for i, name in enumerate("abc", start=1)))


WRITERS = {
    "msrvtt": write_msrvtt,
    "didemo": write_didemo,
    "msvd": write_msvd,
    "msrvtt_qa": write_qa,
    "msvd_qa": write_qa,
}


def write_charades(folder: Path) -> None:
    for split, clips in (("train", ("A1", "A2")), ("test", ("B1",))):
        rows = [f'{clip},S{clip},"One, two.",c001 0.50 1.00,2.00' for clip in clips]
        write(folder / f"Charades_v1_{split}.csv", "\n".join(["id,subject,script,actions,length", *rows, ""]))
    write(folder / "Charades_v1_classes.txt", "c000 Running\nc001 Jumping\n")


def write_phoenix(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        lines = [f"{split}{i}|{split}{i}/1/*.png|-1|-1|Signer01|REGEN|regen {i} {split}\n" for i in range(2)]
        write(folder / f"PHOENIX-2014-T.{split}.corpus.csv", "".join(lines))


PROTOCOLS_OF = {benchmark: get_protocol(benchmark=benchmark).name for benchmark in WRITERS}
CLIPS = {
    "msrvtt": [f"video{i}" for i in range(8)],
    "didemo": [f"{i}@N00_{number}_{name}" for number in range(3) for i, name in ((1, "a"), (2, "b"))],
    "msvd": ["-a_1_9", "-b_1_9", "-c_1_9"],
    "msrvtt_qa": ["video1", "video2", "video3"],
    "msvd_qa": ["-a_1_9", "-b_1_9", "-c_1_9"],
}


@pytest.fixture
def make(tmp_path):
    """Write a benchmark's annotations and clips, and prepare it."""

    def make_benchmark(benchmark: str, **options):
        if not (tmp_path / "annotations").exists():
            WRITERS[benchmark](tmp_path / "annotations")
            for clip in CLIPS[benchmark]:
                write(tmp_path / "videos" / f"{clip}.mp4", "x")
        options = {"videos": tmp_path / "videos"} | options
        return prepare_benchmark(benchmark, tmp_path / "annotations", tmp_path / "out", **options)

    return make_benchmark


@pytest.fixture
def small_msvd(monkeypatch):
    """Change the protocol to fit the small files, so that nothing deviates from it."""
    sizes = dict.fromkeys(SPLITS, SplitSize(1, 3))
    monkeypatch.setitem(PROTOCOLS, "msvd", replace(PROTOCOLS["msvd"], sizes=sizes))


def manifest(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / f"{split}.jsonl").read_text().splitlines()]


def captions(rows: list[dict]) -> dict[str, list[str]]:
    return {row["clip"]: row["captions"] for row in rows}


# The formats.


def test_msrvtt_1ka_is_read_from_its_lists(tmp_path):
    write_msrvtt(tmp_path)
    found = read_annotations(tmp_path, "msrvtt", "msrvtt-1ka-9k", splits=SPLITS)
    assert captions(found.rows["test"]) == {"video7": ["one for 7"], "video6": ["one, for 6"]}
    assert list(captions(found.rows["train"])) == [f"video{i}" for i in range(6)]
    assert captions(found.rows["train"])["video5"] == ["caption 0 of 5", "caption 1 of 5"]
    assert "validation" not in found.rows
    assert {path.name for path in found.sources} == {
        "MSRVTT_JSFUSION_test.csv",
        "MSRVTT_train.9k.csv",
        "train_val_videodatainfo.json",
        "test_videodatainfo.json",
    }
    (tmp_path / "test_videodatainfo.json").unlink()  # the 7k list has none of its clips
    rows = read_annotations(tmp_path, "msrvtt", "msrvtt-1ka-7k", splits=SPLITS).rows
    assert list(captions(rows["train"])) == [f"video{i}" for i in range(5)]
    with pytest.raises(ValueError, match="test_videodatainfo.json is missing"):
        read_annotations(tmp_path, "msrvtt", "msrvtt-1ka-9k", splits=SPLITS)


def test_msrvtt_full_takes_its_splits_from_the_files(tmp_path):
    write_msrvtt(tmp_path / "a")
    rows = read_annotations(tmp_path / "a", "msrvtt", "msrvtt-full", splits=SPLITS).rows
    assert {split: len(own) for split, own in rows.items()} == {"train": 4, "validation": 1, "test": 3}
    assert rows["validation"] == [{"id": "video4", "clip": "video4", "captions": ["caption 0 of 4", "caption 1 of 4"]}]
    splits = dict.fromkeys(range(4), "train") | {4: "validate"} | dict.fromkeys((5, 6, 7), "test")
    write(tmp_path / "b/MSRVTT_data.json", videodatainfo(splits))
    assert read_annotations(tmp_path / "b", "msrvtt", "msrvtt-full", splits=SPLITS).rows == rows
    (tmp_path / "a/test_videodatainfo.json").unlink()
    few = read_annotations(tmp_path / "a", "msrvtt", "msrvtt-full", splits=["train", "validation"])
    assert few.rows["train"] == rows["train"]


def test_didemo_makes_a_paragraph_per_video(tmp_path):
    write_didemo(tmp_path)
    rows = read_annotations(tmp_path, "didemo", "didemo-paragraph", splits=["test"]).rows
    assert captions(rows["test"]) == {"1@N00_2_a": ["first. second"], "2@N00_2_b": ["alone"]}
    assert list(rows) == ["test"]


def test_msvd_counts_every_sentence(tmp_path):
    write_msvd(tmp_path)
    path = tmp_path / "captions_msvd.json"
    write(path, json.loads(path.read_text()) | {"-b_1_9": ["a cat", " ", "a cat", "b "]})
    write_alpro(tmp_path / "txt", "msvd")  # ignored, because the original files exist
    rows = read_annotations(tmp_path, "msvd", "msvd", splits=SPLITS).rows
    assert captions(rows["validation"]) == {"-b_1_9": ["a cat", "a cat", "b"]}


@pytest.mark.parametrize(
    ("benchmark", "like", "full"), [("msrvtt_caption", "msrvtt", "msrvtt-full"), ("msvd_caption", "msvd", "msvd")]
)
def test_captions_to_write_are_those_of_the_official_splits_with_all_references(tmp_path, benchmark, like, full):
    WRITERS[like](tmp_path)
    protocol = get_protocol(benchmark=benchmark)
    assert protocol.task == "captioning" and protocol.sizes == PROTOCOLS[full].sizes
    found = read_annotations(tmp_path, benchmark, protocol.name, splits=SPLITS)
    assert found.rows == read_annotations(tmp_path, like, full, splits=SPLITS).rows
    assert all(len(row["captions"]) > 1 for row in found.rows["test"])


@pytest.mark.parametrize(("benchmark", "clip"), [("msrvtt_qa", "video3"), ("msvd_qa", "-c_1_9")])
def test_questions_are_read(tmp_path, benchmark, clip):
    write_qa(tmp_path)
    rows = read_annotations(tmp_path, benchmark, benchmark.replace("_", "-"), splits=SPLITS).rows
    assert rows["test"] == [
        {"id": "4", "clip": clip, "question": "What is it?", "answer": "couch"}
        | {"answer_type": "what", "question_id": 4},
        {"id": "5", "clip": clip, "question": "how many are there?", "answer": "two"}
        | {"answer_type": "how", "question_id": 5},
    ]
    assert [len(rows[split]) for split in SPLITS] == [2, 2, 2]


def write_alpro(folder: Path, benchmark: str) -> None:
    for number, split in enumerate(("train", "val", "test")):
        if benchmark.endswith("_qa"):
            rows = [
                {"question": "what is it?", "answer": "cat", "video_id": f"video{number}", "answer_type": "what"},
                {"question": "look who is it?", "answer": "man", "video_id": f"video{number}", "answer_type": "who"},
            ]
        else:
            rows = [{"caption": f"{text} {number}", "clip_name": f"video{number}", "sen_id": 0} for text in "ab"]
            rows[0]["retrieval_key"] = "ret0"
        write_jsonl(folder / f"{split}.jsonl", rows)


@pytest.mark.parametrize("benchmark", ["msrvtt", "didemo", "msvd"])
def test_captions_in_alpros_format_are_read(tmp_path, benchmark):
    write_alpro(tmp_path, benchmark)
    rows = read_annotations(tmp_path, benchmark, PROTOCOLS_OF[benchmark], splits=SPLITS).rows
    assert rows["test"] == [{"id": "video2", "clip": "video2", "captions": ["a 2", "b 2"]}]
    assert list(rows) == list(SPLITS)
    (tmp_path / "val.jsonl").unlink()
    assert list(read_annotations(tmp_path, benchmark, PROTOCOLS_OF[benchmark], splits=SPLITS).rows) == [
        "train",
        "test",
    ]


@pytest.mark.parametrize("benchmark", ["msrvtt_qa", "msvd_qa"])
def test_questions_in_alpros_format_are_numbered_by_row(tmp_path, benchmark):
    write_alpro(tmp_path, benchmark)
    rows = read_annotations(tmp_path, benchmark, PROTOCOLS_OF[benchmark], splits=["test"]).rows
    assert [(row["id"], row["question_id"], row["answer_type"]) for row in rows["test"]] == [
        ("0", 0, "what"),
        ("1", 1, "who"),
    ]


@pytest.mark.parametrize("start", ["data/msrvtt_ret/txt", "data/msrvtt_ret", "data", "."])
def test_alpros_layout_is_found_from_above_with_its_videos(tmp_path, start):
    write_alpro(tmp_path / "data/msrvtt_ret/txt", "msrvtt")
    write_alpro(tmp_path / "data/msrvtt_qa/txt", "msrvtt_qa")
    write(tmp_path / "data/msrvtt_ret/videos/video2.mp4", "x")
    assert alpro_folder(tmp_path / start, "msrvtt") == tmp_path / "data/msrvtt_ret/txt"
    assert alpro_folder(tmp_path, "didemo") is None
    made = prepare_benchmark("msrvtt", tmp_path / start, tmp_path / "out", splits=["test"])
    assert made.video_root == tmp_path / "data/msrvtt_ret/videos" and made.splits["test"].clips == ["video2"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("video1.mp4", "video1"),
        ("TestVideo/video1.mp4", "video1"),
        ("1@N00_2_3.mov.mp4", "1@N00_2_3"),
        ("1@N00_2_3.", "1@N00_2_3"),
        ("-4wsuPCjDBc_5_15.avi", "-4wsuPCjDBc_5_15"),
    ],
)
def test_clip_names_are_cut_at_the_first_dot(file, name):
    assert clip_name(file) == name


# Errors name the file and its line or entry.


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("msrvtt", "lists/MSRVTT_JSFUSION_test.csv"),
        ("msrvtt", "lists/MSRVTT_train.9k.csv"),
        ("msrvtt", "train_val_annotation/train_val_videodatainfo.json"),
        ("msrvtt", "test_videodatainfo.json"),
        ("didemo", "data/train_data.json"),
        ("msvd", "test_list.txt"),
        ("msrvtt_qa", "val_qa.json"),
        ("msvd_qa", "youtube_mapping.txt"),
    ],
)
def test_the_error_for_a_missing_file_names_the_file_and_its_source(make, tmp_path, benchmark, file):
    WRITERS[benchmark](tmp_path / "annotations")
    (tmp_path / "annotations" / file).unlink()
    with pytest.raises(ValueError) as error:
        make(benchmark)
    assert f"{Path(file).name} is missing" in str(error.value) and SOURCES[benchmark] in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_error_for_an_empty_or_missing_folder_names_the_source(tmp_path, benchmark):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(ValueError, match="is missing|no such folder|no lists of|no videos in") as error:
            read_annotations(tmp_path / folder, benchmark, get_protocol(benchmark=benchmark).name, splits=SPLITS)
        assert SOURCES[benchmark] in str(error.value)


def test_the_error_names_a_missing_file_of_alpro(tmp_path):
    write_alpro(tmp_path, "msrvtt")
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="test.jsonl is missing. It is part of ALPRO's data.zip"):
        read_annotations(tmp_path, "msrvtt", "msrvtt-1ka-7k", splits=SPLITS)


@pytest.mark.parametrize(
    ("benchmark", "file", "content", "message"),
    [
        (
            "msrvtt",
            "test.jsonl",
            '{"caption": "a", "clip_name": "b"}\n{"caption":',
            "test.jsonl, line 2: is not a JSON",
        ),
        (
            "msrvtt",
            "test.jsonl",
            '{"caption": "a"}',
            "test.jsonl, line 1: no column 'clip_name'; the columns are caption",
        ),
        ("msrvtt", "test.jsonl", '\n["a"]', "test.jsonl, line 2: must be a JSON object"),
        ("msvd_qa", "test.jsonl", '{"question": "q", "video_id": 3}', "line 1: 'video_id' must be a string, got 3"),
        (
            "msrvtt",
            "MSRVTT_JSFUSION_test.csv",
            "key,video_id\nret0,video7\n",
            "line 2: no column 'sentence'; .* key, video_id",
        ),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nvideo7,a,b\n", "line 2: 3 cells"),
        ("didemo", "test_data.json", "[{]", "test_data.json: is not JSON: .*line 1 column 3"),
        ("didemo", "test_data.json", '{"a": 1}', "test_data.json: must hold a list of objects"),
        ("didemo", "test_data.json", '[{"annotation_id": true}]', "entry 0: 'annotation_id' must be a whole number"),
        ("msvd", "captions_msvd.json", '{"a": "b"}', "captions_msvd.json: must hold an object with a list"),
        ("msvd", "captions_msvd.json", '{"x": ["b"]}', "test_list.txt: 1 clips have no caption: -c_1_9"),
        ("msvd_qa", "test_qa.json", '[{"id": 1, "video_id": "vid1"}]', "entry 0: 'video_id' must be a whole number"),
        (
            "msvd_qa",
            "test_qa.json",
            '[{"id": 1, "video_id": 9, "question": "q", "answer": "a"}]',
            "test_qa.json, entry 0: .*youtube_mapping.txt has no clip vid9",
        ),
        ("msvd_qa", "youtube_mapping.txt", "a vid1\n\nb\n", "youtube_mapping.txt, line 3: must be a clip's name and"),
        (
            "msrvtt_qa",
            "test_qa.json",
            '[{"id": 1, "video_id": 9, "question": 5}]',
            "entry 0: 'question' must be a string",
        ),
    ],
)
def test_the_error_for_an_invalid_file_names_the_place(tmp_path, benchmark, file, content, message):
    if not file.endswith(".jsonl"):
        WRITERS[benchmark](tmp_path)
    path = next(tmp_path.rglob(file), tmp_path / file)
    write(path, content)
    with pytest.raises(ValueError, match=message):
        read_annotations(tmp_path, benchmark, PROTOCOLS_OF[benchmark], splits=["test"])


def test_the_error_names_a_file_that_is_not_utf8(tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "test_list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="test_list.txt: is not UTF-8 text"):
        read_annotations(tmp_path, "msvd", "msvd", splits=["test"])


def test_a_file_that_exists_twice_is_an_error(tmp_path):
    write_msvd(tmp_path / "a")
    write_msvd(tmp_path / "b")
    with pytest.raises(ValueError, match="captions_msvd.json exists twice, as .*a/captions.* and .*b/captions"):
        read_annotations(tmp_path, "msvd", "msvd", splits=["test"])


@pytest.mark.parametrize("benchmark", ["msrvtt", "didemo", "msvd", "msrvtt_qa"])
def test_duplicates_are_reported_and_the_first_is_kept(make, tmp_path, benchmark):
    folder = tmp_path / "annotations"
    WRITERS[benchmark](folder)
    for clip in CLIPS[benchmark]:
        write(tmp_path / "videos" / f"{clip}.mp4", "x")
    before = read_annotations(folder, benchmark, PROTOCOLS_OF[benchmark], splits=["test"]).rows["test"]
    if benchmark == "msrvtt":
        path, key = folder / "lists/MSRVTT_JSFUSION_test.csv", "video7"
        path.write_text(path.read_text() + "ret2,msr7,video7,another for 7\n")
    elif benchmark == "msvd":
        path, key = folder / "test_list.txt", "-c_1_9"
        path.write_text(path.read_text() * 2)
    else:
        path = next(folder.rglob("test_*.json"))
        rows = json.loads(path.read_text())
        key = str(rows[0]["annotation_id" if benchmark == "didemo" else "id"])
        write(path, [*rows, rows[0] | {"description": "again", "question": "who again?"}])
    made = make(benchmark, splits=["test"])
    assert f"{path.name}: 1 more than once: {key}" in made.deviations
    assert len(manifest(tmp_path, "test")) == len(before)
    assert read_annotations(folder, benchmark, PROTOCOLS_OF[benchmark], splits=["test"]).rows["test"] == before


# The manifests and the report.


def test_manifests_that_match_the_protocol_have_no_deviations(make, tmp_path, small_msvd, capsys):
    made = make("msvd")
    assert made.deviations == [] and made.notes == [] and made.validation_split is None
    assert manifest(tmp_path, "test") == [{"id": "-c_1_9", "video": "-c_1_9.mp4", "captions": ["a cat", "a cat", "c"]}]
    record = json.loads((tmp_path / "out/protocol.json").read_text())
    assert record["protocol"] == "msvd" and record["deviations"] == []
    assert record["splits"]["train"] == {
        "num_rows": 1,
        "num_clips": 1,
        "clips": ["-a_1_9"],
        "num_texts": 3,
        "listed": {"clips": 1, "texts": 3},
        "missing": [],
        "num_rows_missing": 0,
        "sha256": hashlib.sha256((tmp_path / "out/train.jsonl").read_bytes()).hexdigest(),
    }
    captions_hash = hashlib.sha256((tmp_path / "annotations/captions_msvd.json").read_bytes()).hexdigest()
    assert record["sources"]["captions_msvd.json"] == captions_hash and len(record["sources"]) == 4
    assert str(tmp_path) not in json.dumps(record)

    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    argv = ["prepare", "msvd", "--annotations", str(tmp_path / "annotations"), "--videos", str(tmp_path / "videos")]
    assert cli.main([*argv, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"msvd: manifests are in {tmp_path / 'out'}" in printed
    assert f"simple-multimodal infer MODEL {tmp_path / 'out'} --video_root {tmp_path / 'videos'} " in printed
    assert f" --model_name_or_path BASE --train_file {tmp_path / 'out/train.jsonl'} --validation_file " in printed
    assert "1 rows, 1 clips, 3 captions; listed: 1 clips, 3 captions; protocol: 1 clips, 3 captions" in printed
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert cli.main([*argv, "--output", str(tmp_path / "out"), "--follow_links", "--index_dir", "an index"]) == 0
    assert (
        f" --video_root {tmp_path / 'videos'} --follow_links --index_dir 'an index' --output_dir RESULTS\n"
        in capsys.readouterr().out
    )
    (tmp_path / "videos/-c_1_9.mp4").unlink()
    assert cli.main([*argv, "--output", str(tmp_path / "out"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["flags"] == f"--video_root {tmp_path / 'videos'}"
    assert printed["splits"]["test"]["missing"] == ["-c_1_9"] and SOURCES["msvd"] in printed["notes"][0]
    assert cli.main([*argv, "--output", str(tmp_path / "new"), "--require_all_clips"]) == 2
    assert "1 clips have no usable file: -c_1_9" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("benchmark", WRITERS)
def test_wrong_counts_are_reported(make, benchmark):
    made = make(benchmark, num_validation_clips=1 if benchmark == "msrvtt" else None)
    expected = PROTOCOLS[made.protocol].sizes["test"]
    assert any(
        line.startswith("test: the annotations list ") and f"has {expected.clips} and {expected.texts}" in line
        for line in made.deviations
    )
    assert f"protocol: {expected.clips} clips, {expected.texts} " in made.to_text()
    assert ("questions by type are" in made.to_text()) == benchmark.endswith("_qa")


FURTHER_WRITERS = WRITERS | {
    "charades": write_charades,
    "msvd_caption": write_msvd,
    "phoenix2014t": write_phoenix,
}


def documented_commands() -> list[list[str]]:
    texts = [(REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "docs/benchmarks.md")]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("simple-multimodal prepare")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("argv", documented_commands(), ids=" ".join)
def test_the_documented_commands_run(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    benchmark, folder = argv[1], Path(argv[argv.index("--annotations") + 1])
    if "--videos" in argv:
        FURTHER_WRITERS[benchmark](folder)
        videos = Path(argv[argv.index("--videos") + 1])
    elif "--poses" in argv:
        FURTHER_WRITERS[benchmark](folder)
        write(Path(argv[argv.index("--poses") + 1]) / "test0.pose", "x")
        videos = tmp_path / "unused"
    else:
        write_alpro(folder / benchmark / "txt", benchmark)
        videos = folder / benchmark / "videos"
    for clip in (*CLIPS.get(benchmark.removesuffix("_caption"), ["A1", "A2", "B1"]), "video2"):
        write(videos / f"{clip}.mp4", "x")
    assert cli.main(argv) == 1  # such small files deviate from the protocol
    assert "DEVIATES: test: the annotations list" in capsys.readouterr().out
    assert Path(argv[argv.index("--output") + 1], "test.jsonl").is_file()


def test_the_documented_annotation_files_are_read(tmp_path):
    page = (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")
    block = page.partition("reads these examples -->\n```text\n")[2].partition("```")[0]
    for heading, content in re.findall(r"^# (.*)\n((?:[^#].*\n)+)", block, re.MULTILINE):
        folder = tmp_path / (re.findall(r"\((.*)\)", heading) or ["own"])[0]
        for name in heading.partition(" (")[0].split(", "):
            write(folder / name, content)
    for benchmark, protocol in [*PROTOCOLS_OF.items(), ("msrvtt", "msrvtt-1ka-7k"), ("msrvtt", "msrvtt-full")]:
        rows = read_annotations(tmp_path / "own", benchmark, protocol, splits=SPLITS).rows
        assert {len(rows["train"]), len(rows["test"])} == {1}
    phoenix = read_annotations(tmp_path / "own", "phoenix2014t", "phoenix2014t", splits=["test"])
    assert [(row["caption"], row["gloss"]) for row in phoenix.rows["test"]] == [("morgen regnet es", "MORGEN REGEN")]
    assert read_annotations(tmp_path / "own", "didemo", "didemo-paragraph", splits=["test"]).rows["test"] == [
        {"id": "12@N00_34_ab", "clip": "12@N00_34_ab", "captions": ["a dog runs. the dog sits down."]}
    ]
    charades = read_annotations(tmp_path / "own", "charades", "charades+script", splits=["train", "test"])
    assert charades.labels == ["Holding some clothes", "Putting clothes somewhere"]
    assert charades.rows["test"][0]["labels"] == charades.labels
    assert charades.rows["test"][0]["caption"] == "A person folds a shirt, then leaves."
    for benchmark, kind in (("msrvtt", "retrieval"), ("msvd_qa", "questions")):
        rows = read_annotations(tmp_path / f"ALPRO, {kind}", benchmark, PROTOCOLS_OF[benchmark], splits=SPLITS).rows
        assert [len(own) for own in rows.values()] == [1, 1, 1]


def test_the_size_of_another_protocol_is_recognised(make, monkeypatch):
    for name in ("msrvtt-1ka-7k", "msvd"):  # the size of another benchmark is not considered
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], sizes={"train": SplitSize(6, 12)}))
    made = make("msrvtt", num_validation_clips=1)
    assert any(line.endswith("and 180000; this is the size of msrvtt-1ka-7k") for line in made.deviations)


def test_validation_clips_are_taken_from_the_training_list_if_they_have_no_list(make, tmp_path):
    made = make("msrvtt", num_validation_clips=2, seed=3)
    train, validation = manifest(tmp_path, "train"), manifest(tmp_path, "validation")
    assert {row["id"] for row in train} | {row["id"] for row in validation} == {f"video{i}" for i in range(6)}
    assert (len(train), len(validation)) == (4, 2)
    assert made.validation_split == {"seed": 3, "num_clips": 2}
    assert json.loads((tmp_path / "out/protocol.json").read_text())["validation_split"] == {"seed": 3, "num_clips": 2}
    assert (made.splits["train"].listed, made.splits["validation"].listed) == (SplitSize(6, 12), SplitSize(2, 4))
    train_line, validation_line = made.to_text().splitlines()[1:3]
    assert "; listed: 6 clips, 12 captions, including 2 clips set aside for validation; protocol" in train_line
    assert "; set aside: 2 clips of the training list, chosen with seed 3; protocol: no size" in validation_line
    with pytest.raises(ValueError, match="must be from 1 to 5, one less than the number of training clips, got 6"):
        make("msrvtt", num_validation_clips=6)


def test_a_tenth_of_a_small_training_list_is_set_aside_by_default(make):
    assert make("msrvtt").validation_split == {"seed": 0, "num_clips": 1}  # of 6
    with pytest.raises(ValueError, match="The training list has 1 clip, .* Remove validation from `splits`"):
        set_aside([{"clip": "video0"}], 1, seed=0)


def test_validation_clips_do_not_need_the_training_manifest(make, tmp_path):
    make("msrvtt", num_validation_clips=2, seed=3)
    both = (tmp_path / "out/validation.jsonl").read_bytes()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    make("msrvtt", num_validation_clips=2, seed=3, splits=["validation"])
    assert (tmp_path / "out/validation.jsonl").read_bytes() == both
    assert not (tmp_path / "out/train.jsonl").exists()


def test_the_choice_depends_only_on_seed_and_names():
    rows = [{"clip": f"video{i // 2}", "number": i} for i in range(200)]
    chosen = set_aside(rows, 10, seed=0)
    assert chosen["train"] + chosen["validation"] != rows and len(chosen["validation"]) == 20
    assert sorted(chosen["train"] + chosen["validation"], key=lambda row: row["number"]) == rows

    def clips(rows):
        return {row["clip"] for row in rows}

    assert clips(set_aside(rows[::-1], 10, seed=0)["validation"]) == clips(chosen["validation"])
    assert clips(set_aside(rows, 10, seed=1)["validation"]) != clips(chosen["validation"])
    # Removing a clip does not change the choice among the others.
    fewer = [row for row in rows if row["clip"] != chosen["train"][0]["clip"]]
    assert clips(set_aside(fewer, 10, seed=0)["validation"]) == clips(chosen["validation"])


def test_arguments_without_effect_are_errors(make, tmp_path):
    with pytest.raises(ValueError, match="num_validation_clips has no effect"):
        make("msvd", num_validation_clips=3)
    with pytest.raises(ValueError, match="'msvd' is not a protocol of msrvtt"):
        make("msrvtt", protocol="msvd")
    with pytest.raises(ValueError, match="splits must be some of train, validation, test, got val"):
        make("msvd", splits=["val"])
    with pytest.raises(ValueError, match="no such folder. Give the folder of the clips. Captions"):
        make("msvd", videos=tmp_path / "absent")
    with pytest.raises(ValueError, match="no such folder. Give the folder of the clips. Captions"):
        make("msvd", videos=None)


def test_validation_clips_are_taken_from_alpros_training_file(make, tmp_path):
    for split, numbers in (("train", range(4)), ("test", [9])):
        rows = [{"caption": "a", "clip_name": f"video{i}"} for i in numbers]
        write_jsonl(tmp_path / f"annotations/{split}.jsonl", rows)
    write(tmp_path / "videos/video9.mp4", "x")
    with pytest.raises(ValueError, match="no list of validation clips, and no list of training clips"):
        make("didemo", splits=["validation"], protocol="didemo-paragraph-1000")
    made = make("didemo", num_validation_clips=1, protocol="didemo-paragraph-1000")
    assert made.splits["validation"].listed == SplitSize(1, 1)
    assert "protocol: no size given" in made.to_text()


def test_rows_without_a_clip_are_left_out_and_clips_without_rows_are_reported(make, tmp_path, small_msvd):
    make("msvd")
    (tmp_path / "videos/-a_1_9.mp4").unlink()
    write(tmp_path / "videos/-b_1_9.mp4", "")
    write(tmp_path / "videos/other/stranger.avi", "x")
    write(tmp_path / "videos/.-a_1_9.mp4", "x")
    write(tmp_path / "videos/-a_1_9.mp4.part", "x")
    write(tmp_path / "videos/readme.txt", "x")
    made = make("msvd")
    assert manifest(tmp_path, "train") == manifest(tmp_path, "validation") == []
    assert made.splits["train"].missing == ["-a_1_9"] and made.splits["validation"].missing == ["-b_1_9"]
    assert made.deviations == [
        "train: 1 of 1 clips have no usable file, so 1 rows are left out: -a_1_9",
        "validation: 1 of 1 clips have no usable file, so 1 rows are left out: -b_1_9",
    ]
    text = made.to_text()
    assert "note: 1 empty files count as missing: -b_1_9.mp4" in text
    assert "note: 1 files in" in text and "do not belong to a clip of this protocol: other/stranger.avi" in text
    assert SOURCES["msvd"] in text


@pytest.mark.parametrize("clip", CLIPS["msvd"])
def test_no_command_reads_an_empty_manifest(make, tmp_path, clip):
    make("msvd")
    for other in CLIPS["msvd"]:
        write(tmp_path / f"videos/{other}.mp4", "x" * (other == clip))
    text = make("msvd").to_text()
    assert ("Train: " in text, "Test: " in text) == (clip == "-a_1_9", clip == "-c_1_9")
    assert "validation.jsonl has no rows" in text or clip == "-b_1_9"
    if clip == "-a_1_9":
        assert f"--train_file {tmp_path / 'out/train.jsonl'} --do_train --video_root" in text


def test_a_folder_with_none_of_the_clips_is_an_error(make, tmp_path):
    write(tmp_path / "others/video1.mp4", "x")
    with pytest.raises(ValueError, match=r"others: 3 clips have no usable file: -a_1_9, -b_1_9, -c_1_9\. .*video1"):
        make("msvd", videos=tmp_path / "others")
    assert not (tmp_path / "out").exists()


def test_clips_are_found_in_subfolders_with_any_extension(make, tmp_path, small_msvd):
    make("msvd")
    for name, new in (("-a_1_9", "TrainValVideo/-a_1_9.AVI"), ("-b_1_9", "more/-b_1_9"), ("-c_1_9", "-c_1_9.avi")):
        write(tmp_path / "videos" / new, "x")
        (tmp_path / f"videos/{name}.mp4").unlink()
    write(tmp_path / "videos/-c_1_9.mkv", "x")
    made = make("msvd")
    assert [manifest(tmp_path, split)[0]["video"] for split in SPLITS] == [
        "TrainValVideo/-a_1_9.AVI",
        "more/-b_1_9",
        "-c_1_9.avi",
    ]
    assert made.notes == ["1 clips have several files; the first is used: -c_1_9"]


def test_links_that_lead_out_are_reported_because_the_loader_would_refuse_them(make, tmp_path, small_msvd):
    make("msvd")
    outside = tmp_path / "elsewhere"
    write(outside / "-a_1_9.mp4", "x")
    (tmp_path / "videos/-a_1_9.mp4").unlink()
    (tmp_path / "videos/-a_1_9.mp4").symlink_to(outside / "-a_1_9.mp4")
    (tmp_path / "videos/folder").symlink_to(outside)
    (tmp_path / "videos/-b_1_9.mp4").rename(tmp_path / "videos/real")
    (tmp_path / "videos/-b_1_9.mp4").symlink_to(tmp_path / "videos/real")
    (tmp_path / "videos/-c_1_9.mp4").unlink()
    (tmp_path / "videos/-c_1_9.mp4").symlink_to(tmp_path / "videos/nowhere")
    made = make("msvd")
    assert [made.splits[split].clips for split in SPLITS] == [[], ["-b_1_9"], []]
    assert any(
        note.startswith("2 links that lead out of") and ": -a_1_9.mp4, folder; pass --follow_links" in note
        for note in made.notes
    )
    (outside / "-c_1_9.avi").write_text("x")
    (outside / "around").symlink_to(tmp_path / "videos")
    followed = make("msvd", follow_links=True)
    assert [followed.splits[split].clips for split in SPLITS] == [["-a_1_9"], ["-b_1_9"], ["-c_1_9"]]
    assert "folder/-c_1_9.avi" in (followed.folder / "test.jsonl").read_text()


def test_unreadable_files_are_left_out_if_files_are_opened(make, tmp_path, small_msvd, media_dir):
    make("msvd")
    for clip, source in (("-a_1_9", "audio0.mp4"), ("-b_1_9", "broken.mp4"), ("-c_1_9", "silent.mp4")):
        (tmp_path / f"videos/{clip}.mp4").write_bytes((media_dir / source).read_bytes())
    assert make("msvd").deviations == []
    made = make("msvd", opens_files=True)
    assert [len(made.splits[split].clips) for split in SPLITS] == [1, 0, 1]
    (note,) = [note for note in made.notes if note.startswith("unreadable: ")]
    assert "-b_1_9.mp4" in note


def test_unknown_types_of_question_are_reported(make, tmp_path):
    write_qa(tmp_path / "annotations")
    path = tmp_path / "annotations/test_qa.json"
    rows = json.loads(path.read_text())
    rows[0]["question"] = "is it there?"
    write(path, rows)
    write(tmp_path / "videos/video3.mp4", "x")
    made = make("msrvtt_qa", splits=["test"])
    assert "test: 1 questions of unknown type: 'is' (1); known are what, who, how, where, when" in made.deviations


def test_training_on_test_clips_is_refused(make, tmp_path):
    write_msrvtt(tmp_path / "annotations")
    path = tmp_path / "annotations/lists/MSRVTT_train.9k.csv"
    write(path, path.read_text() + "video6\n")
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="1 of the 2 test clips of msrvtt-1ka-9k are also training .* video6"):
        make("msrvtt", num_validation_clips=1)
    assert not (tmp_path / "out").exists()


def test_training_on_validation_clips_is_reported(make, tmp_path):
    write_msvd(tmp_path / "annotations")
    write(tmp_path / "annotations/val_list.txt", "-a_1_9\n-b_1_9\n")
    write(tmp_path / "videos/-c_1_9.mp4", "x")
    assert "1 clips are in both train and validation: -a_1_9" in make("msvd").deviations


def test_manifests_are_not_mixed_with_those_of_an_earlier_call(make, tmp_path):
    make("msvd")
    with pytest.raises(ValueError, match="already has train.jsonl and validation.jsonl"):
        make("msvd", splits=["test"])


def test_annotations_are_not_overwritten(tmp_path):
    write_alpro(tmp_path, "msrvtt")
    (tmp_path / "videos").mkdir()
    before = (tmp_path / "test.jsonl").read_bytes()
    with pytest.raises(ValueError, match="train.jsonl is an annotation file"):
        prepare_benchmark("msrvtt", tmp_path, tmp_path, videos=tmp_path / "videos", protocol="msrvtt-1ka-7k")
    assert (tmp_path / "test.jsonl").read_bytes() == before


def test_the_loader_reads_the_manifests(make, tmp_path):
    make("msvd_qa")
    loaded = RowDataset.from_manifest(
        tmp_path / "out/test.jsonl",
        roots={"video": tmp_path / "videos"},
        cache_dir=tmp_path / "cache",
        modalities=("video",),
    )
    row = loaded[1]
    assert (row["id"], row["video"]) == ("5", str(tmp_path / "videos/-c_1_9.mp4"))
    further = {name: row[name] for name in ("question", "answer", "answer_type", "question_id")}
    assert further == {"question": "how many are there?", "answer": "two", "answer_type": "how", "question_id": 5}
    assert loaded[0]["group"] == row["group"]


# The published files.


@pytest.fixture
def prepare_published(shared_dir, tmp_path):
    """Prepare published annotations with a placeholder file for every clip."""

    def prepare_with_stand_ins(benchmark: str, **options):
        folder = shared_dir / "data/annotations" / benchmark.removesuffix("_caption")
        if not folder.is_dir():
            pytest.skip(f"needs {folder}")
        protocol = options.get("protocol") or get_protocol(benchmark=benchmark).name
        rows = read_annotations(folder, benchmark, protocol, splits=options.get("splits", SPLITS)).rows
        (tmp_path / "videos").mkdir()
        for clip in {row["clip"] for own in rows.values() for row in own}:
            (tmp_path / "videos" / f"{clip}.mp4").write_bytes(b"x")
        return prepare_benchmark(benchmark, folder, tmp_path / "out", videos=tmp_path / "videos", **options)

    return prepare_with_stand_ins


def test_the_published_msvd_files_match_the_protocol(prepare_published):
    made = prepare_published("msvd")
    assert made.deviations == [] and made.notes == []
    assert (made.splits["test"].num_rows, made.splits["test"].num_texts) == (670, 27_763)


def test_the_published_msvd_files_match_the_protocol_of_captions(prepare_published, tmp_path):
    made = prepare_published("msvd_caption")
    assert made.deviations == [] and made.notes == [] and "--task captioning" in made.to_text()
    assert [split.num_rows for split in made.splits.values()] == [1200, 100, 670]
    assert sum(len(row["captions"]) for row in manifest(tmp_path, "test")) == 27_763


def test_the_published_msvd_qa_files_match_the_protocol(prepare_published, tmp_path):
    made = prepare_published("msvd_qa")
    assert made.deviations == [] and made.notes == []
    types = Counter(row["answer_type"] for row in manifest(tmp_path, "test"))
    assert types == {"what": 8149, "who": 4552, "how": 370, "where": 28, "when": 58}


def test_the_published_didemo_files_match_the_protocol(prepare_published):
    made = prepare_published("didemo", protocol="didemo-paragraph", splits=["validation", "test"])
    assert made.deviations == [] and made.notes == []
    assert [len(made.splits[split].clips) for split in ("validation", "test")] == [1065, 1004]


def test_the_published_1ka_test_list_matches_the_protocol(prepare_published):
    made = prepare_published("msrvtt", protocol="msrvtt-1ka-9k", splits=["test"])
    assert made.deviations == [] and made.splits["test"].num_rows == 1000
