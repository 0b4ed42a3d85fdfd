"""Tests of `prepare class_folders` and `prepare path_lists`: data sets with one label per clip."""

import json
import re
import shlex
import unicodedata
from pathlib import Path

import pytest

from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.protocols import get_protocol, prepared_split
from simple_multimodal.prepare.manifests import prepare_benchmark
from tests.media.media_files import write_media
from tests.training import tiny_run
from tests.training.tiny_run import flags

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def labels_of(folder: Path) -> dict[str, dict[str, str]]:
    """Return the label of each file, by split."""
    manifests = {path.stem: rows_of(folder, path.stem) for path in sorted(folder.glob("*.jsonl"))}
    return {split: {row["video"]: row["label"] for row in rows} for split, rows in manifests.items()}


# A folder per class.


@pytest.fixture
def clips(tmp_path) -> Path:
    """Two classes in three splits, whose clips have the same file names."""
    folder = tmp_path / "clips"
    for split, numbers in (("train", (1, 2)), ("val", (1,)), ("test", (1, 2))):
        write(folder, *(f"{split}/{label}/{number}.mp4" for label in ("pole vault", "ski") for number in numbers))
    return folder


def prepare(folder: Path, **options):
    return prepare_benchmark("class_folders", None, folder.parent / "out", **{"videos": folder} | options)


def test_each_class_of_each_split_is_read(clips):
    made = prepare(clips)
    assert rows_of(clips.parent / "out", "train")[0] == {
        "id": "train/pole vault/1",
        "video": "train/pole vault/1.mp4",
        "label": "pole vault",
        "caption": None,
    }
    assert labels_of(clips.parent / "out") == {
        "test": {f"test/{label}/{n}.mp4": label for label in ("pole vault", "ski") for n in (1, 2)},
        "train": {f"train/{label}/{n}.mp4": label for label in ("pole vault", "ski") for n in (1, 2)},
        "validation": {f"val/{label}/1.mp4": label for label in ("pole vault", "ski")},
    }
    assert (clips.parent / "out/labels.txt").read_text() == "pole vault\nski\n"
    assert made.deviations == [] and made.validation_split is None
    assert made.notes == [
        f"{split}, as listed: {2 * n} rows, 2 labels; rows per label: fewest {n} (ski), most {n} (pole vault)"
        for split, n in (("train", 2), ("validation", 1), ("test", 2))
    ]


def test_the_command_names_the_folder_once(clips, capsys):
    out = clips.parent / "out"
    for flag in ("--videos", "--annotations"):
        assert main(["prepare", "class_folders", flag, str(clips), "--output", str(out)]) == 0
        text = capsys.readouterr().out
        assert "train:      4 rows, 4 clips; listed: 4 clips; protocol: no size given" in text
        assert f"--labels_file {out / 'labels.txt'} --video_root {clips}" in text
    assert main(["prepare", "class_folders", "--output", str(out)]) == 2
    assert "Give the folder of the annotations, or of the clips (--videos)" in capsys.readouterr().err


def test_a_prepared_folder_names_its_protocol(clips):
    prepare(clips)
    record = json.loads((clips.parent / "out/protocol.json").read_text())
    protocol = get_protocol(record["protocol"])
    assert (protocol.name, protocol.task) == ("class_folders", "video_classification")
    assert record["sources"] == {} and record["labels"] == ["pole vault", "ski"]
    for split in ("train", "validation", "test"):  # the same file names in all of them
        rows = RowDataset.from_manifest(
            clips.parent / f"out/{split}.jsonl",
            roots={"video": clips},
            typed_columns={"label": "name"},
            cache_dir=clips.parent / "cache",
        )
        assert {row["label"] for row in rows} == {"pole vault", "ski"}
        assert prepared_split(rows.manifest_file, rows.clip_cells()) == split


