"""Video classification from the command line to predictions: columns, labels, training, measurements and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import simple_multimodal as smm
from simple_multimodal.cli import main
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.evaluation.classification import multi_label_result
from simple_multimodal.media.errors import MediaError
from simple_multimodal.tasks.labels import read_labels
from simple_multimodal.tasks.video_classification.targets import LABEL_COLUMNS
from tests.processes import launch
from tests.training import tiny_run
from tests.training.tiny_run import flags

LABELS = [["cat"], ["dog", "cat"], [], ["bell"], ["bell"], ["dog"], None]
ONE = ["cat", "dog", "bell", "bell", "dog", "cat", None]
NUM_KNOWN = 6
CHARADES_LABELS = [[], ["dog", "cat"], ["cat"], ["bell"], ["bell"], ["dog"]]


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return tiny_run.write_clips(tmp_path_factory.mktemp("classification") / "clips")


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> list[str]:
    configs = tiny_run.write_configs(tmp_path_factory.mktemp("configs"))
    settings = flags(cache_dir=tmp_path_factory.mktemp("cache"), max_steps=2, task="video_classification")
    return [*tiny_run.config_flags(configs), *settings]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(clips: Path, column: str, values: list) -> list[dict]:
    """Rows with text, audio and video, of which some lack one; the last one has no label."""
    rows = []
    for number, value in enumerate(values):
        row = {"id": f"r{number}", "video": str(clips / f"video/{number}.mp4"), column: value}
        row |= {} if number == 1 else {"caption": tiny_run.CAPTIONS[number]}
        row |= {"audio": None if number == 2 else str(clips / f"audio/{number}.wav")}
        rows.append(row)
    return rows


def data_of(folder: Path, clips: Path, column: str, values: list, **given) -> list[str]:
    file = write_rows(folder / f"{column}.jsonl", rows_of(clips, column, values))
    return flags(train_file=file, validation_file=file, video_root=clips, audio_root=clips, **given)


@pytest.fixture(scope="session")
def many(clips, start, tmp_path_factory) -> Path:
    """A model for any number of labels."""
    folder = tmp_path_factory.mktemp("many")
    tiny_run.run(*data_of(folder, clips, "labels", LABELS), *start, *flags(output_dir=folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def one(clips, start, tmp_path_factory) -> Path:
    """A model for one label."""
    folder = tmp_path_factory.mktemp("one")
    tiny_run.run(*data_of(folder, clips, "label", ONE), *start, *flags(output_dir=folder / "model"))
    return folder / "model"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["one", "many"])
def test_a_model_keeps_its_labels_and_is_measured_over_labelled_rows(request, name):
    folder = request.getfixturevalue(name)
    config, results = read(folder / "config.json"), read(folder / "evaluation.json")
    assert config["label2id"] == {"bell": 0, "cat": 1, "dog": 2} and config["task"] == "video_classification"
    assert config["problem_type"] == ("single" if name == "one" else "multi") + "_label_classification"
    counts = {"rows": NUM_KNOWN, "clips": NUM_KNOWN, "classes": 3, "rows_without_labels": 1}
    assert results["counts"] == counts
    assert results["intervals"].keys() >= {results["primary_metric"], f"text_only_{results['primary_metric']}"}
    assert results["primary_metric"] == ("top1_accuracy" if name == "one" else "mAP")
    assert {"loss", "classification_loss"} <= results["metrics"].keys()
    assert "r0" in (folder / "report.html").read_text()
    assert "VideoClassifier" in (folder / "README.md").read_text()


def test_labels_have_the_order_of_their_file_and_a_saved_model_keeps_them(clips, start, one, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("dog\nfish\nbell\ncat\n\n")
    data = data_of(tmp_path, clips, "label", ONE)
    named = flags(labels_file=file)
    tiny_run.run(*data, *start, *named, *flags(output_dir=tmp_path / "model"))
    assert read(tmp_path / "model/config.json")["label2id"] == {"dog": 0, "fish": 1, "bell": 2, "cat": 3}
    again = flags(model_name_or_path=tmp_path / "model", output_dir=tmp_path / "more", do_eval=True, do_train=False)
    again += flags("--use_cpu", "--disable_tqdm")
    assert tiny_run.run(*data, *again, *named)["eval_top1_accuracy"] <= 1
    file.write_text("dog\nbell\nfish\ncat\n")
    with pytest.raises(ValueError, match="other labels than those of labels_file=.*in another order"):
        tiny_run.run(*data, *again, *named)


def test_the_losses_of_options_reach_the_model(clips, start, tmp_path):
    data = data_of(tmp_path, clips, "labels", LABELS)
    settings = flags(output_dir=tmp_path / "model", multi_label_loss="asymmetric", max_steps=1, eval_strategy="no")
    tiny_run.run(*data, *start, *settings, "--do_train")
    config = read(tmp_path / "model/config.json")
    assert [config[name] for name in ("positive_focus", "negative_focus", "negative_margin")] == [0.0, 4.0, 0.05]
    smoothed = flags(output_dir=tmp_path / "smooth", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="--label_smoothing_factor is for one label per clip"):
        tiny_run.run(*data, *start, *smoothed)
    data = data_of(tmp_path, clips, "label", ONE)
    plain = tiny_run.run(*data, *start, *flags(output_dir=tmp_path / "plain"))
    smooth = tiny_run.run(*data, *start, *smoothed)
    assert plain["train_loss"] != smooth["train_loss"]
    with pytest.raises(ValueError, match="--label_smoothing_factor would have no effect: MultimodalForPreTraining"):
        tiny_run.run(*data, *start, *smoothed, *flags(task="pretraining"))


def test_a_checkpoint_of_another_task_provides_towers_and_fusion(clips, start, tmp_path):
    data = data_of(tmp_path, clips, "labels", LABELS)
    base = flags(output_dir=tmp_path / "base", task="retrieval", max_steps=1)
    tiny_run.run(*data, *start, *base, "--do_train")
    settings = flags("--use_cpu", "--disable_tqdm", "--do_train", model_name_or_path=tmp_path / "base")
    settings += flags(output_dir=tmp_path / "out", task="video_classification", max_steps=1, learning_rate=0)
    tiny_run.run(*data, *settings)
    base_weights = smm.MultimodalModel.from_pretrained(tmp_path / "base").state_dict()
    own_weights = smm.MultimodalModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(own_weights[name], value) for name, value in base_weights.items())


@pytest.mark.parametrize("name", ["one", "many"])
def test_predictions_are_those_of_the_evaluation_and_of_single_clips(request, name, clips, tmp_path):
    folder = request.getfixturevalue(name)
    classifier = smm.VideoClassifier.from_pretrained(folder)
    rows = rows_of(clips, "label", ONE)
    several = classifier(rows, top_k=3)
    for row, found in zip(rows, several, strict=True):
        (alone,) = classifier(row, top_k=3)
        assert [label["label"] for label in alone] == [label["label"] for label in found]
        scores = [label["score"] for label in found]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3
        assert scores == pytest.approx([label["score"] for label in alone], abs=1e-5)
    if name == "one":
        assert sum(label["score"] for label in several[0]) == pytest.approx(1)
    file = str(clips / "video/0.mp4")
    request_with_text = {"clip": file, "text": "a cat purrs"}
    ((plain,), (told,), (again,)) = classifier(
        [file, request_with_text, {"video": file, "caption": "a cat purrs"}], top_k=1
    )
    assert told == again and told["score"] != plain["score"]
    assert classifier([]) == []
    threshold = sorted(label["score"] for label in several[0])[1]
    assert len(classifier(rows[0], threshold=threshold)[0]) == 2
    each = classifier.classify_each(clips / "video", top_k=1)
    assert each["0.mp4"] == [plain] and len(each) == tiny_run.NUM_ROWS
    with pytest.raises(ValueError, match="`threshold` must be from 0 to 1, got 1.5"):
        classifier(file, threshold=1.5)
    with pytest.raises(ValueError, match="`top_k` must be 1 or more, got 0"):
        classifier(file, top_k=0)
    with pytest.raises(MediaError, match="absent.mp4"):
        classifier(str(tmp_path / "absent.mp4"))


def test_the_verb_prints_the_labels_of_each_clip(many, clips, capsys):
    arguments = ["classify", str(many), str(clips / "video/0.mp4"), str(clips / "video/1.mp4"), "--top_k", "2"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = smm.VideoClassifier.from_pretrained(many).classify_each(
        [clips / "video/0.mp4", clips / "video/1.mp4"], top_k=2
    )
    for line, (name, labels) in zip(lines, expected.items(), strict=True):
        rounded = [{**label, "score": round(label["score"], 6)} for label in labels]
        assert line == {"clip": name, "labels": rounded}
    assert main([*arguments, "--threshold", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["labels"] == []


@pytest.mark.parametrize("name", ["one", "many"])
def test_several_processes_measure_the_same(request, name, clips, tmp_path):
    folder = request.getfixturevalue(name)
    column, values = ("label", [*ONE[:-1], "bell"]) if name == "one" else ("labels", [*LABELS[:-1], ["bell"]])
    assert len(values) % 2 and len(values) % 3
    data = data_of(tmp_path, clips, column, values)
    tokens = [*data, *flags("--use_cpu", "--disable_tqdm", model_name_or_path=folder, per_device_eval_batch_size=1)]
    expected = tiny_run.run(*tokens, "--do_eval", *flags(output_dir=tmp_path / "1"))
    for number in (2, 3):
        ended = launch(number, tiny_run.run, *tokens, "--do_eval", *flags(output_dir=tmp_path / str(number)))
        assert ended.returncode == 0, ended.stderr
        found = read(tmp_path / str(number) / "evaluation.json")["metrics"]
        assert found == {name: expected[f"eval_{name}"] for name in found}


def test_a_clip_that_cannot_be_read_counts_as_wrong(one, clips, tmp_path):
    rows = [row for row in rows_of(clips, "label", ONE) if row["label"] is not None]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    good = smm.evaluate(one, rows)
    rows[0] |= {"video": str(tmp_path / "broken.mp4")}
    found = smm.evaluate(one, rows)
    assert found.counts["bad_samples"] == 1 and found.counts["rows"] == good.counts["rows"] == NUM_KNOWN
    assert found.metrics["top1_accuracy"] <= good.metrics["top1_accuracy"]
    assert [sample.id for sample in found.bad_samples] == ["r0"]


WRONG = [
    ("label", ["cat", ["dog", "cat"], *ONE[2:]], "line 2: `label` must be a string"),
    ("labels", [["cat"], "dog", *LABELS[2:]], "line 2: `labels` must be a JSON list"),
    ("labels", [["cat"], ["dog", " "], *LABELS[2:]], "line 2: `labels` contains a blank name"),
    ("label", [None] * 7, "no row has a label|has 0 different labels"),
    ("labels", [[]] * 7, "has 0 different labels; at least two are needed"),
    ("label", ["cat"] * 7, "has 1 different labels; at least two are needed"),
    ("kind", ONE, "has neither a column `label` nor `labels`"),
]


@pytest.mark.parametrize(("column", "values", "message"), WRONG, ids=[f"{c} {m[:30]}" for c, _, m in WRONG])
def test_wrong_labels_are_refused(column, values, message, clips, start, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_run.run(*data_of(tmp_path, clips, column, values), *start, *flags(output_dir=tmp_path / "out"))
    assert not (tmp_path / "out/model.safetensors").exists()


def test_rows_with_both_columns_or_the_other_one_or_unknown_labels_are_refused(one, many, clips, start, tmp_path):
    rows = [{**row, "labels": []} for row in rows_of(clips, "label", ONE)]
    with pytest.raises(ValueError, match="has both `label` and `labels`"):
        smm.evaluate(one, rows)
    with pytest.raises(ValueError, match="made for the column `label`, but rows has `labels`"):
        smm.evaluate(one, rows_of(clips, "labels", LABELS))
    with pytest.raises(ValueError, match="made for the column `labels`, but rows has `label`"):
        smm.evaluate(many, rows_of(clips, "label", ONE))
    with pytest.raises(ValueError, match="has 1 labels that the model does not know: 'fish'.*--labels_file"):
        smm.evaluate(many, rows_of(clips, "labels", [["fish"], *LABELS[1:]]))
    file = tmp_path / "labels.txt"
    file.write_text("dog\nbell\n")
    data = data_of(tmp_path, clips, "label", ONE)
    with pytest.raises(ValueError, match="1 labels that the model does not know: 'cat'"):
        tiny_run.run(*data, *start, *flags(labels_file=file, output_dir=tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", "", "has 0 labels"),
        ("labels.txt", "dog\n", "has 1 labels"),
        ("labels.txt", "dog\ncat\ndog\n", "contains a label twice: 'dog'"),
        ("labels.txt", "dog\n\ncat\n", "a label is blank"),
        ("labels.json", '["dog", 3]', "not a string"),
        ("labels.json", '"dog"', "not a string"),
        ("labels.json", '{"dog": 0, "cat": 2}', "numbered from 0"),
        ("labels.json", '{"dog": 0, "cat": [1]}', "numbered from 0"),
        ("labels", '{"dog": 0, "dog": 1}', "contains a label twice: 'dog'"),
        ("labels.json", '["dog"', "cannot be read as text or JSON"),
    ],
)
def test_wrong_label_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name, "labels_file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "[dog]\n cat \n\n"),
        ("labels.txt", "\ufeff[dog]\r\ncat"),
        ("labels.json", '["[dog]", "cat"]'),
        ("answers", '{"cat": 1, "[dog]": 0}'),
    ],
)
def test_labels_are_read_from_lines_and_json(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_labels(tmp_path / name, "labels_file") == ["[dog]", "cat"]


def test_a_set_of_rows_without_any_label_has_a_loss_but_no_average_precision(many, clips):
    rows = rows_of(clips, "labels", [[], [], *[None] * 5])
    found = smm.evaluate(many, rows)
    assert found.primary_metric is None and found.counts["rows"] == 2
    (one,) = smm.evaluate(many, rows_of(clips, "labels", [["cat"], *[None] * 6])).rows[1:2]
    assert one["average_precision"] == 1.0 and one["num_rows"] == 1


def test_a_table_may_hold_labels_as_cells(clips, start, tmp_path):
    lines = ["id\tvideo\tlabels"]
    lines += [f"r{n}\t{clips}/video/{n}.mp4\t{'' if v is None else json.dumps(v)}" for n, v in enumerate(LABELS)]
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    data = flags(train_file=file, validation_file=file, video_root=clips, modalities=["video"])
    absent = [place for place, token in enumerate(start) if token in ("--text_config_name", "--audio_config_name")]
    configs = [token for place, token in enumerate(start) if place not in absent and place - 1 not in absent]
    tiny_run.run(*data, *configs, *flags(output_dir=tmp_path / "out", max_steps=1))
    assert read(tmp_path / "out/evaluation.json")["counts"]["rows_without_labels"] == 1


def test_a_resumed_run_gives_the_same_weights(clips, start, tmp_path):
    data = data_of(tmp_path, clips, "labels", LABELS)
    tokens = [*data, *start, "--do_train", *flags(save_steps=1, max_steps=3, save_strategy="steps")]
    tiny_run.run(*tokens, *flags(output_dir=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("checkpoint-2", "checkpoint-3"):
        shutil.rmtree(tmp_path / "part" / name)
    (tmp_path / "part/model.safetensors").unlink()
    tiny_run.run(*tokens, *flags(output_dir=tmp_path / "part"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert weights[0] == weights[1]


def test_finished_parts_are_not_computed_again(many, clips, tmp_path, monkeypatch):
    classifier = smm.VideoClassifier.from_pretrained(many, batch_size=2)
    rows = list(RowDataset(rows_of(clips, "labels", LABELS), **LABEL_COLUMNS).rows(files="named"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows[0] = rows[0] | {"video": str(tmp_path / "broken.mp4")}
    whole = classifier.classify_rows(rows)
    parts = tmp_path / "parts"
    classifier.classify_rows(rows, partial=parts)
    computed = []
    plain = type(classifier.model).class_logits
    monkeypatch.setattr(
        type(classifier.model),
        "class_logits",
        lambda self, batch: computed.extend(batch["row_ids"].tolist()) or plain(self, batch),
    )
    again = classifier.classify_rows(rows, partial=parts)
    assert computed == []
    for found in (again, classifier.classify_rows(rows)):
        torch.testing.assert_close(found.logits, whole.logits, equal_nan=True, rtol=0, atol=0)
        assert found.bad_samples == whole.bad_samples and not found.is_read[0]
    computed.clear()
    rows[1] = rows[1] | {"captions": ["another text"]}  # it is part of the input
    classifier.classify_rows(rows, partial=parts)
    assert computed == list(range(len(rows)))


def test_several_views_are_one_prediction(many, clips):
    classifier = smm.VideoClassifier.from_pretrained(many)
    rows = list(RowDataset(rows_of(clips, "labels", LABELS), **LABEL_COLUMNS).rows(files="named"))[:4]
    one = classifier.classify_rows(rows)
    several = classifier.with_views(2, 3, "max").classify_rows(rows)
    assert several.logits.shape == one.logits.shape and not torch.equal(several.logits, one.logits)
    assert classifier.views.name is None
    torch.testing.assert_close(classifier.with_views().classify_rows(rows).logits, one.logits, rtol=0, atol=0)
    evaluation = smm.evaluate(many, rows_of(clips, "labels", LABELS), eval_views=2)
    assert evaluation.metrics["mAP"] <= 1


@pytest.fixture
def charades(clips, tmp_path) -> Path:
    """A prepared folder of the protocol, whose labels are those of the model; the first row has no action."""
    rows = rows_of(clips, "labels", CHARADES_LABELS)
    for number, row in enumerate(rows):
        del row["audio"]  # that of the video
        row["length_seconds"] = (6 + number) / 25
        row["actions"] = [{"label": label, "start_seconds": 0.1, "end_seconds": 0.2} for label in row["labels"]]
    folder = tmp_path / "charades"
    folder.mkdir()
    write_rows(folder / "test.jsonl", rows)
    split = {"clips": [row["video"] for row in rows], "missing": []}
    record = {"protocol": "charades", "splits": {"test": split}, "deviations": ["test: three classes"]}
    (folder / "protocol.json").write_text(json.dumps(record))
    return folder


def test_charades_is_measured_as_its_authors_do_and_both_submission_files_are_written(many, charades, clips, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(many, model)
    (model / "training_clips.json").unlink()  # the clips of this test are those of training
    arguments = ["infer", str(model), str(charades), "--output_dir", str(out), "--video_root", str(clips)]
    assert main([*arguments, "--localization_window", "0.1", "--eval_views", "2", "--view_pooling", "max"]) == 0
    written = read(out / "metrics.json")
    assert written["protocol"] == "charades+deviating+views2x1max" and written["primary_metric"] == "mAP"
    assert written["counts"]["points"] == 6 * 25
    assert {"mAP", "mAP_all_rows", "wAP", "micro_F1", "localization_mAP"} <= written["intervals"].keys()
    assert [row["label"] for row in read(out / "results.json")] == ["bell", "cat", "dog"]
    lines = [line.split() for line in (out / "classification.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == [f"r{number}" for number in range(6)] and len(lines[0]) == 1 + 3
    scores = np.array([line[1:] for line in lines], dtype=float)
    has = np.array([[label in own for label in ("bell", "cat", "dog")] for own in CHARADES_LABELS])
    again = multi_label_result(scores, has, charades=True)
    assert written["metrics"]["mAP"] == again.metrics["mAP"]
    points = [line.split() for line in (out / "localization.txt").read_text().splitlines()]
    assert [line[:2] for line in points[:26]] == [*(["r0", str(k)] for k in range(1, 26)), ["r1", "1"]]
    assert len(points) == 150 and points[0][2:] != points[24][2:]
    # A window of the whole clip has the prediction of the clip at every point.
    assert main([*arguments, "--localization_window", "9"]) == 0
    points = [line.split() for line in (out / "localization.txt").read_text().splitlines()]
    clip = (out / "classification.txt").read_text().splitlines()[1].split()
    for line in points[25:50]:
        assert np.allclose(np.array(line[2:], dtype=float), np.array(clip[1:], dtype=float), atol=1e-5)


def test_rows_that_cannot_be_localized_are_refused(many, clips):
    rows = rows_of(clips, "labels", LABELS)
    with pytest.raises(ValueError, match="Row r0 has no `actions` or no `length_seconds`"):
        smm.evaluate(many, rows, localization_window=1.0)
    rows = [{**row, "actions": [], "length_seconds": 0.2, "end_seconds": 0.1} for row in rows]
    with pytest.raises(ValueError, match="Row r0 is a segment of a file"):
        smm.evaluate(many, rows, localization_window=1.0)
