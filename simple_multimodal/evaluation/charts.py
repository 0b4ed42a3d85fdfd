"""Layout of the charts of a run: curves, axes and notes, which the report turns into SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from simple_multimodal.evaluation.rendering import JSONValue, format_number, words

MAX_CURVE_POINTS = 300
CHART_WIDTH, CHART_HEIGHT = 340, 190  # of the viewBox of a chart
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 46, 22, 10, 24  # margins around the plot

PACE = ("learning_rate", "samples_per_second", "data_wait_share")
"""Logged values about the course of training, in addition to losses."""

Curve: TypeAlias = list[tuple[float, float]]
"""`(step, value)` points."""


class Tick(NamedTuple):
    """A label of an axis and its position."""

    place: float
    label: str


class Chart(NamedTuple):
    """
    A chart of the report.

    Args:
        name (`str`): Name of the value, without `eval_`.
        label (`str`): Description of the chart for screen readers.
        notes (`str`): The last value, and what the chart leaves out.
        x_ticks, y_ticks (`list[Tick]`): Labels of the axes.
        train, evaluation (`str`): The two curves as SVG paths; empty without a curve.
        dots (`list[tuple[float, float]]`): Positions of the evaluations.
        is_empty (`bool`): Whether no value can be drawn, because none is finite.
    """

    name: str
    label: str
    notes: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    train: str
    evaluation: str
    dots: list[tuple[float, float]]
    is_empty: bool


def loss_charts(
    log_history: Sequence[Mapping[str, JSONValue]], num_queries: Mapping[str, int] = MappingProxyType({})
) -> list[Chart]:
    """
    Draw one chart for each loss, their sum first, then for each recall at 1 and accuracy. Values that were only
    evaluated are drawn from two steps on.

    Args:
        log_history (`Sequence[Mapping]`): `TrainerState.log_history`.
        num_queries (`Mapping[str, int]`, *optional*): Number of queries behind each fraction, by name without `eval_`.
    """
    curves = _curves(log_history, lambda name: name.endswith(("loss", "R@1", "accuracy")))
    names = sorted(curves, key=lambda name: (name != "loss", not name.endswith("loss")))
    return [
        draw_chart(name, *curves[name], num_queries.get(name))
        for name in names
        if len(curves[name][1]) > 1 or (name.endswith("loss") and curves[name][0])
    ]


def pace_charts(log_history: Sequence[Mapping[str, JSONValue]]) -> list[Chart]:
    """Draw one chart for each of `PACE` that was logged, in that order."""
    curves = _curves(log_history, PACE.__contains__)
    # Leave out evaluations, whose speed cannot be compared with that of training.
    return [draw_chart(name, curves[name][0], []) for name in PACE if name in curves and curves[name][0]]


def _curves(
    log_history: Sequence[Mapping[str, JSONValue]], is_drawn: Callable[[str], bool]
) -> dict[str, tuple[Curve, Curve]]:
    """Collect, by name without `eval_`, the points of training and of evaluation."""
    curves: dict[str, tuple[Curve, Curve]] = {}
    for entry in log_history:
        if "train_runtime" in entry:  # the summary at the end of training repeats means over the run
            continue
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if not is_drawn(name) or not isinstance(value, int | float):
                continue
            step = entry["step"]
            assert isinstance(step, int | float)
            train, evaluation = curves.setdefault(name, ([], []))
            (evaluation if key.startswith("eval_") else train).append((step, value))
    return curves


def draw_chart(name: str, train: Curve, evaluation: Curve, num_queries: int | None = None) -> Chart:
    """Lay out the curves of one value; points that are not finite leave gaps."""
    drawn, block = _thin(train)
    finite = [point for point in (*drawn, *evaluation) if math.isfinite(point[1])]
    num_lost = sum(not math.isfinite(value) for _, value in (*train, *evaluation))
    described = [
        f"{kind} {format_number(name, points[0][1], num_queries)} at step {points[0][0]:g} to "
        f"{format_number(name, points[-1][1], num_queries)} at step {points[-1][0]:g}"
        for kind, points in (("training", train), ("evaluation", evaluation))
        if points
    ]
    notes = []
    if train:
        notes.append(f"last {'in training ' if evaluation else ''}{format_number(name, train[-1][1])}")
    if evaluation:
        notes.append(f"last in evaluation {format_number(name, evaluation[-1][1], num_queries)}")
    if block > 1:
        notes.append(f"each point averages up to {block} logged values")
    if num_lost:
        notes.append(f"{num_lost} values were not finite")
    label = f"{words(name)}: {'; '.join(described)}"
    if not finite:
        return Chart(name, label, "; ".join(notes), [], [], "", "", [], is_empty=True)

    steps, values = [step for step, _ in finite], [value for _, value in finite]
    x_low, x_high = min(steps), max(steps)
    y_low, y_high = min(values), max(values)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    margin = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    y_low, y_high = y_low - margin, y_high + margin

    def x(step: float) -> float:
        return round(CHART_LEFT + (step - x_low) / (x_high - x_low) * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT), 1)

    def y(value: float) -> float:
        return round(CHART_TOP + (y_high - value) / (y_high - y_low) * (CHART_HEIGHT - CHART_TOP - CHART_BOTTOM), 1)

    def path(points: Curve) -> str:
        commands, is_open = [], False
        for step, value in points:
            if math.isfinite(value):
                commands.append(f"{'L' if is_open else 'M'}{x(step)} {y(value)}")
            is_open = math.isfinite(value)
        return "".join(commands)

    return Chart(
        name,
        label,
        "; ".join(notes),
        [Tick(x(tick), f"{tick:,.0f}") for tick in ticks(x_low, x_high, is_count=True)],
        [Tick(y(tick), f"{tick:.4g}") for tick in ticks(y_low, y_high)],
        path(drawn),
        path(evaluation),
        [(x(step), y(value)) for step, value in evaluation if math.isfinite(value)],
        is_empty=False,
    )


def _thin(points: Curve) -> tuple[Curve, int]:
    """Average neighboring points so that at most `MAX_CURVE_POINTS` remain; also return how many are averaged."""
    size = -(-len(points) // MAX_CURVE_POINTS)
    if size <= 1:
        return points, 1
    blocks = np.array_split(np.asarray(points, dtype=np.float64), -(-len(points) // size))
    return [(float(step), float(value)) for step, value in (block.mean(axis=0) for block in blocks)], size


def ticks(low: float, high: float, *, is_count: bool = False) -> list[float]:
    """Return three to eight round values inside `[low, high]`; integers for a count, fewer if the range is short."""
    raw = (high - low) / 3
    if is_count:
        raw = max(raw, 1.0)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (5, 2, 1) if factor * magnitude <= raw * (1 + 1e-9)) * magnitude
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