def test_a_model_is_trained_on_and_measured_on_a_prepared_folder(tmp_path):
    clips, out = tmp_path / "clips", tmp_path / "out"
    files = [f"{split}/{label}/1.mp4" for split in ("train", "val", "test") for label in ("cat", "dog", "red panda")]
    write(clips, *files)
    for number, file in enumerate(files):
        write_media(clips / file, num_frames=8, first_number=300 * number)
    prepare(clips)
    configs = tiny_run.write_configs(tmp_path)
    tiny_run.run(
        *tiny_run.config_flags({tower: configs[tower] for tower in ("video", "fusion")}),
        *flags(task="video_classification", modalities="video"),
        *flags(train_file=out / "train.jsonl", validation_file=out / "validation.jsonl"),
        *flags(labels_file=out / "labels.txt", video_root=clips, output_dir=tmp_path / "model", max_steps=2),
        *flags(
            cache_dir=tmp_path / "cache", load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch"
        ),
    )
    selected = json.loads((tmp_path / "model/run.json").read_text())["selection_split"]
    assert selected == "validation"  # although test clips have the same file names
    argv = ["infer", str(tmp_path / "model"), str(out), "--video_root", str(clips)]
    assert main([*argv, "--output_dir", str(tmp_path / "results")]) == 0
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    assert (metrics["protocol"], metrics["primary_metric"]) == ("class_folders", "top1_accuracy")
    assert metrics["primary_metric"] == get_protocol("class_folders").primary_metric


def test_training_clips_are_set_aside_without_a_validation_folder(clips):
    (clips / "val").rename(clips / ".val")
    made = prepare(clips, num_validation_clips=1, seed=1)
    assert made.validation_split == {"seed": 1, "num_clips": 1}
    assert [len(made.splits[split].clips) for split in ("train", "validation", "test")] == [3, 1, 2 * 2]
    both = (clips.parent / "out/validation.jsonl").read_bytes()
    alone = prepare_benchmark(
        "class_folders", clips, clips.parent / "alone", splits=["validation"], num_validation_clips=1, seed=1
    )
    assert list(alone.splits) == ["validation"] and (clips.parent / "alone/validation.jsonl").read_bytes() == both


def test_a_folder_of_classes_is_training_data(tmp_path):
    # "train" is a class here: its clips are directly in it.
    write(tmp_path / "clips", "train/a.mp4", "train/b.mp4", "bus/a.mp4", "bus/b.mp4")
    made = prepare(tmp_path / "clips", num_validation_clips=1)
    assert made.labels == ["bus", "train"] and sorted(made.splits) == ["train", "validation"]
    assert "no test clips are listed" in made.notes and made.deviations == []
    with pytest.raises(ValueError, match="clips: no test clips are listed. Expected are clips in train/<class>/"):
        prepare(tmp_path / "clips", splits=["test"])


def test_splits_are_known_by_either_name_and_in_any_case(clips):
    (clips / "train").rename(clips / "Train")
    (clips / "val").rename(clips / "validation")
    assert sorted(prepare(clips).splits) == ["test", "train", "validation"]
    write(clips, "val/ski/9.mp4")
    with pytest.raises(ValueError, match="both val/ and validation/ are validation clips; rename one"):
        prepare(clips)


def test_what_is_not_a_clip_is_left_out_and_counted(clips):
    write(clips, "train/ski/notes.txt", "train/ski/music.wav", "train/ski/README", "test/.hidden/1.mp4")
    write(clips, "train/ski/.3.mp4", ".cache/ski/1.mp4", "readme.md", "train/loose.mp4", "other/ski/1.mp4")
    write(clips, "train/ski/deeper/still/4.mp4")
    (clips / "train/rowing").mkdir()
    (clips / "test/.git").mkdir()
    made = prepare(clips)
    assert made.labels == ["pole vault", "ski"] and len(made.splits["train"].clips) == 5
    assert labels_of(clips.parent / "out")["train"]["train/ski/deeper/still/4.mp4"] == "ski"
    assert (
        "3 files of classes are not videos (.txt 1, .wav 1, no suffix 1), and left out: train/ski/music.wav, "
        "train/ski/notes.txt, train/ski/README" in made.notes
    )
    assert "1 clips are in sub-folders of their class: train/ski/deeper/still/4.mp4" in made.notes
    assert "1 folders have no clips, and add no class: train/rowing" in made.notes
    (unused,) = [note for note in made.notes if "do not belong to a clip" in note]
    assert unused.startswith("5 files in ") and made.deviations == []


