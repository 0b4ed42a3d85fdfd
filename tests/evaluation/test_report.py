"""The report page: its metrics, charts and frames, and escaped text."""

import base64
import io
import math
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simple_multimodal.evaluation import report
from simple_multimodal.evaluation.report import Example, ExampleResult, Excerpt, write_report

METRICS = {
    "eval_text_to_video_R@1": 0.8125,
    "eval_text_to_video_R@5": 0.9458,
    "eval_text_to_video_median_rank": 1.0,
    "eval_text_to_video_mean_rank": 2.108,
    "eval_text_to_video_num_queries": 240,
    "eval_text_to_video_num_candidates": 240,
    "eval_video_to_text_R@1": 0.75,
    "eval_mlm_accuracy": 0.6543,
    "eval_loss": 2.3456789,
}
LOG_HISTORY = [
    {"step": 1, "epoch": 0.1, "mlm_loss": 2.0, "loss": 3.0, "learning_rate": 1e-4, "samples_per_second": 10.0},
    {"step": 2, "epoch": 0.2, "mlm_loss": 1.5, "loss": 2.0, "learning_rate": 1e-4, "data_wait_share": 0.5},
    {
        "step": 2,
        "epoch": 0.2,
        "eval_loss": 2.5,
        "eval_mlm_loss": 1.75,
        "eval_text_to_video_R@1": 0.5,
        "eval_samples_per_second": 9.0,
    },
    {"step": 4, "epoch": 0.4, "loss": 1.0, "mlm_loss": 1.0, "matching_loss": 0.5},
    {"step": 4, "epoch": 0.4, "eval_loss": 2.25, "eval_text_to_video_R@1": 0.75, "eval_mlm_accuracy": 0.5},
    {"step": 4, "epoch": 0.4, "train_loss": 99.0, "train_runtime": 1.0},
]
HOSTILE = "<script>alert('x')</script> \"><img src=x onerror=alert(1)> & \ud83d"


