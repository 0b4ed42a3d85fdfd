"""Rows that do not come from a manifest, and queries of a dataset."""

import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest

from simple_multimodal.data import manifest, records
from simple_multimodal.data.batch_reader import BatchReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import Row, RowDataset, without_files
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor

ROWS = [
    {"id": "a", "video": "audio0.mp4", "captions": ["a cat purrs", "one cat"], "group": "cats", "label": 3},
    {"id": "b", "video": "silent.mp4", "caption": " two dogs ", "start_seconds": 0.5, "end_seconds": 1},
    {"text": "caption.txt", "place": {"x": [1.5, None]}},
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def collator() -> MultimodalCollator:
    audio, video = AudioFeatureExtractor(num_mel_bins=16, num_frames=120), VideoClipProcessor(num_frames=4, size=16)
    return MultimodalCollator(MultimodalProcessor(audio, video))


def test_rows_in_memory_equal_those_of_a_manifest(tmp_path, media_dir):
    path = write(tmp_path / "rows.jsonl", ROWS)
    of_file = RowDataset.from_manifest(path, roots=media_dir, cache_dir=tmp_path)
    for in_memory in (RowDataset(ROWS, roots=media_dir), RowDataset(iter(ROWS), roots=str(media_dir))):
        assert list(in_memory) == list(of_file) and len(in_memory) == 3
        assert in_memory.columns == of_file.columns
        assert pickle.loads(pickle.dumps(in_memory))[2, 1] == in_memory[2, 1] == {**in_memory[1], "epoch": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, r"row 1: the id 'a' occurred before, in row 0\."),
        ({"caption": 3}, "row 1: `caption` must be a string, got 3"),
        ({"video": "../a.mp4"}, r"row 1: the path '../a.mp4' .* leaves its folder"),
        ({"video": "/etc/passwd"}, "row 1: the path '/etc/passwd' in column 'video' is absolute and not below"),
        ({"video": "http://example.org/a.mp4"}, "row 1: .* looks like a URL"),
        ({"start_seconds": -1}, "row 1: `start_seconds` must be a time"),
        ({"label": np.ones(3)}, "row 1: `label` contains a ndarray; give numbers, strings, lists or dictionaries"),
        ({"is_skipped": True}, "reserved column names: is_skipped"),
    ],
)
def test_values_are_checked_for_every_source_of_rows(media_dir, change, message):
    rows = [ROWS[0], ROWS[1] | change]
    with pytest.raises(ValueError, match=f"^rows.*{message}"):
        RowDataset(rows, roots=media_dir)


def test_missing_rows_and_columns_are_refused():
    with pytest.raises(ValueError, match="^rows: there are 0 rows"):
        RowDataset([])
    with pytest.raises(ValueError, match="no column for text: one of text, caption, captions is needed"):
        RowDataset([{"video": "a.mp4"}])
    assert len(RowDataset([{"video": "a.mp4"}], modalities=("video",))) == 1
    with pytest.raises(ValueError, match="`roots` names poses; columns of files are video, audio, text"):
        RowDataset(ROWS, roots={"poses": "."})


def test_several_wrong_rows_are_in_one_message():
    rows = [{"video": "a.mp4", "caption": 1}, {"video": "b.mp4", "caption": "x"}, {"caption": "y", "end_seconds": "z"}]
    with pytest.raises(ValueError, match=r"^rows: 2 rows are wrong\. Row 0: .* Row 2: `end_seconds`"):
        RowDataset(rows)


