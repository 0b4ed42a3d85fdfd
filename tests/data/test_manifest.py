"""Tests of manifests."""

import json
import pickle
import unicodedata
from pathlib import Path

import datasets
import pytest

from simple_multimodal.data.rows import RowDataset, row_captions
from simple_multimodal.media.errors import MediaError
from simple_multimodal.prepare.clips import clips_jsonl_to_manifests
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS, question_pairs

datasets.disable_progress_bars()


@pytest.fixture
def load(tmp_path, media_dir):
    """Return a function that writes a manifest and reads it; media are those of `media_dir`."""

    def load_manifest(content: str | bytes, name: str = "train.csv", roots=None, **kwargs) -> RowDataset:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if roots is None or isinstance(roots, dict):
            roots = dict.fromkeys(("video", "audio", "text"), media_dir) | (roots or {})
        kwargs["roots"] = roots
        return RowDataset.from_manifest(path, cache_dir=tmp_path / "cache", **kwargs)

    return load_manifest


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_csv_row_in_full(load, media_dir):
    dataset = load("caption,video,label\n a cat purrs ,audio0.mp4,3\n")
    assert len(dataset) == 1
    assert dataset[0] == {
        "id": "0",
        "index": 0,
        "epoch": 0,
        "video": str(media_dir / "audio0.mp4"),
        "audio": str(media_dir / "audio0.mp4"),
        "audio_from_video": True,
        "text": None,
        "pose": None,
        "captions": ["a cat purrs"],
        "start_seconds": None,
        "end_seconds": None,
        "group": "video=audio0.mp4",
        "label": "3",
    }


def test_csv_tsv_and_jsonl_give_the_same_rows(load):
    captions = ["a cat, purring", 'a "cat"']
    cell = json.dumps(captions)
    quoted = '"' + cell.replace('"', '""') + '"'
    row = {"id": "007", "video": "audio0.mp4", "captions": captions, "start_seconds": 0.5, "end_seconds": 1}
    from_jsonl = load(jsonl(row), "a.jsonl")[0]
    header = ("id", "video", "captions", "start_seconds", "end_seconds")
    cells = ("007", "audio0.mp4", quoted, "0.5", "1")
    assert load(f"{','.join(header)}\n{','.join(cells)}\n", "a.csv")[0] == from_jsonl
    assert load("\t".join(header) + "\n" + "\t".join(cells) + "\n", "a.tsv")[0] == from_jsonl
    assert from_jsonl["id"] == "007" and from_jsonl["captions"] == captions
    assert (from_jsonl["start_seconds"], from_jsonl["end_seconds"]) == (0.5, 1.0)
    assert from_jsonl["group"] == "video=audio0.mp4 start_seconds=0.5 end_seconds=1.0"


def test_empty_cells_mean_missing_modalities(load, media_dir):
    dataset = load(
        "audio,text,video\n,caption.txt,\naudio0.mp4,,silent.mp4\n,,audio1.mp4\n",
    )
    text_only, both, no_audio = dataset
    assert (text_only["video"], text_only["audio"]) == (None, None)
    assert text_only["text"] == str(media_dir / "caption.txt") and text_only["group"] == "id=0"
    assert row_captions(text_only) == ["a caption from a file"]
    assert both["audio"] == str(media_dir / "audio0.mp4") and both["audio_from_video"] is False
    assert both["group"] == "video=silent.mp4 audio=audio0.mp4"
    assert no_audio["audio"] is None  # with an `audio` column, the audio track of the video is not used
    assert row_captions(no_audio) == []


def test_further_columns_are_untouched(load):
    rows = (
        {"video": "audio0.mp4", "caption": "a", "labels": [1, 2], "note": None, "score": 1.5},
        {"video": "audio1.mp4", "caption": "b", "labels": "x", "extra": {"a": 1}},
    )
    first, second = load(jsonl(*rows), "a.jsonl")
    assert (first["labels"], first["note"], first["score"], first["extra"]) == ([1, 2], None, 1.5, None)
    assert (second["labels"], second["extra"], second["score"]) == ("x", {"a": 1}, None)
    assert load("video,caption,label\naudio0.mp4,NA,null\n")[0]["captions"] == ["NA"]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(load):
    assert load(b"\xef\xbb\xbfvideo,caption\r\naudio0.mp4,caf\xc3\xa9\r\n")[0]["captions"] == ["café"]
    assert load(b'\xef\xbb\xbf{"video": "audio0.mp4", "caption": "x"}\r\n', "a.jsonl")[0]["captions"] == ["x"]