class Page(HTMLParser):
    """Collects tags, attributes and text like a browser; raises an error if elements are not nested properly."""

    VOID = {"meta", "img", "line", "circle", "path"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def frames(value=200, num_frames=4, height=48, width=64):
    return np.full((num_frames, height, width, 3), value, dtype=np.uint8)


def tone(seconds=0.5, sampling_rate=8000):
    return Excerpt(np.sin(np.arange(int(seconds * sampling_rate))).astype(np.float32), sampling_rate)


def write(path, **changes):
    arguments = {
        "title": "A run",
        "log_history": LOG_HISTORY,
        "metrics": METRICS,
        "protocol": "toy-heldout",
        "counts": {"queries": 240, "skipped_samples": 3},
        "examples": [
            Example(
                "a red square",
                "The right clip is at rank 2 of 240.",
                [
                    ExampleResult("wrong.mp4", 1, 0.9, False, "a blue square", frames(), tone()),
                    ExampleResult("right.mp4", 2, 0.8, True, None, frames()),
                ],
            )
        ],
        "run": {"command": "train.py --seed 1", "versions": {"torch": "2.11.0"}},
        "data": {"training": {"rows": 12000, "captions": 36000}, "evaluation": {"rows": 240, "bad_samples": 3}},
        "intervals": {"eval_text_to_video_R@1": (0.7583, 0.8583)},
        "primary_metric": "eval_text_to_video_R@1",
    }
    write_report(path, **(arguments | changes))
    return path.read_text(encoding="utf-8")


def test_the_page_shows_metrics_with_protocol_counts_and_interval(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    for text in ("toy-heldout", "0.812", "0.758 – 0.858", "0.946", "2.108", "0.7500", "0.6543", "2.346"):
        assert text in page.text
    assert "text to video R@1" in page.text
    assert "240 queries" in page.text and "of 240 queries" in page.text
    assert "skipped samples" in page.text
    assert "python train.py --seed 1" in page.text
    assert "versions.torch" in page.text


def test_few_queries_have_few_decimals_and_are_counted(tmp_path):
    metrics = {"accuracy": 1 / 3, "mlm_accuracy": 1 / 3, "text_to_video_R@1": 1 / 3, "text_to_video_num_queries": 3}
    intervals = {"accuracy": (0.0, 2 / 3)}
    changes = {"metrics": metrics, "intervals": intervals, "primary_metric": "text_to_video_R@1", "log_history": []}
    page = Page(write(tmp_path / "retrieval.html", **changes))
    assert "of 3 queries" in page.text and page.text.count("0.33\n") == 2  # the tile and the table
    assert page.text.count("0.3333") == 2  # the numbers of tokens and questions are unknown
    changes |= {"primary_metric": "accuracy", "counts": {"questions": 3}}
    page = Page(write(tmp_path / "questions.html", **changes))
    assert "of 3 questions" in page.text and "0.00 – 0.67" in page.text


def test_loss_charts_show_chance_levels_of_training_and_evaluation(tmp_path):
    history = [{"step": 1, "contrastive_tv_loss": 1.0, "eval_contrastive_tv_loss": 2.0, "mam_loss": 1.0}]
    page = Page(
        write(
            tmp_path / "report.html",
            log_history=history,
            metrics={"contrastive_tv_loss": 2.0},
            intervals={},
            primary_metric=None,
            chance={"contrastive_tv_loss": math.log(7)},
            train_chance={"contrastive_tv_loss": math.log(2)},
        )
    )
    assert "last in training 1; last in evaluation 2; chance 0.6931 in training, 1.946 in evaluation" in page.text
    assert "last 1\n" in page.text  # the chance level of a reconstruction is unknown
    assert "2\n1.946" in re.sub(r"\n+", "\n", page.text)  # in the table


def test_same_arguments_give_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html")


def test_the_page_is_self_contained(tmp_path):
    text = write(tmp_path / "report.html")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.all("img"))
    assert all(attributes["src"].startswith("data:audio/wav;base64,") for attributes in page.all("audio"))
    policy = page.all("meta")[2]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def test_all_text_is_escaped(tmp_path):
    text = write(
        tmp_path / "report.html",
        title=HOSTILE,
        protocol=HOSTILE,
        counts={HOSTILE: 1},
        metrics={HOSTILE: 0.5, HOSTILE + "R@1": 0.5},
        intervals={},
        primary_metric=HOSTILE,
        log_history=[{"step": 1, HOSTILE + "loss": 1.0}],
        examples=[Example(HOSTILE, HOSTILE, [ExampleResult(HOSTILE, 1, 1.0, True, HOSTILE, frames(), tone())])],
        data={HOSTILE: {HOSTILE: 1}},
        run={HOSTILE: HOSTILE, "command": HOSTILE},
    )
    page = Page(text)
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("img")) == 1
    shown = HOSTILE[:-1]  # the lone surrogate at the end cannot be encoded
    assert page.text.count(shown.strip()) >= 10
    assert shown.strip() in page.all("img")[0]["alt"] and shown.strip() in page.all("audio")[0]["aria-label"]