def test_files_may_be_anywhere_without_roots(tmp_path, media_dir, monkeypatch):
    """The calling program has chosen them; paths are kept as given."""
    (tmp_path / "link.mp4").symlink_to(media_dir / "audio0.mp4")
    monkeypatch.chdir(tmp_path)
    rows = [{"video": "link.mp4"}, {"video": str(media_dir / "silent.mp4")}]
    dataset = RowDataset(rows, modalities=("video",))
    dataset.check_links()
    assert [row["video"] for row in dataset] == [str(tmp_path / "link.mp4"), str(media_dir / "silent.mp4")]
    assert dataset.relative_path(dataset[1], "video") == str(media_dir / "silent.mp4")[1:]
    with pytest.raises(ValueError, match="leaves its folder"):
        RowDataset(rows[:1], modalities=("video",), roots=tmp_path).check_links()


def test_a_row_can_be_requested_in_three_ways(media_dir):
    dataset = RowDataset([ROWS[0], ROWS[1] | {"video": "nowhere.mp4"}, ROWS[2]], roots=media_dir)
    assert dataset.row(0, 4) == dataset.row(0, 4, files="named") == dataset[4, 0]
    with pytest.raises(MediaError, match=r"^rows, row 1 \(id 'b'\), column 'video': .*nowhere.mp4 does not exist"):
        dataset.row(1)
    assert dataset.row(1, files="named")["audio"] == str(media_dir / "nowhere.mp4")
    bare = dataset.row(1, 2, files="none")
    assert (bare["video"], bare["audio"], bare["captions"], bare["epoch"]) == (None, None, ["two dogs"], 2)
    assert dataset.row(-1, files="none")["captions"] == [""]  # they are in a file
    for index in (0, 2):
        assert without_files(dataset[index]) == dataset.row(index, files="none")
    with pytest.raises(IndexError):
        dataset.row(3, files="none")


def test_values_by_column(media_dir):
    dataset = RowDataset(ROWS, roots=media_dir, max_samples=2)
    assert dataset.column("id") == ["a", "b"] and dataset.column("video") == ["audio0.mp4", "silent.mp4"]
    assert dataset.column("label") == [3, None] and dataset.column("place") == [None, None]
    assert RowDataset(ROWS, roots=media_dir).column("captions")[:2] == [["a cat purrs", "one cat"], ["two dogs"]]


def test_clip_names_are_listed_once(media_dir, monkeypatch):
    rows = [{"video": f"{folder}/{name}.mp4"} for folder in "xy" for name in "ba"]
    dataset = RowDataset([*rows, {"audio": " z.b.wav"}], modalities=())
    names = dataset.clip_names()
    assert names == ["a", "b", "z.b"]
    monkeypatch.setattr(RowDataset, "_cells", lambda *_: pytest.fail("names cannot change"))
    assert dataset.clip_names() == names


def test_files_of_clips_follow_links(tmp_path):
    for name in ("real/a.mp4", "real/b.wav", "é.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x").symlink_to(tmp_path / "real")
    (tmp_path / "l\u0065\u0301.mp4").symlink_to("é.mp4")
    rows = [
        {"video": "x/a.mp4", "audio": "real/b.wav"},
        {"video": " real/a.mp4"},
        {"audio": "x/b.wav"},
        {"video": "l\u00e9.mp4"},  # composed, unlike the link's name
        {"video": "absent/c.mp4"},
        {"caption": "no clip"},
    ]
    expected = [("a", "real/a.mp4"), ("b", "real/b.wav"), ("c", "absent/c.mp4"), ("l\u00e9", "é.mp4")]
    for roots in (tmp_path, None):
        own = [{**row, **{k: str(tmp_path / v.strip()) for k, v in row.items() if k != "caption"}} for row in rows]
        dataset = RowDataset(rows if roots else own, roots=roots, modalities=())
        assert (
            dataset.clip_files() == dataset.clip_files() == [(name, str(tmp_path / path)) for name, path in expected]
        )
    assert RowDataset(rows[-1:], modalities=()).clip_files() == []