def test_a_long_caption_is_read(load):
    assert len(load("video,caption\naudio0.mp4," + "a" * 1_000_000 + "\n")[0]["captions"][0]) == 1_000_000


def test_rows_can_be_listed_without_their_files(load):
    rows = ({"video": "audio0.mp4", "caption": "one"}, {"video": "missing.mp4", "caption": "two"})
    dataset = load(jsonl(*rows), "a.jsonl")
    named = list(dataset.rows(files="named"))
    assert named[0] == dataset[0]
    assert Path(named[1]["video"]).name == "missing.mp4" and not Path(named[1]["video"]).exists()
    assert named[1]["audio"] == named[1]["video"] and named[1]["index"] == 1 and named[1]["captions"] == ["two"]
    assert len(list(load(jsonl(*rows), "a.jsonl", max_samples=1).rows(files="named"))) == 1


def test_max_samples_does_not_touch_files_of_other_rows(load):
    rows = ({"video": "audio0.mp4", "caption": "one"}, {"video": "missing.mp4", "caption": "two"})
    dataset = load(jsonl(*rows), "a.jsonl", max_samples=1)
    assert len(dataset) == len(list(dataset)) == 1
    assert list(dataset.captions()) == ["one", "two"]  # all captions, for the tokenizer
    with pytest.raises(IndexError):
        dataset[1]
    assert len(load(jsonl(*rows), "a.jsonl", max_samples=9)) == 2


@pytest.mark.parametrize(
    "content", ["clips/0.mp4,a dog\nclips/1.mp4,a cat\n", "7,a dog\n8,a cat\n", "a.mp4,a.mp4\nb.mp4,b.mp4\n"]
)
@pytest.mark.parametrize("modalities", [("text", "audio", "video"), (), None])
def test_a_table_without_a_header_is_an_error(load, content, modalities):
    line = content.partition("\n")[0].replace(",", ", ")
    remedy = "Put a line with the names of the columns above it, such as video and caption"
    with pytest.raises(ValueError, match=rf"train.csv: the first line seems to be a row .*: {line}\. {remedy}"):
        load(content, modalities=modalities)
    with pytest.raises(ValueError, match="has 0 rows after its first line, the header"):
        load(content.partition("\n")[0])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_manifest_of_any_modality_needs_a_column_of_media(load, name):
    content = jsonl({"path": "a.mp4", "caption": "b"}) if name == "a.jsonl" else "path,caption\na.mp4,b\n"
    message = (
        f"{name}: no column for media: one of audio, video, pose is needed. The columns are path, caption. Did you "
    )
    with pytest.raises(
        ValueError, match=message + r"mean 'video' instead of 'path'\? Rename the columns in the .*\.$"
    ):
        load(content, name, modalities=None)
    assert len(load("caption\nb\n", modalities=())) == 1


@pytest.mark.parametrize(
    ("header", "hints"),
    [
        ("video,title", [("caption", "title")]),
        ("file name,Sentence", [("video", "file name"), ("caption", "Sentence")]),
        ("video,caption,title,path", []),  # nothing is missing
        (
            "audio-path,captions,start,end",
            [("audio", "audio-path"), ("start_seconds", "start"), ("end_seconds", "end")],
        ),
        ("vidoe,text,description", [("video", "vidoe")]),
        ("video,caption,label,question", []),
    ],
)
def test_columns_with_other_names_are_suggested(load, caplog, header, hints):
    content = f"{header},group\n{','.join('a' * len(header.split(',')))},\n"
    told = "".join(f" Did you mean {column!r} instead of {name!r}?" for column, name in hints)
    try:
        load(content, modalities=None)
        (message,) = [record.message for record in caplog.records] or [""]
    except ValueError as error:
        message = str(error)
    assert message.count("Did you mean") == len(hints) and told in message


def test_captions_include_those_of_text_files(load):
    assert list(load("text,video\ncaption.txt,audio0.mp4\n,audio1.mp4\n").captions()) == ["a caption from a file"]


@pytest.mark.parametrize("caption", ["a dog barks", "a dog barks. " * 30, "a dog: it barks"])
def test_captions_in_the_column_of_text_files_are_an_error_with_the_remedy(load, caption):
    rows = load(f"video,text\naudio0.mp4,{caption}\naudio1.mp4,a cat\n")
    remedy = r"captions instead of files, rename the column to `caption` .*`--rename_columns text=caption`\)\.$"
    with pytest.raises(MediaError, match=rf"row 0 .*column 'text': .*{caption.strip()} does not exist\..*{remedy}"):
        rows[0]
    with pytest.raises(MediaError, match="row 0"):
        list(rows.captions())
    with pytest.raises(MediaError) as error:
        load("video,caption\nabsent.mp4,a dog\n")[0]
    assert "rename_columns" not in str(error.value)


