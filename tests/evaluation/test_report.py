"""The report page: its numbers, curves and pictures, and that hostile text stays text."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simple_multimodal.evaluation import report
from simple_multimodal.evaluation.report import (
    QueryExample,
    RetrievedClip,
    flatten,
    format_number,
    write_metrics,
    write_report,
)

METRICS = {
    "eval_text_to_video_R@1": 0.8125,
    "eval_text_to_video_R@5": 0.9458,
    "eval_text_to_video_median_rank": 1.0,
    "eval_text_to_video_mean_rank": 2.108,
    "eval_text_to_video_num_queries": 240,
    "eval_video_to_text_R@1": 0.75,
    "eval_mlm_accuracy": 0.6543,
    "eval_loss": 2.3456789,
}
LOG_HISTORY = [
    {"step": 1, "epoch": 0.1, "loss": 3.0, "mlm_loss": 2.0, "learning_rate": 1e-4},
    {"step": 2, "epoch": 0.2, "loss": 2.0, "mlm_loss": 1.5, "learning_rate": 1e-4},
    {"step": 2, "epoch": 0.2, "eval_loss": 2.5, "eval_mlm_loss": 1.75, "eval_text_to_video_R@1": 0.5},
    {"step": 4, "epoch": 0.4, "loss": 1.0, "mlm_loss": 1.0, "matching_loss": 0.5},
    {"step": 4, "epoch": 0.4, "eval_loss": 2.25, "eval_text_to_video_R@1": 0.75, "eval_mlm_accuracy": 0.5},
    {"step": 4, "epoch": 0.4, "train_loss": 99.0, "train_runtime": 1.0},
]
HOSTILE = "<script>alert('x')</script> \"><img src=x onerror=alert(1)> & \ud83d"


class Page(HTMLParser):
    """Tags, attributes and text as a browser sees them; complains about elements that do not nest."""

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


def write(path, **changes):
    arguments = {
        "title": "A run",
        "log_history": LOG_HISTORY,
        "metrics": METRICS,
        "protocol": "toy-heldout",
        "counts": {"queries": 240, "skipped_samples": 3},
        "examples": [
            QueryExample(
                "a red square",
                2,
                240,
                [
                    RetrievedClip("wrong.mp4", 1, 0.9, False, "a blue square", frames()),
                    RetrievedClip("right.mp4", 2, 0.8, True, None, frames()),
                ],
            )
        ],
        "run": {"command": "python train.py --seed 1", "versions": {"torch": "2.11.0"}},
        "intervals": {"eval_text_to_video_R@1": (0.7583, 0.8583)},
        "headline": "eval_text_to_video_R@1",
    }
    write_report(path, **(arguments | changes))
    return path.read_text(encoding="utf-8")


def test_page_states_the_numbers_with_protocol_counts_and_interval(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    for text in ("toy-heldout", "0.8125", "0.7583 – 0.8583", "0.9458", "2.108", "0.7500", "0.6543", "2.346"):
        assert text in page.text
    assert "text to video R@1" in page.text
    assert "240 queries" in page.text
    assert "skipped samples" in page.text
    assert "python train.py --seed 1" in page.text
    assert "versions.torch" in page.text


def test_same_arguments_give_the_same_bytes(tmp_path):
    assert write(tmp_path / "a.html") == write(tmp_path / "b.html")


def test_page_needs_nothing_from_outside(tmp_path):
    text = write(tmp_path / "report.html")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.all("img"))
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_every_text_is_escaped(tmp_path):
    text = write(
        tmp_path / "report.html",
        title=HOSTILE,
        protocol=HOSTILE,
        counts={HOSTILE: 1},
        metrics={HOSTILE: 0.5, HOSTILE + "R@1": 0.5},
        intervals={},
        headline=HOSTILE,
        log_history=[{"step": 1, HOSTILE + "loss": 1.0}],
        examples=[QueryExample(HOSTILE, 1, 1, [RetrievedClip(HOSTILE, 1, 1.0, True, HOSTILE, frames())])],
        run={HOSTILE: HOSTILE},
    )
    page = Page(text)
    assert not page.all("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("img")) == 1
    shown = HOSTILE[:-1]  # the lone surrogate at the end has no form in a page
    assert page.text.count(shown.strip()) >= 10
    assert shown.strip() in page.all("img")[0]["alt"]


def test_one_chart_per_loss_with_training_and_evaluation(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    assert labels == [
        "loss: training 3 at step 1 to 1 at step 4; evaluation 2.5 at step 2 to 2.25 at step 4",
        "mlm loss: training 2 at step 1 to 1 at step 4; evaluation 1.75 at step 2 to 1.75 at step 2",
        "matching loss: training 0.5 at step 4 to 0.5 at step 4",
        "text to video R@1: evaluation 0.5000 at step 2 to 0.7500 at step 4",
    ]  # neither the summary's train_loss nor an accuracy seen once
    assert [attributes["class"] for attributes in page.all("path")] == [
        "train", "eval", "train", "eval", "train", "eval",
    ]  # fmt: skip
    assert len(page.all("circle")) == 2 + 1 + 2


def test_curve_goes_through_the_points():
    chart = report._chart("loss", [(0, 1.0), (5, 3.0), (10, 2.0)], [])
    points = re.search(r'd="M(\S+) (\S+)L(\S+) (\S+)L(\S+) (\S+)"', chart)
    x0, y0, x1, y1, x2, y2 = map(float, points.groups())
    assert (x0, x1, x2) == (
        report.CHART_LEFT,
        (report.CHART_LEFT + report.CHART_WIDTH - report.CHART_RIGHT) / 2,
        report.CHART_WIDTH - report.CHART_RIGHT,
    )
    assert y1 < y2 < y0  # higher values are drawn higher
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_values_that_are_not_finite_leave_a_gap_and_are_stated():
    chart = report._chart("loss", [(1, 1.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 1.5)], [])
    assert re.search(r'd="([^"]*)"', chart).group(1).count("M") == 3
    assert "2 values were not finite" in chart
    assert "No finite value" in report._chart("loss", [(1, math.nan)], [])


def test_long_curves_are_averaged_and_say_so():
    points, size = report._thin([(float(step), float(step % 2)) for step in range(1000)])
    assert size == 4
    assert len(points) == 250
    assert points[0] == (1.5, 0.5)
    assert "averages up to 4 logged values" in report._chart("loss", [(step, 1.0) for step in range(1000)], [])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (0.1, 0.4, [0.1, 0.2, 0.3, 0.4]),
        (1.01, 2.41, [1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert report._ticks(low, high) == pytest.approx(expected)


def test_result_strips_hold_the_frames_and_the_right_clip_is_marked(tmp_path):
    page = Page(write(tmp_path / "report.html"))
    first = page.all("img")[0]
    assert first["alt"] == "4 frames of wrong.mp4: a blue square"
    strip = Image.open(io.BytesIO(base64.b64decode(first["src"].split(",", 1)[1])))
    assert strip.size == (int(first["width"]), int(first["height"])) == (4 * 128 + 3 * 2, 96)
    assert abs(np.asarray(strip)[48, 64].astype(int) - 200).max() <= 2
    assert [attributes.get("class") for attributes in page.all("li")] == [None, "right"]
    assert page.text.count("✓ right clip") == 1
    assert "at rank\n\n2\n of 240" in page.text.replace(" \n", "\n\n")


def test_long_clips_show_frames_spread_over_their_length(tmp_path):
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 16 * 16 * 3).reshape(24, 16, 16, 3)
    example = QueryExample("q", 1, 1, [RetrievedClip("c", 1, 1.0, True, None, ramp)])
    source = Page(write(tmp_path / "report.html", examples=[example])).all("img")[0]["src"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))
    centres = strip[48, 48::98, 0][:6].astype(int)
    assert abs(centres - np.array([20, 60, 100, 140, 180, 220])).max() <= 3


def test_page_without_training_or_examples(tmp_path):
    page = Page(
        write(tmp_path / "report.html", log_history=[], examples=[], run={}, metrics={}, intervals={}, headline=None)
    )
    assert "evaluated without training" in page.text
    assert "Nothing was measured" in page.text
    assert [attributes["id"] for attributes in page.all("h2")] == ["metrics", "curves"]


def test_unknown_headline_or_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'R@1' is none of the metrics .*eval_text_to_video_R@1"):
        write(tmp_path / "report.html", headline="R@1")
    with pytest.raises(ValueError, match="'other' is none of the metrics"):
        write(tmp_path / "report.html", intervals={"other": (0, 1)})


@pytest.mark.parametrize("shape_dtype", [((4, 8, 8), np.uint8), ((4, 8, 8, 3), np.float32), ((0, 8, 8, 3), np.uint8)])
def test_wrong_frames_are_refused(shape_dtype):
    with pytest.raises(ValueError, match="Frames of clip 'c' must be uint8"):
        RetrievedClip("c", 1, 1.0, True, None, np.zeros(*shape_dtype))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text_to_video_R@1", 0.95, "0.9500"),
        ("mlm_accuracy", 1.0, "1.0000"),
        ("mean_rank", 1.2666, "1.267"),
        ("num_queries", 12000, "12,000"),
        ("samples_per_second", 12345.6, "12,346"),
        ("loss", 0.00012346, "0.0001235"),
    ],
)
def test_numbers_are_written_for_people(name, value, expected):
    assert format_number(name, value) == expected


def test_flatten_names_nested_values():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": "x", "f": [1, 2]}) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": "x",
        "f": "[1, 2]",
    }


def test_metrics_file_holds_protocol_counts_numbers_and_intervals(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(
        path,
        metrics={"text_to_video_R@1": 0.5},
        protocol="toy",
        counts={"queries": 2},
        intervals={"text_to_video_R@1": (0.25, 0.75)},
        headline="text_to_video_R@1",
        selection_split="validation",
    )
    assert json.loads(path.read_text()) == {
        "protocol": "toy",
        "selection_split": "validation",
        "precision": None,
        "decoder": None,
        "headline": "text_to_video_R@1",
        "counts": {"queries": 2},
        "metrics": {"text_to_video_R@1": 0.5},
        "intervals": {"text_to_video_R@1": [0.25, 0.75]},
    }
    with pytest.raises(ValueError, match="'loss' is nan"):
        write_metrics(path, metrics={"loss": math.nan}, protocol="toy", counts={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, metrics={"loss": 1.0}, protocol="toy", counts={}, intervals={"loss": (math.nan, 1.0)})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"] and "toy" in path.read_text()