def test_empty_files_are_missing(clips):
    write(clips, "test/ski/1.mp4", content="")
    made = prepare(clips)
    assert made.deviations == ["test: 1 of 4 clips have no usable file, so 1 rows are left out: test/ski/1"]
    assert made.splits["test"].missing == ["test/ski/1"]


def test_a_class_without_training_clips_is_reported(clips):
    write(clips, "test/rowing/1.mp4")
    made = prepare(clips)
    assert made.labels == ["pole vault", "rowing", "ski"]
    assert "train.jsonl has no row with 1 of the 3 labels: rowing" in made.notes
    assert any(
        note.startswith("train, as listed: 4 rows, 3 labels; rows per label: fewest 0 (r") for note in made.notes
    )


def test_names_of_classes_are_text_with_composed_accents(clips):
    composed, decomposed = (unicodedata.normalize(form, "Café Ü") for form in ("NFC", "NFD"))
    write(clips, f"train/{composed}/1.mp4", f"test/{decomposed}/1.mp4", "train/日本/v1.2.mp4", "train/Re:Zero/1.mp4")
    made = prepare(clips)
    assert made.labels == ["Café Ü", "Re:Zero", "pole vault", "ski", "日本"]
    assert (clips.parent / "out/labels.txt").read_text(encoding="utf-8").splitlines() == made.labels
    assert labels_of(clips.parent / "out")["test"][f"test/{decomposed}/1.mp4"] == composed
    assert "train/日本/v1.2" in made.splits["train"].clips


def test_a_file_that_looks_like_a_url_can_be_loaded(tmp_path):
    write(tmp_path / "clips", "Re:Zero/1.mp4", "Re:Zero/2.mp4", "other/1.mp4")
    made = prepare(tmp_path / "clips", splits=["train"])
    rows = RowDataset.from_manifest(
        tmp_path / "out/train.jsonl", roots={"video": tmp_path / "clips"}, modalities=("video",), cache_dir=tmp_path
    )
    assert [Path(row["video"]).name for row in rows] == ["1.mp4", "2.mp4", "1.mp4"] and made.deviations == []
    assert prepared_split(rows.manifest_file, rows.clip_cells()) == "train"


@pytest.mark.parametrize("name", ["two\nlines", " ", "caf\udce9"])
def test_a_folder_whose_name_cannot_be_a_label_is_an_error(clips, name):
    write(clips, f"train/{name}/1.mp4")
    with pytest.raises(ValueError, match="is blank, has a line break, or is not UTF-8 text; rename it"):
        prepare(clips)


def test_a_folder_without_classes_is_an_error(tmp_path):
    write(tmp_path / "clips", "1.mp4", "cat/notes.txt")
    with pytest.raises(ValueError, match="clips: no videos in folders of classes. Expected are clips in train/<class"):
        prepare(tmp_path / "clips")
    write(tmp_path / "clips", "cat/1.mp4")
    with pytest.raises(ValueError, match="clips: 1 classes; at least two are needed"):
        prepare(tmp_path / "clips")
    assert not (tmp_path / "out").exists()


def test_several_files_of_a_clip_are_one_row(clips):
    write(clips, "train/ski/1.avi")
    made = prepare(clips)
    assert len(made.splits["train"].clips) == 4
    assert "1 clips have several files; the first is used: train/ski/1" in made.notes


def test_links_are_followed_within_the_folder_and_out_of_it_on_request(clips, tmp_path):
    write(tmp_path / "elsewhere", "5.mp4", "6.mp4")
    write(clips, "pool/7.mp4")
    (clips / "train/rowing").symlink_to(clips / "pool")  # inside
    (clips / "train/ski/again").symlink_to(clips / "train")  # would never end
    assert "train/rowing/7" in prepare(clips).splits["train"].clips
    assert len(prepare(clips).splits["train"].clips) == 5
    (clips / "train/dance").symlink_to(tmp_path / "elsewhere")
    (clips / "test/ski/3.mp4").symlink_to(tmp_path / "elsewhere/6.mp4")
    (clips / "test/ski/readme.txt").symlink_to(tmp_path / "elsewhere/readme.txt")  # neither a folder nor a clip
    with pytest.raises(
        ValueError, match=r"2 links lead out of the folder: test/ski/3.mp4, train/dance. Pass --follow_l"
    ):
        prepare(clips)
    made = prepare(clips, follow_links=True)
    assert made.labels == ["dance", "pole vault", "rowing", "ski"] and len(made.splits["train"].clips) == 7
    assert "test/ski/3" in made.splits["test"].clips and "--follow_links" in made.to_text()