def test_captions_that_look_like_a_protocol_in_the_column_of_text_files(load):
    with pytest.raises(ValueError, match="looks like a URL or an FFmpeg protocol.*rename the column to `caption`"):
        load("video,text\naudio0.mp4,wow:a dog\n")


def test_text_files_that_cannot_be_read_are_one_warning(load, caplog):
    rows = load("text,video\nno.txt,audio0.mp4\ncaption.txt,audio0.mp4\nnone.txt,audio0.mp4\n")
    assert list(rows.captions()) == ["a caption from a file"]
    (record,) = caplog.records
    assert "Skipped 2 text files that cannot be read; the first one: " in record.message and "no.txt" in record.message


def test_a_row_has_its_epoch(load):
    dataset = load("video,caption\naudio0.mp4,a\naudio1.mp4,b\n")
    row = dataset[(3, 1)]
    assert (row["epoch"], row["index"], row["id"]) == (3, 1, "1")
    assert dataset[-1]["index"] == 1


def test_the_fingerprint_depends_on_the_content(load):
    content = "video,caption\naudio0.mp4,a\naudio1.mp4,b\n"
    fingerprint = load(content).fingerprint
    assert load(content, "other_name.csv").fingerprint == fingerprint
    assert load(content.replace("b", "c")).fingerprint != fingerprint
    assert load(content, max_samples=1).fingerprint != fingerprint


def test_a_changed_manifest_is_read_again(load):
    assert load("video,caption\naudio0.mp4,old\n")[0]["captions"] == ["old"]
    assert load("video,caption\naudio0.mp4,new\n")[0]["captions"] == ["new"]


def test_can_be_pickled(load):
    dataset = load("video,caption\naudio0.mp4,a\n")
    assert pickle.loads(pickle.dumps(dataset))[0] == dataset[0]