def test_the_text_may_come_from_another_column(tmp_path, media_dir):
    rows = [{"video": "silent.mp4", "caption": "left out", "question": " why? ", "answer": 2}]
    settings = {"text_column": "question", "typed_columns": {"answer": "name"}, "roots": media_dir}
    path = write(tmp_path / "rows.jsonl", rows)
    of_file = RowDataset.from_manifest(path, cache_dir=tmp_path, **settings)
    for dataset in (RowDataset(rows, **settings), of_file):
        assert (dataset[0]["captions"], dataset[0]["question"], dataset[0]["answer"]) == (["why?"], "why?", "2")
        assert list(dataset.captions()) == ["why?"]
    with pytest.raises(ValueError, match="row 1: `question` must be a text, but is empty"):
        RowDataset([*rows, {"video": "a.mp4"}], **settings)
    with pytest.raises(ValueError, match="no column for text: question is needed"):
        RowDataset([{"video": "a.mp4", "caption": "b"}], **settings)
    as_captions = RowDataset.from_manifest(path, cache_dir=tmp_path, roots=media_dir)
    assert as_captions[0]["captions"] == ["left out"] and as_captions[0]["answer"] == 2


def test_fingerprints_depend_on_the_rows():
    rows = [{"video": f"{number}.mp4", "caption": "x"} for number in range(3)]
    fingerprint = RowDataset(rows).fingerprint
    assert RowDataset(list(rows)).fingerprint == fingerprint
    assert RowDataset(rows[:2]).fingerprint != fingerprint != RowDataset(rows, max_samples=2).fingerprint
    assert RowDataset([*rows[:2], rows[2] | {"caption": "y"}]).fingerprint != fingerprint


def test_rows_from_a_pandas_table(media_dir):
    frame = pandas.DataFrame(
        {
            "video": ["audio0.mp4", None],
            "caption": ["a", "b"],
            "start_seconds": [0.5, np.nan],
            "label": np.array([1, 2], dtype=np.int32),
        }
    )
    first, second = RowDataset.from_dataframe(frame, roots=media_dir)
    assert (first["start_seconds"], first["label"], first["captions"]) == (0.5, 1, ["a"])
    assert (second["video"], second["start_seconds"], second["label"]) == (None, None, 2)


def media_dataset(media_dir: Path, embedded: bool) -> datasets.Dataset:
    """Make a `datasets.Dataset` with a video and an audio column, as paths or as the content of files."""
    paths = [str(media_dir / name) for name in ("audio0.mp4", "silent.mp4")]
    dataset = datasets.Dataset.from_dict({"video": paths, "audio": [paths[0], None], "caption": ["a cat", "a dog"]})
    for name, feature in {"video": datasets.Video, "audio": datasets.Audio}.items():
        dataset = dataset.cast_column(name, feature())
        if embedded:
            cells = [path and {"path": os.path.basename(path), "bytes": Path(path).read_bytes()} for path in paths]
            cells[1] = cells[1] if name == "video" else None
            dataset = dataset.remove_columns(name).add_column(name, cells, feature=feature(decode=False))
            dataset = dataset.cast_column(name, feature())
    return dataset


@pytest.mark.parametrize("embedded", [False, True])
def test_media_columns_of_a_dataset_are_read_by_our_reader(tmp_path, media_dir, collator, embedded):
    source = media_dataset(media_dir, embedded)
    dataset = RowDataset.from_dataset(source, cache_dir=tmp_path, modalities=("audio", "video"))
    assert [row["captions"] for row in dataset] == [["a cat"], ["a dog"]]
    assert dataset[0]["video"] != dataset[1]["video"] and dataset[1]["audio"] is None
    if embedded:
        assert sorted(tmp_path.rglob("*.mp4")) == sorted(Path(row["video"]) for row in dataset)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
        again = RowDataset.from_dataset(source, cache_dir=tmp_path, modalities=("audio", "video"))
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before
        assert again.fingerprint == dataset.fingerprint
        RowDataset.from_dataset(source, cache_dir=tmp_path / "one", max_samples=1, modalities=("audio", "video"))
        assert len(list((tmp_path / "one").rglob("*.mp4"))) == 1  # files of other rows are not written
    else:
        assert [row["video"] for row in dataset] == [str(media_dir / n) for n in ("audio0.mp4", "silent.mp4")]
    batch = BatchReader(dataset, collator)([(0, 0), (0, 1)])
    plain = [{"video": "audio0.mp4", "audio": "audio0.mp4"}, {"video": "silent.mp4"}]
    expected = BatchReader(RowDataset(plain, roots=media_dir, modalities=()), collator)([(0, 0), (0, 1)])
    for name in ("pixel_values_videos", "audio_values", "audio_mask"):
        assert batch[name].equal(expected[name]), name