def test_there_is_one_chart_per_loss_with_training_and_evaluation(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    assert labels == [
        "loss: training 3 at step 1 to 1 at step 4; evaluation 2.5 at step 2 to 2.25 at step 4",
        "mlm loss: training 2 at step 1 to 1 at step 4; evaluation 1.75 at step 2 to 1.75 at step 2",
        "matching loss: training 0.5 at step 4 to 0.5 at step 4",
        "text to video R@1: evaluation 0.500 at step 2 to 0.750 at step 4",
        "learning rate: training 0.0001 at step 1 to 0.0001 at step 2",
        "samples per second: training 10 at step 1 to 10 at step 1",
        "data wait share: training 0.5000 at step 2 to 0.5000 at step 2",
    ]  # without the summary's train_loss, an accuracy evaluated once and the speed of an evaluation
    assert [attributes["class"] for attributes in page.all("path")] == [
        "train", "eval", "train", "eval", "train", "eval", "train", "train", "train",
    ]  # fmt: skip
    assert len(page.all("circle")) == 2 + 1 + 2


def test_the_page_shows_chance_levels_and_the_meaning_of_losses(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    chances = [text for text in page.texts if text.startswith("chance ")]
    assert chances == ["chance 0.004"]  # of the primary metric: one of 240, with the decimals of 240 queries
    table = page.text.split("Metrics")[1].split("Training")[0]
    assert "0.004" in table and "0.021" in table and "120.5" in table  # R@1, R@5 and both ranks
    assert "Fraction of masked tokens that are predicted exactly." in table and "Weighted sum" in table


def test_the_page_of_a_classification_counts_rows(tmp_path):
    metrics = {"mAP": 0.51234, "micro_F1": 0.4, "num_rows": 49, "num_classes": 3}
    page = write(
        tmp_path / "report.html",
        metrics=metrics,
        counts={"rows": 49},
        primary_metric="mAP",
        intervals={"mAP": (0.4, 0.6)},
        chance={"mAP": 0.0612},
    )
    first = Page(page).text.split("Metrics")[0]
    assert "mAP\n0.51\nof 49 rows\n95 % interval 0.40 – 0.60\nchance 0.06" in first
    assert "Mean over the classes of average precision" in first


@pytest.mark.parametrize("name", ["contrastive_tv_loss", "mlm_loss"])
def test_the_page_explains_contrastive_losses_if_it_has_both_curves(tmp_path, name):
    log = [{"step": 1, name: 1.0}, {"step": 1, f"eval_{name}": 2.0}]
    said = "Contrastive losses grow with the number of candidates" in write(tmp_path / "report.html", log_history=log)
    assert said == name.startswith("contrastive")


def test_the_page_shows_the_size_of_the_data(tmp_path):
    rows = Page(write(tmp_path / "report.html")).text.split("Data\n")[1].split("Examples")[0]
    assert rows.split() == [
        *"Clips are counted by file. Samples that could not be read are listed in quarantine.jsonl.".split(),
        "set", "rows", "captions", "bad", "samples",
        "training", "12,000", "36,000", "–", "evaluation", "240", "–", "3",
    ]  # fmt: skip


def test_the_audio_of_a_result_can_be_played(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    (player,) = page.all("audio")
    assert player["aria-label"] == "the first 0.5 seconds of wrong.mp4" and "controls" in player
    with wave.open(io.BytesIO(base64.b64decode(player["src"].split(",", 1)[1]))) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 4000)
        samples = np.frombuffer(file.readframes(4000), "<i2") / 32767
    assert abs(samples - tone().waveform).max() < 1e-4


def test_audio_is_left_out_if_the_page_would_become_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_AUDIO_BYTES", 3 * len(tone().to_wav()) - 1)
    results = [ExampleResult(f"{number}.mp4", number, 0.5, False, audio=tone()) for number in range(1, 5)]
    page = Page(write(tmp_path / "report.html", examples=[Example("q", "n", results)]))
    assert len(page.all("audio")) == 2 and page.text.count("audio left out") == 2


def test_strips_contain_the_frames_and_the_right_clip_is_marked(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    first = page.all("img")[0]
    assert first["alt"] == "4 frames of wrong.mp4: a blue square"
    strip = Image.open(io.BytesIO(base64.b64decode(first["src"].split(",", 1)[1])))
    assert strip.size == (int(first["width"]), int(first["height"])) == (4 * 128 + 3 * 2, 96)
    assert abs(np.asarray(strip)[48, 64].astype(int) - 200).max() <= 2
    assert [attributes.get("class") for attributes in page.all("li")] == [None, "correct"]
    assert page.text.count("✓ correct") == 1
    assert "The right clip is at rank 2 of 240." in page.text


def test_strips_of_long_clips_are_evenly_spaced_frames(tmp_path):
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 16 * 16 * 3).reshape(24, 16, 16, 3)
    example = Example("q", "n", [ExampleResult("c", 1, 1.0, True, None, ramp)])
    source = Page(write(tmp_path / "report.html", examples=[example])).all("img")[0]["src"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))
    centres = strip[48, 48::98, 0][:6].astype(int)
    assert abs(centres - np.array([20, 60, 100, 140, 180, 220])).max() <= 3


def test_page_without_training_or_examples(tmp_path):
    page = Page(
        write(
            tmp_path / "report.html",
            **{"log_history": [], "examples": [], "run": {}, "data": None},
            **{"metrics": {}, "intervals": {}, "primary_metric": None},
        )
    )
    assert "evaluated without training" in page.text
    assert "Nothing was measured" in page.text
    assert [attributes["id"] for attributes in page.all("h2")] == ["metrics", "training"]


def test_an_unknown_primary_metric_or_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'R@1' is not one of the metrics .*eval_text_to_video_R@1"):
        write(tmp_path / "report.html", primary_metric="R@1")
    with pytest.raises(ValueError, match="'other' is not one of the metrics"):
        write(tmp_path / "report.html", intervals={"other": (0, 1)})


@pytest.mark.parametrize("shape_dtype", [((4, 8, 8), np.uint8), ((4, 8, 8, 3), np.float32), ((0, 8, 8, 3), np.uint8)])
def test_invalid_frames_are_refused(shape_dtype):
    with pytest.raises(ValueError, match="Frames of 'c' must be uint8"):
        ExampleResult("c", 1, 1.0, True, None, np.zeros(*shape_dtype))