def test_roots_default_to_the_folder_of_the_manifest(tmp_path, media_dir):
    (tmp_path / "audio0.mp4").write_bytes((media_dir / "audio0.mp4").read_bytes())
    (tmp_path / "train.csv").write_text("video,caption\naudio0.mp4,a\n")
    dataset = RowDataset.from_manifest(tmp_path / "train.csv", cache_dir=tmp_path / "cache")
    assert dataset[0]["video"] == str(tmp_path / "audio0.mp4")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.csv", "0 rows"),
        ("video,caption\n", "a.csv", "0 rows"),
        ("\n", "a.jsonl", "0 rows"),
        ("video,caption\n", "a.xlsx", r"unknown manifest format '.xlsx'; known are .csv"),
        (
            "vidoe,caption\na.mp4,b\n",
            "a.csv",
            "no column for audio: one of audio, video.*Did you mean 'video'.*'vidoe'",
        ),
        ("video,captoin\na.mp4,b\n", "a.csv", "no column for text: one of text, caption, captions.*'captoin'"),
        (
            "video;caption\na.mp4;b\n",
            "a.csv",
            "line 1: the separator seems to be ';'; use a comma in .csv",
        ),
        ("video\tcaption\na.mp4\tb\n", "a.csv", "the separator seems to be '.t'"),
        (
            "Video,sentence\na.mp4,b\n",
            "a.csv",
            "no column for text: one of text, caption, captions is needed; no column for audio: one of audio, video "
            "is needed; no column for video: video is needed. The columns are Video, sentence. Did you mean 'video' "
            "instead of 'Video'[?] Did you mean 'caption' instead of 'sentence'[?] Rename the columns in the first "
            "line of the file, or leave text and audio and",
        ),
        (
            '{"clip": "a.mp4", "caption": "b"}\n',
            "a.jsonl",
            "columns are clip, caption. Did you mean 'video' instead of 'clip'[?] Rename the columns in the objects",
        ),
        ("video,caption\na.mp4,b\n", "a.tsv", "the separator seems to be ','"),
        ("../blobs/1f0c", "a.csv", "the manifest has 0 rows"),
        ("video,caption,video\na.mp4,b,c\n", "a.csv", "a column occurs twice"),
        ("video,caption\na.mp4,b,c\n", "a.csv", "line 2: 3 cells, but the header has 2"),
        ("video,caption\na.mp4\n", "a.csv", "line 2: 1 cells"),
        (
            'video,caption\na.mp4,"b"c\n',
            "a.csv",
            "line 2: a quoted cell must be followed by a separator, got '\"b\"c'",
        ),
        (b"video,caption\na.mp4,\xff\n", "a.csv", "line 2: is not UTF-8 text: it contains the byte 0xff.*iconv"),
        ("id,video,caption\nx,a.mp4,b\nx,c.mp4,d\n", "a.csv", "line 3: the id 'x' occurred before, in line 2"),
        ("id,video,caption\n1,a.mp4,b\n,c.mp4,d\n", "a.csv", "line 3: the id '1' occurred before"),
        ("video,text,caption\na.mp4,b.txt,c\n", "a.csv", "line 2: a row may have one of `text`, `caption`"),
        ("video,caption\na.mp4,b\n,\n", "a.csv", "line 3: the row is empty"),
        ("video,captions\na.mp4,b\n", "a.csv", r"line 2: `captions` must be a JSON list.*got 'b'"),
        ('{"video": "a.mp4", "captions": ["b", ""]}\n', "a.jsonl", "line 1: `captions` must be a JSON list"),
        ("video,caption,start_seconds\na.mp4,b,soon\n", "a.csv", "`start_seconds` must be a time.*got 'soon'"),
        ("video,caption,start_seconds\na.mp4,b,-1\n", "a.csv", "0 or more"),
        (
            "video,caption,start_seconds,end_seconds\na.mp4,b,2,2\n",
            "a.csv",
            "`end_seconds` is 2.0, which is not after",
        ),
        ("video,caption,end_seconds\na.mp4,b,nan\n", "a.csv", "`end_seconds` must be a time"),
        (
            '{"video": "a.mp4", "caption": "b"}\n{"video": 1, "caption": "b"}',
            "a.jsonl",
            "line 2: `video` must be a str",
        ),
        ('{"video": "a.mp4", "caption": "b"}\n{"video": "b.mp4",', "a.jsonl", "line 2: is not a JSON object"),
        ('["a.mp4"]\n', "a.jsonl", "line 1: must be a JSON object"),
    ],
)
def test_bad_manifests_are_refused_with_file_and_line(load, content, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load(content, name)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_all_wrong_rows_are_in_one_message(load, name):
    cells = [("a.mp4", "5", "2"), ("b.mp4", "0", "1"), ("c.mp4", "x", "1"), ("../d.mp4", "0", "1")]
    cells += [(f"{n}.mp4", "1", "1") for n in range(40)]
    columns = ("video", "start_seconds", "end_seconds")
    separator = "," if name == "a.csv" else "\t"
    content = "\n".join(map(separator.join, [columns, *cells]))
    if name == "a.jsonl":
        content = "\n" + jsonl(*(dict(zip(columns, row, strict=True)) for row in cells))
    with pytest.raises(ValueError) as error:
        load(content, name, modalities=())
    message = str(error.value)
    assert f"{name}: 43 rows are wrong. Line 2: `end_seconds` is 2.0, which is not after the start, 5.0." in message
    assert "Line 4: `start_seconds` must be a time" in message and "Line 5: the path '../d.mp4'" in message
    assert (
        message.endswith(
            "And 38 more, in the lines 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, "
            "24, 25, 26, 27, …."
        )
        and "\n" not in message
    )
    assert "Line 3" not in message


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_text_of_a_link_is_not_a_manifest(load, tmp_path, name, end):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/1f0c").write_text("video,caption\na.mp4,b\n")
    with pytest.raises(ValueError, match=f"{name}: contains only the path of a file.*or pass blobs/1f0c"):
        load(f"blobs/1f0c{end}", name)


@pytest.mark.parametrize("name", ["train.tsv", "train.jsonl"])
def test_the_reported_manifests_of_a_hub_cache(tmp_path, shared_dir, name):
    blob = {"train.tsv": "1f0c", "train.jsonl": "2e1d"}[name]
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / name).symlink_to(shared_dir / "data/reported/linked/blobs" / blob)
    dataset = RowDataset.from_manifest(tmp_path / "snapshot" / name, cache_dir=tmp_path / "cache")
    dataset.check_links()
    captions = ["a dog", "a cat"][: len(dataset)]
    assert [row["captions"] for row in dataset.rows(files="named")] == [[caption] for caption in captions]
    with pytest.raises(MediaError, match="row 0 .* does not exist"):
        dataset[0]