def test_rows_of_a_dataset_are_checked_like_others(media_dir):
    source = datasets.Dataset.from_list([{"video": "a.mp4", "caption": "a"}, {"video": "../b.mp4", "caption": "b"}])
    with pytest.raises(ValueError, match=r"^dataset, row 1: the path '../b.mp4'"):
        RowDataset.from_dataset(source)
    with pytest.raises(ValueError, match="no column for text"):
        RowDataset.from_dataset(source.remove_columns("caption"))


def test_given_rows_are_read_without_a_dataset(media_dir, collator):
    rows = list(RowDataset.from_files([str(media_dir / "audio0.mp4"), str(media_dir / "audio1.mp4")]))
    rows.append({**rows[0], "index": 7, "video": str(media_dir / "broken.mp4")})
    batch = BatchReader(None, collator, on_bad_sample="skip")(rows)
    assert [sample.row for sample in batch["bad_samples"]] == [7] and batch["row_ids"].tolist() == [0, 1, 7]
    assert batch["video_mask"].tolist() == [True, True, False]


def test_a_manifest_is_parsed_only_once(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", ROWS)
    first = RowDataset.from_manifest(path, cache_dir=tmp_path / "cache")
    path.rename(tmp_path / "moved.jsonl")
    monkeypatch.setattr(manifest, "read_jsonl", lambda *_: pytest.fail("columns are already known"))
    monkeypatch.setattr(manifest, "read_records", lambda *_: pytest.fail("rows are already known"))
    second = RowDataset.from_manifest(tmp_path / "moved.jsonl", cache_dir=tmp_path / "cache")
    assert second.columns == first.columns and second.fingerprint == first.fingerprint
    assert list(second.rows(files="named")) == list(first.rows(files="named"))
    with pytest.raises(ValueError, match="moved.jsonl: no column for audio"):  # columns are still checked
        monkeypatch.setitem(records.MODALITY_COLUMNS, "audio", ("audio_file",))
        RowDataset.from_manifest(tmp_path / "moved.jsonl", cache_dir=tmp_path / "cache", modalities=("audio",))


def test_a_wrong_manifest_leaves_no_table(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*ROWS, {"video": 3}])
    for _ in range(2):
        with pytest.raises(ValueError, match="line 4: `video` must be a string"):
            RowDataset.from_manifest(path, cache_dir=tmp_path / "cache")
    assert [file for file in tmp_path.rglob("cache/**/*") if file.suffix in (".arrow", ".incomplete")] == []


def test_many_rows_are_read_in_batches(monkeypatch):
    monkeypatch.setattr(records, "BATCH_ROWS", 4)
    rows = [{"caption": str(number)} for number in range(11)]
    dataset = RowDataset(rows, modalities=("text",))
    assert [row["captions"] for row in dataset] == [[row["caption"]] for row in rows]
    with pytest.raises(ValueError, match="row 10: the id 'x' occurred before, in row 1"):
        RowDataset([row | ({"id": "x"} if n in (1, 10) else {}) for n, row in enumerate(rows)], modalities=("text",))


def test_names_of_row_entries_are_reserved():
    assert set(records.OWN_ENTRIES) == set(Row.__annotations__) - set(records.COLUMNS)