def test_manifests_of_a_split_that_is_gone_are_not_left_over(clips):
    prepare(clips)
    (clips / "test").rename(clips / ".test")
    with pytest.raises(ValueError, match="already has test.jsonl, which protocol.json would not describe"):
        prepare(clips)


# Lists of paths.

CLIPS = ["ski/a b.mp4", "ski/c.mp4", "row/d.mp4", "row/e.mp4"]


@pytest.fixture
def lists(tmp_path) -> Path:
    """A folder with clips, and one for lists."""
    write(tmp_path / "clips", *CLIPS)
    (tmp_path / "lists").mkdir()
    return tmp_path / "lists"


def prepare_lists(folder: Path, **options):
    options = {"videos": folder.parent / "clips", "num_validation_clips": 1} | options
    return prepare_benchmark("path_lists", folder, folder.parent / "out", **options)


@pytest.mark.parametrize(
    ("names", "train", "classes", "note"),
    [
        # numbers from 0, as the file of the classes has none
        (
            ("train.txt", "test.txt", "classes.txt"),
            ["ski/a b.mp4 1", "row/d.mp4\t0", "./ski//c.mp4   1"],
            ["row", "ski"],
            "classes.txt numbers no classes, so its lines are counted: 0 to 1",
        ),
        # UCF101: numbers from 1, and paths alone
        (
            ("trainlist01.txt", "testlist01.txt", "classInd.txt"),
            ["ski/a b.mp4 2", "row/d.mp4 1", "ski/c.mp4"],
            ["1 row", "2 ski"],
            "classInd.txt numbers its classes 1 to 2",
        ),
        # names in place of numbers
        (
            ("train_split_1.txt", "my_test_list.txt", "labels.txt"),
            ["ski/a b.mp4 ski", "row/d.mp4 row", "ski/c.mp4 ski"],
            ["row", "ski"],
            "",
        ),
        # CSV, with a header, and as PySlowFast has it, with a space
        (
            ("train.csv", "test.csv", "classes.txt"),
            ["path,label", '"ski/a b.mp4",1', "row/d.mp4,row", "ski/c.mp4,ski"],
            ["row", "ski"],
            "",
        ),
        (
            ("train.csv", "test.csv", "classes.txt"),
            ["ski/a b.mp4 1", "row/d.mp4 0", "ski/c.mp4 1"],
            ["row", "ski"],
            "",
        ),
        (
            ("train.tsv", "test.txt", "classes.txt"),
            ["ski/a b.mp4\t1", "row/d.mp4\trow", "ski/c.mp4\tski"],
            ["row", "ski"],
            "",
        ),
        # JSON
        (
            ("train.txt", "test.txt", "label_map.json"),
            ["ski/a b.mp4 5", "row/d.mp4 3", "ski/c.mp4 5"],
            ['{"ski": "5", "row": 3}'],
            "label_map.json numbers its classes 3 to 5",
        ),
        (
            ("train.txt", "test.txt", "classes.json"),
            ["ski/a b.mp4 1", "row/d.mp4 0", "ski/c.mp4 1"],
            ['["row", "ski"]'],
            "",
        ),
        # the names alone
        (("train.txt", "test.txt", None), ["ski/a b.mp4 ski", "row/d.mp4 row", "ski/c.mp4 ski"], [], ""),
    ],
)
def test_lists_are_read(lists, names, train, classes, note):
    write(lists, names[0], content="\r\n".join(train) + "\r\n\r\n")
    write(lists, names[1], content="row/e.mp4 row\n" if names[1].endswith("txt") else "row/e.mp4,row\n")
    if names[2] is not None:
        write(lists, names[2], content="\ufeff" + "\n".join(classes) + "\n")
    made = prepare_lists(lists, splits=["train", "test"], num_validation_clips=None)
    assert labels_of(lists.parent / "out") == {
        "train": {"ski/a b.mp4": "ski", "row/d.mp4": "row", "ski/c.mp4": "ski"},
        "test": {"row/e.mp4": "row"},
    }
    assert rows_of(lists.parent / "out", "train")[0]["id"] == "ski/a b"
    assert made.labels == ["row", "ski"] and made.deviations == []
    assert not note or note in made.notes
    assert sorted(json.loads((lists.parent / "out/protocol.json").read_text())["sources"]) == sorted(
        filter(None, names)
    )