def test_the_reported_tables(tmp_path, shared_dir):
    folder = shared_dir / "data/reported/manifests"

    def load(name: str) -> RowDataset:
        dataset = RowDataset.from_manifest(folder / name, cache_dir=tmp_path / "cache")
        assert len(list(dataset)) == len(dataset)  # all files are there
        return dataset

    captions = ['"oh no, he shouts', "a dog barks", 'and she says wait"', "a cat sleeps"]
    assert list(load("quotes.tsv").captions()) == captions
    assert Path(load("title.csv")[0]["video"]).name == "Intro, part 1: hello.mp4"
    with pytest.raises(ValueError, match="latin1.csv, line 2: is not UTF-8 text"):
        load("latin1.csv")
    answers = RowDataset.from_manifest(folder / "answers_int.jsonl", cache_dir=tmp_path / "cache", **QUESTION_COLUMNS)
    assert answers.column("answer") == ["0", "2", "3", "2"]


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match="train.csv: no such manifest file"):
        RowDataset.from_manifest(tmp_path / "train.csv")


def test_only_the_modalities_of_the_model_need_columns(load):
    dataset = load("video,label\naudio0.mp4,1\n", modalities=("audio", "video"))
    assert dataset[0]["captions"] == []
    assert len(load("caption\na cat\n", modalities=("text",))) == 1


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/etc/passwd", "is absolute and not below"),
        ("C:\\clips\\a.mp4", "looks like a URL|is absolute"),
        ("\\\\server\\a.mp4", "is absolute"),
        ("../a.mp4", r"leaves its folder by '\.\.'"),
        ("a/../../b.mp4", r"leaves its folder by '\.\.'"),
        ("a\\..\\..\\b.mp4", r"leaves its folder by '\.\.'"),
        ("http://example.org/a.mp4", "URL or an FFmpeg protocol"),
        ("concat:a.mp4|b.mp4", "URL or an FFmpeg protocol"),
        ("subfile,,start,0,end,9,,:a.mp4", "URL or an FFmpeg protocol"),
        ("subfile,start,0,end,9:a.mp4", "URL or an FFmpeg protocol"),
        ("file:a.mp4", "URL or an FFmpeg protocol"),
        ("DATA:text/plain,abc", "URL or an FFmpeg protocol"),
        ("pipe:0", "URL or an FFmpeg protocol"),
        ("a\0.mp4", "NUL"),
    ],
)
@pytest.mark.parametrize("column", ["video", "audio", "text"])
def test_paths_that_leave_their_root_are_refused(load, path, problem, column):
    row = {"video": "audio0.mp4"} | {column: path}
    with pytest.raises(ValueError, match=problem) as error:
        load(jsonl(row), "a.jsonl", modalities=())
    assert "a.jsonl, line 1" in str(error.value) and f"`{column}_root`" in str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        *("dog,cat.mp4", "clip 12:30.mp4", "a/../b.mp4", "..a.mp4", "ünïcode.mp4", "100%.mp4"),
        *("Intro, part 1: hello.mp4", "Episode 2: cats.mp4", "Intro: hello.mp4", "Subfile, part 1.mp4"),
        *("./Re:Zero.mp4", "./a,b:c.mp4", "./C: the drive.mp4"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_ordinary_names_are_accepted(load, tmp_path, path, name):
    content = jsonl({"video": path, "label": "a"})
    if name != "a.jsonl":
        content = f'video,label\n"{path}",b\n' if name == "a.csv" else f"video\tlabel\n{path}\tb\n"
    if "/" not in path.removeprefix("./"):
        (tmp_path / path).write_bytes(b"x")
        assert Path(load(content, name, modalities=(), roots={"video": tmp_path})[0]["video"]) == tmp_path / path
    assert len(load(content, name, modalities=())) == 1


def test_an_error_explains_how_to_write_names_that_look_like_a_protocol(load):
    with pytest.raises(ValueError, match="looks like a URL or an FFmpeg protocol; a file of that name is written './"):
        load("video,caption\nRe:Zero.mp4,a\n")


@pytest.fixture
def linked(tmp_path, media_dir) -> Path:
    """Make a folder with a file, and links to it, to a file and a folder elsewhere, and to itself."""
    root = tmp_path / "videos"
    root.mkdir()
    (root / "inside.mp4").write_bytes(b"x")
    (root / "link_inside.mp4").symlink_to(root / "inside.mp4")
    (root / "link_outside.mp4").symlink_to(media_dir / "audio0.mp4")
    (root / "folder_outside").symlink_to(media_dir)
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    return root


def test_links_may_not_leave_the_root(load, linked, tmp_path):
    linked_root = tmp_path / "linked"
    linked_root.symlink_to(linked)
    names = ("link_inside", "link_outside", "loop", "folder_outside/audio0")
    content = jsonl(*({"video": f"{name}.mp4", "caption": "a"} for name in names))
    dataset = load(content, "a.jsonl", roots=linked_root)
    assert dataset[0]["video"] == str(linked / "inside.mp4")
    with pytest.raises(ValueError, match=r"row 1 \(line 2, id '1'\).*leaves its folder.*`follow_links=True` .*it\.$"):
        dataset[1]
    with pytest.raises(MediaError, match="row 2"):
        dataset[2]
    with pytest.raises(ValueError, match="row 3 .*leaves its folder"):
        dataset[3]
    message = r"row 1 \(line 2.*leaves its folder for .*audio0.mp4.*`follow_links=True`.* 1 other rows"
    with pytest.raises(ValueError, match=message):
        dataset.check_links()
    with pytest.raises(ValueError, match=message):
        next(dataset.rows(files="named"))
    load(content, "a.jsonl", roots=linked_root, max_samples=1).check_links()


def test_links_are_followed_on_request_and_keep_their_names(load, linked, media_dir):
    names = ("link_outside", "folder_outside/audio0", "inside")
    content = jsonl(*({"video": f"{name}.mp4", "caption": "a"} for name in names))
    dataset = load(content, "a.jsonl", roots=linked, follow_links=True)
    dataset.check_links()
    assert [row["video"] for row in dataset] == [str(linked / f"{name}.mp4") for name in names]
    assert [dataset.relative_path(row, "video") for row in dataset] == [f"{name}.mp4" for name in names]


def test_a_link_with_the_name_of_its_target_suggests_a_root_that_works(load, tmp_path):
    (tmp_path / "storage/clips").mkdir(parents=True)
    (tmp_path / "storage/clips/a.mp4").write_bytes(b"x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/clips").symlink_to(tmp_path / "storage/clips")
    content = jsonl({"video": "clips/a.mp4", "caption": "a"})
    with pytest.raises(ValueError, match=f"goes through a link .*, or pass {tmp_path}/storage as the root of the col"):
        load(content, "a.jsonl", roots=tmp_path / "mine").check_links()
    load(content, "a.jsonl", roots=tmp_path / "storage").check_links()


def test_links_may_lead_from_one_root_to_another(load, linked, media_dir):
    dataset = load(jsonl({"video": "link_outside.mp4", "caption": "a"}), "a.jsonl", roots={"video": linked})
    dataset.check_links()
    assert dataset[0]["video"] == str(linked / "link_outside.mp4")  # its audio_root is media_dir


@pytest.mark.parametrize("repository", ["datasets--o--n", "models--o--n", "mine"])
@pytest.mark.parametrize("root", ["", "videos"])
def test_links_of_a_snapshot_lead_to_its_blobs(tmp_path, media_dir, repository, root):
    cache = tmp_path / "hub" / repository
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs/1f0c").write_bytes((media_dir / "audio0.mp4").read_bytes())
    (cache / "blobs/2e1d").write_text("video,caption\na.mp4,a cat\n")
    snapshot = cache / "snapshots/0123/"
    (snapshot / "videos").mkdir(parents=True)
    (snapshot / "videos/a.mp4").symlink_to("../../../blobs/1f0c")
    (snapshot / "videos/train.csv").symlink_to("../../../blobs/2e1d")
    (snapshot / "train.csv").symlink_to("../../blobs/2e1d")
    (snapshot / "a.mp4").symlink_to("../../blobs/1f0c")
    (tmp_path / "data").symlink_to(snapshot)
    dataset = RowDataset.from_manifest(tmp_path / "data" / root / "train.csv", cache_dir=tmp_path / "cache")
    if repository == "mine":
        with pytest.raises(ValueError, match="leaves its folder.*`follow_links=True`"):
            dataset.check_links()
        return
    dataset.check_links()
    assert dataset[0]["video"] == str(snapshot / root / "a.mp4") and dataset[0]["captions"] == ["a cat"]
    (snapshot / root / "a.mp4").unlink()
    (snapshot / root / "a.mp4").symlink_to(media_dir / "audio0.mp4")
    with pytest.raises(ValueError, match="leaves its folder"):
        dataset.check_links()


def test_absolute_paths_below_their_root_are_accepted(load, linked, media_dir, tmp_path):
    (tmp_path / "alias").symlink_to(media_dir)
    content = jsonl(
        *({"video": f"{folder}/audio0.mp4", "caption": "a"} for folder in (media_dir, tmp_path / "alias", "."))
    )
    for root in (media_dir, tmp_path / "alias", media_dir.parent):
        dataset = load(
            content.replace("./", f"{media_dir.name}/" * (root == media_dir.parent)),
            roots={"video": root},
            name="a.jsonl",
        )
        dataset.check_links()
        assert {row["video"] for row in dataset} == {str(media_dir / "audio0.mp4")}
    outside = {"video": f"{media_dir}/../x.mp4", "caption": "a"}
    for content in (
        jsonl({"video": "/x.mp4", "caption": "a"}, outside),
        f"video,caption\n/x.mp4,a\n{outside['video']},b\n",
    ):
        name = "a.jsonl" if content[0] == "{" else "a.csv"
        with pytest.raises(ValueError, match="2 rows are wrong. Line .: .*is absolute and not below .*`video_root`"):
            load(content, name)
    link = {"video": f"{linked}/link_outside.mp4", "caption": "a"}
    with pytest.raises(ValueError, match="leaves its folder"):
        load(jsonl(link), "a.jsonl", roots=linked).check_links()


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_files_are_found_whether_their_accents_are_composed_or_not(load, tmp_path, media_dir, written, stored, name):
    folder = tmp_path / unicodedata.normalize(stored, "vidéos")
    folder.mkdir()
    file = folder / unicodedata.normalize(stored, "café.mp4")
    file.write_bytes(b"x")
    cell = unicodedata.normalize(written, "vidéos/café.mp4")
    separator = "\t" if name == "a.tsv" else ","
    content = jsonl({"video": cell}) if name == "a.jsonl" else f"video{separator}label\n{cell}{separator}b\n"
    dataset = load(content, name, modalities=(), roots={"video": tmp_path})
    assert dataset[0]["video"] == next(dataset.rows(files="named"))["video"] == str(file)
    file.unlink()
    with pytest.raises(MediaError, match="does not exist"):
        dataset[0]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("video,caption\n a.mp4,x\n", "a.csv"),
        ('caption,video\nx," a.mp4"\n', "a.csv"),
        ("caption\tvideo\nx\t a.mp4\n", "a.tsv"),
        (jsonl({"video": " a.mp4", "caption": "x"}), "a.jsonl"),
    ],
)
def test_names_may_begin_with_a_space(load, tmp_path, content, name):
    (tmp_path / " a.mp4").write_bytes(b"x")
    dataset = load(content, name, roots={"video": tmp_path})
    assert dataset[0]["video"] == str(tmp_path / " a.mp4")
    (tmp_path / " a.mp4").rename(tmp_path / "a.mp4")  # a space may also be mere formatting
    assert dataset[0]["video"] == str(tmp_path / "a.mp4")
    assert dataset[0]["group"] == "video=a.mp4"


