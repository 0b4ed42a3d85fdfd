"""The layout of charts: points, gaps, averages and ticks."""

import math
import re

import pytest

from simple_multimodal.evaluation import charts


def test_a_curve_goes_through_its_points():
    chart = charts.draw_chart("loss", [(0, 1.0), (5, 3.0), (10, 2.0)], [(10, 2.0)])
    points = re.fullmatch(r"M(\S+) (\S+)L(\S+) (\S+)L(\S+) (\S+)", chart.train)
    x0, y0, x1, y1, x2, y2 = map(float, points.groups())
    assert (x0, x1, x2) == (
        charts.CHART_LEFT,
        (charts.CHART_LEFT + charts.CHART_WIDTH - charts.CHART_RIGHT) / 2,
        charts.CHART_WIDTH - charts.CHART_RIGHT,
    )
    assert y1 < y2 < y0  # higher values are drawn higher
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert chart.dots == [(x2, y2)]


def test_values_that_are_not_finite_leave_a_gap_and_are_counted():
    chart = charts.draw_chart("loss", [(1, 1.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 1.5)], [])
    assert chart.train.count("M") == 3
    assert "2 values were not finite" in chart.notes
    assert charts.draw_chart("loss", [(1, math.nan)], []).is_empty


def test_long_curves_are_averaged_with_a_note():
    points, size = charts._thin([(float(step), float(step % 2)) for step in range(1000)])
    assert size == 4
    assert len(points) == 250
    assert points[0] == (1.5, 0.5)
    assert (
        "averages up to 4 logged values" in charts.draw_chart("loss", [(step, 1.0) for step in range(1000)], []).notes
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (0.1, 0.4, [0.1, 0.2, 0.3, 0.4]),
        (1.01, 2.41, [1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7, 150, 12_000_000])
def test_ticks_of_steps_are_integers(last):
    chart = charts.draw_chart("loss", [(1, 1.0), (last, 3.0)], [])
    labels = [tick.label for tick in chart.x_ticks]
    assert labels and len(set(labels)) == len(labels) and all(label.replace(",", "").isdigit() for label in labels)


def test_values_that_were_only_evaluated_are_drawn_from_two_steps_on():
    first = {"step": 2, "eval_loss": 2.0, "eval_text_to_video_R@1": 0.5}
    assert charts.loss_charts([first]) == []
    second = {"step": 4, "eval_loss": 1.5, "eval_text_to_video_R@1": 0.6}
    assert [chart.name for chart in charts.loss_charts([first, second])] == ["loss", "text_to_video_R@1"]
    trained = charts.loss_charts([{"step": 1, "loss": 3.0}, first])
    assert [(chart.name, chart.notes) for chart in trained] == [("loss", "last in training 3; last in evaluation 2")]
    assert [chart.notes for chart in charts.loss_charts([{"step": 1, "loss": 3.0}])] == ["last 3"]