def test_the_documented_commands_run(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs/recognition.md").read_text(encoding="utf-8")
    folders, lists = (shlex.split(line) for line in page.splitlines() if line.startswith("simple-multimodal prepare "))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, *re.findall(r"^videos/.*$", page, flags=re.MULTILINE))
    assert main(folders[1:]) == 0
    kinetics = labels_of(tmp_path / "datasets/kinetics")
    assert {split: list(labels.values()) for split, labels in kinetics.items()} == {
        "train": ["pole vault"],
        "validation": ["pole vault"],
        "test": ["ski jumping"],
    }
    block = page.partition("reads these examples -->\n```text\n")[2].partition("```")[0]
    for name, content in re.findall(r"^# (.*)\n((?:[^#].*\n)+)", block, flags=re.MULTILINE):
        write(tmp_path / "annotations/ucf101", name, content=content)
    clips = [line.split()[0] for line in block.splitlines() if ".avi" in line]
    write(tmp_path / "videos/ucf101", *clips)
    assert main(lists[1:]) == 0
    assert labels_of(tmp_path / "datasets/ucf101")["test"] == {clips[-1]: "PoleVault"}


def test_labels_are_in_the_order_of_their_numbers(lists):
    write(lists, "train.txt", content="ski/c.mp4 7\nrow/d.mp4 9\nrow/e.mp4 9\n")
    write(lists, "classInd.txt", content="9 row\n7 ski\n8 ice dancing\n")
    made = prepare_lists(lists)
    assert made.labels == ["ski", "ice dancing", "row"] and get_protocol(made.protocol).name == "path_lists"
    assert made.validation_split == {"seed": 0, "num_clips": 1} and "no test clips are listed" in made.notes
    assert any("of the 3 labels: ice dancing" in note for note in made.notes)


def test_clips_are_found_with_another_suffix(lists):
    write(lists, "train.txt", content="ski/c.avi ski\nrow/d.mp4 row\nrow/gone.mp4 row\n")
    made = prepare_lists(lists, splits=["train"], num_validation_clips=None)
    assert labels_of(lists.parent / "out") == {"train": {"ski/c.mp4": "ski", "row/d.mp4": "row"}}
    assert made.deviations == ["train: 1 of 3 clips have no usable file, so 1 rows are left out: row/gone"]


def test_lists_may_lie_beside_the_clips(lists):
    write(lists.parent / "clips", "train.txt", content="ski/c.mp4 ski\nrow/d.mp4 row\n")
    made = prepare_benchmark("path_lists", lists.parent / "clips", lists.parent / "out", splits=["train"])
    assert made.video_root == lists.parent / "clips" and len(made.splits["train"].clips) == 2


def test_labels_unlike_the_folders_are_reported(lists):
    """Numbers counted from 1 with a file of classes that is counted from 0."""
    write(lists, "train.txt", content="ski/c.mp4 2\nrow/d.mp4 1\nski/a b.mp4 2\n")
    write(lists, "classes.txt", content="row\nski\nswim\n")
    (line,) = prepare_lists(lists, splits=["train"], num_validation_clips=None).deviations
    assert line == (
        "train: 3 clips have another label than their folder: ski/c, row/d, ski/a b; check the numbers of classes.txt"
    )