def test_a_missing_file_names_row_and_path(load, media_dir):
    dataset = load("video,caption\naudio0.mp4,a\nnowhere.mp4,b\n,c\n")
    assert dataset[0]["index"] == 0  # read lazily: other rows can be used
    with pytest.raises(
        MediaError, match=r"train.csv, row 1 \(line 3, id '1'\).*nowhere.mp4 does not exist.*video_root"
    ):
        dataset[1]
    assert [len(list(dataset.rows(files=files))) for files in ("named", "none")] == [3, 3]


def test_a_folder_is_not_a_file(load, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match="folder.mp4 is not a regular file"):
        load("video,caption\nfolder.mp4,a\n", roots={"video": tmp_path})[0]


@pytest.mark.parametrize(("content", "message"), [(b" \n", "the caption is empty"), (b"\xff\xfe", "UTF-8")])
def test_a_bad_text_file_is_named(load, tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    row = load("video,text\naudio0.mp4,bad.txt\n", roots={"text": tmp_path})[0]
    with pytest.raises(MediaError, match=f"bad.txt.*{message}"):
        row_captions(row)


def test_clips_to_manifests(tmp_path):
    clip = {"file": "videos/a.mp4", "captions": ["x", "y"], "label": "l", "question": "q", "answer": "a", "width": 3}
    (tmp_path / "clips.jsonl").write_text(
        jsonl({"id": "1", "split": "train", **clip}, {"id": "2", "split": "test", **clip})
    )
    paths = clips_jsonl_to_manifests(tmp_path / "clips.jsonl", tmp_path / "out")
    assert {name: path.name for name, path in paths.items()} == {
        "train": "train.jsonl",
        "validation": "validation.jsonl",
    }
    assert json.loads(paths["validation"].read_text()) == {
        "id": "2",
        "video": "videos/a.mp4",
        "captions": ["x", "y"],
        "label": "l",
        "question": "q",
        "answer": "a",
    }
    odd = {**clip, "id": "3", "split": "test", "captions": ["a\u2028b"]}
    (tmp_path / "clips.jsonl").write_text(json.dumps(odd, ensure_ascii=False), encoding="utf-8")
    paths = clips_jsonl_to_manifests(tmp_path / "clips.jsonl", tmp_path / "out")
    assert json.loads(paths["validation"].read_text(encoding="utf-8"))["captions"] == ["a\u2028b"]
    (tmp_path / "clips.jsonl").write_text(jsonl({"id": "1", "split": "dev", **clip}))
    with pytest.raises(ValueError, match="line 1: 'dev' is missing, or is not one of the splits"):
        clips_jsonl_to_manifests(tmp_path / "clips.jsonl", tmp_path / "out")


def test_the_real_clips(tmp_path, shared_dir):
    clips = shared_dir / "data" / "clips"
    paths = clips_jsonl_to_manifests(clips / "clips.jsonl", tmp_path)
    loaded = {
        name: RowDataset.from_manifest(path, roots={"video": clips}, cache_dir=tmp_path / "cache")
        for name, path in paths.items()
    }
    assert {name: len(dataset) for name, dataset in loaded.items()} == {"train": 36, "validation": 16}
    for dataset in loaded.values():
        assert len(list(dataset)) == len(dataset)  # all files are there
    assert loaded["train"][0]["label"] == "coughing"


VALUES = [
    *((0, "0"), (2, "2"), (-3, "-3"), (1.5, "1.5"), (2.0, "2.0"), (True, "true"), (False, "false")),
    *((" two ", "two"), ("0", "0"), ("", None), ("  ", None), (None, None), ("None", "None")),
]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize(("value", "text"), VALUES)
def test_names_are_read_the_same_way_in_every_column_and_format(tmp_path, media_dir, value, text, name):
    row = {"video": "audio0.mp4", "question": " q ", **dict.fromkeys(("id", "group", "answer", "answer_type"), value)}
    cells = ["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()]
    separator = "," if name == "a.csv" else "\t"
    content = f"{separator.join(row)}\n{separator.join(cells)}\n" if name != "a.jsonl" else jsonl(row)
    (tmp_path / name).write_text(content)
    dataset = RowDataset.from_manifest(
        tmp_path / name,
        roots={"video": media_dir},
        cache_dir=tmp_path / "cache",
        **QUESTION_COLUMNS,
    )
    read = dataset[0]
    assert read == next(dataset.rows(files="named"))
    assert (read["id"], read["group"]) == (text or "0", text or "video=audio0.mp4")
    assert (read["answer"], read["answer_type"], read["captions"], read["question"]) == (text, text, ["q"], "q")
    assert question_pairs(dataset) == ([] if text is None else [("q", text)]) and list(dataset.captions()) == ["q"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": ["two"]}, r"`answer` must be a string, a number, true or false, got \['two'\]"),
        ({"answer": {"a": 1}}, "`answer` must be a string, a number"),
        ({"answer": float("nan")}, "`answer` must be .* got nan"),
        ({"answer_type": [1]}, "`answer_type` must be a string, a number"),
        ({"id": float("inf")}, "`id` must be .* got inf"),
        ({"group": [1]}, "`group` must be .*"),
        ({"question": 3}, "`question` must be a string, got 3"),
        ({"question": " "}, "`question` must be a text, but is empty"),
        ({"question": None}, "`question` must be a text, but is empty"),
        ({"caption": 3}, "`caption` must be a string, got 3"),
        ({"captions": ["a", 3]}, "`captions` must be a JSON list of non-empty strings"),
        ({"video": True}, "`video` must be a string, got True"),
        ({"start_seconds": True}, "`start_seconds` must be a time in seconds, 0 or more, got True"),
        ({"start_seconds": [1]}, "`start_seconds` must be a time"),
        ({"end_seconds": 10**400}, "`end_seconds` must be a time in seconds, 0 or more, got 1000.*…"),
    ],
)
def test_other_values_are_refused_with_their_line(tmp_path, row, message):
    rows = [{"video": "a.mp4", "question": "q", "answer": "b"} | change for change in ({}, row)]
    (tmp_path / "a.jsonl").write_text(jsonl(*rows))
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {message}"):
        RowDataset.from_manifest(
            tmp_path / "a.jsonl",
            cache_dir=tmp_path / "cache",
            **QUESTION_COLUMNS,
        )


def test_columns_of_another_task_are_passed_on(load):
    for value in (0, ["a", "b"], {"c": 1.5}, None):
        row = {"video": "audio0.mp4", "caption": "a", "answer": value, "answer_type": value}
        read = load(jsonl(row), "a.jsonl")[0]
        assert (read["answer"], read["answer_type"]) == (value, value)