def test_a_clip_in_two_lists_is_an_error_and_twice_in_one_is_reported(lists):
    write(lists, "train.txt", content="ski/c.mp4 ski\nrow/d.mp4 row\nski/c.mp4 row\n")
    made = prepare_lists(lists, splits=["train"], num_validation_clips=None)
    assert made.deviations == ["train.txt: 1 more than once: ski/c"]
    assert labels_of(lists.parent / "out")["train"]["ski/c.mp4"] == "ski"
    write(lists, "test.txt", content="ski/c.avi ski\n")
    with pytest.raises(ValueError, match="1 of the 1 test clips of path_lists are also training or .*: ski/c"):
        prepare_lists(lists, splits=["train", "test"], num_validation_clips=None)


@pytest.mark.parametrize(
    ("train", "classes", "message"),
    [
        (
            "ski/c.mp4 2\n",
            "row\nski\n",
            "train.txt, line 1: the number 2 is not a class of classes.txt, whose numbers are 0 to 1, counted from 0",
        ),
        ("c.mp4 0\n", "1 row\n2 ski\n", "line 1: the number 0 is not a class of classes.txt, .* are 1 to 2\\."),
        (
            "\nski/c.mp4 swim\n",
            "row\nski\nswim a\n",
            "line 2: the label 'swim' is not in classes.txt. .A label with sp",
        ),
        ("other/c.mp4\n", "row\nski\n", "line 1: has no label, and 'other/c' is not in a folder with the name of a"),
        ("../c.mp4 ski\n", "row\nski\n", "train.txt, line 1: the path '../c.mp4' in column 'path' leaves its folder"),
        ("http://a/c.mp4 ski\n", "row\nski\n", "line 1: the path 'http://a/c.mp4' .* looks like a URL"),
        (
            "/data/c.mp4 ski\n",
            "row\nski\n",
            "line 1: the path '/data/c.mp4' must be relative to the folder of the clip",
        ),
        ("a.mp4 ski\n", "row\nski\nrow\n", "classes.txt: the class 'row' is listed twice"),
        ("a.mp4 ski\n", "1 row\n2 ski\n2 swim\n", "classes.txt: 'ski' and 'swim' have the same number, 2"),
        ("a.mp4 ski\n", "\n", "classes.txt: 0 classes; at least two"),
        ("a.mp4 3\n", None, "line 1: the label is 3, but there is no file of classes"),
        ("a b.mp4\n", None, "line 1: the label is missing, but there is no file of classes"),
        ("a.mp4 ski\nb.mp4 ski\n", None, "train.txt: 1 classes; at least two are needed"),
    ],
)
def test_errors_of_lists_name_file_and_line(lists, train, classes, message):
    write(lists, "train.txt", content=train)
    if classes is not None:
        write(lists, "classes.txt", content=classes)
    with pytest.raises(ValueError, match=message):
        prepare_lists(lists)
    assert not (lists.parent / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "path,label,more\na,b,c\n", r"train.csv, line 1: must be path,label, got 3 cells"),
        ("classes.json", '{"a": 0, "a": 1, "b": 2}', "classes.json: the class 'a' is listed twice"),
        ("classes.json", '{"a": "x"}', "classes.json: a class must have a name and a whole number, got 'a' and 'x'"),
        ("classes.json", '"a"', "classes.json: must hold a list of names, or an object with the number of each name"),
        ("classes.json", '["a", 3]', "classes.json: a class must have a name and a whole number, got 3 and 1"),
        ("trainlist02.txt", "a", "several files could be the train list: train.txt, trainlist02.txt. Give a folder"),
        ("labels2.txt", "a", "several files could be the classes list: labels.txt, labels2.txt"),
    ],
)
def test_errors_of_other_files(lists, name, content, message):
    if name != "train.csv":
        write(lists, "train.txt", content="ski/c.mp4 ski\n")
    if name == "labels2.txt":
        write(lists, "labels.txt", content="ski\nrow\n")
    write(lists, name, content=content)
    with pytest.raises(ValueError, match=message):
        prepare_lists(lists)


def test_the_file_of_classes_is_not_overwritten(lists):
    write(lists, "train.txt", content="ski/c.mp4 ski\nrow/d.mp4 row\nrow/e.mp4 row\n")
    write(lists, "labels.txt", content="ski\nrow\n")
    with pytest.raises(ValueError, match="labels.txt is an annotation file; write the manifests to another folder"):
        prepare_benchmark("path_lists", lists, lists, videos=lists.parent / "clips")
