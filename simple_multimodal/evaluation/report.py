"""The report of a run: a self-contained HTML page with curves, metrics and retrieved clips, and its JSON twin."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.precision import Precision
from simple_multimodal.evaluation.result_files import write_whole
from simple_multimodal.evaluation.retrieval import RECALL_CUTOFFS

JSONValue: TypeAlias = "str | int | float | bool | None | Sequence[JSONValue] | Mapping[str, JSONValue]"

RETRIEVAL_COLUMNS = {f"R@{cutoff}": f"R@{cutoff}" for cutoff in RECALL_CUTOFFS} | {
    "median_rank": "median rank",
    "mean_rank": "mean rank",
}
MAX_CURVE_POINTS = 300
MAX_STRIP_FRAMES = 6
STRIP_HEIGHT = 96  # of a frame strip in the file, in pixels
CHART_WIDTH, CHART_HEIGHT = 340, 190  # of the viewBox of a chart
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 46, 22, 10, 24  # margins around the plot


@dataclass(frozen=True)
class RetrievedClip:
    """
    One clip among the results of a query.

    Args:
        name (`str`): What the clip is called in its data set.
        rank (`int`): Its place among all candidates, from 1.
        score (`float`): Its score with the query.
        is_correct (`bool`): Whether it is a right answer.
        caption (`str`, *optional*): A caption of the clip itself.
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8 RGB, *optional*):
            Some frames in the order of time; without them only the text is shown.
    """

    name: str
    rank: int
    score: float
    is_correct: bool
    caption: str | None = None
    frames: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and (
            self.frames.ndim != 4
            or self.frames.shape[3] != 3
            or self.frames.size == 0
            or self.frames.dtype != np.uint8
        ):
            raise ValueError(
                f"Frames of clip {self.name!r} must be uint8 of shape (num_frames, height, width, 3), got "
                f"{self.frames.dtype} of shape {self.frames.shape}."
            )


@dataclass(frozen=True)
class QueryExample:
    """
    One query with the clips found for it.

    Args:
        query (`str`): Text of the query.
        rank (`int`): Rank of the best right clip, from 1, as in the metrics.
        num_candidates (`int`): Among how many clips it was searched.
        results (`Sequence[RetrievedClip]`): The first results, best first; a right clip found further down may follow.
    """

    query: str
    rank: int
    num_candidates: int
    results: Sequence[RetrievedClip]


def write_metrics(
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    intervals: Mapping[str, Interval] | None = None,
    headline: str | None = None,
    selection_split: str | None = None,
    audio_crop: str | None = None,
    precision: Precision | None = None,
    decoder: str | None = None,
    bad_samples: Sequence[Mapping[str, str | None]] = (),
) -> None:
    """
    Write the metrics file: JSON with the protocol, the counts, the numbers as fractions, and their intervals.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        metrics (`Mapping[str, float]`): Metrics by name.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): What the numbers are over, e.g. queries, clips, skipped samples.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): Bootstrap intervals by metric name.
        headline (`str`, *optional*): Name of the metric that sums up the run.
        selection_split (`str`, *optional*):
            Split by whose numbers the checkpoint was chosen, e.g. `"validation"`; `null` in the file: by none.
        audio_crop (`str`, *optional*): What the model heard of longer audio, in words; `None`: all of it.
        precision (`str`, *optional*): What the model computed in: `"fp32"`, `"bf16"` or `"fp16"`.
        decoder (`str`, *optional*): What decoded frames, such as `"pyav"` or `"torchcodec on cuda"`.
        bad_samples (`Sequence[Mapping[str, str]]`, *optional*): What could not be read, and counts as wrong.

    Raises:
        ValueError: If a number is not finite, or if `headline` or an interval names no metric.
    """
    intervals = intervals or {}
    _check_names(metrics, intervals, headline)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"Metric {name!r} is {value}, which JSON cannot hold. Leave out what was not measured.")
    content: dict[str, object] = {
        "protocol": protocol,
        "selection_split": selection_split,
        "precision": precision,
        "decoder": decoder,
        "headline": headline,
        "counts": dict(counts),
        "metrics": dict(metrics),
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }
    if audio_crop is not None:
        content["audio_crop"] = audio_crop
    if bad_samples:
        content["bad_samples"] = [dict(sample) for sample in bad_samples]
    write_whole(path, [json.dumps(content, indent=2, allow_nan=False), "\n"])


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    log_history: Sequence[Mapping[str, JSONValue]],
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    examples: Sequence[QueryExample],
    run: Mapping[str, JSONValue],
    intervals: Mapping[str, Interval] | None = None,
    headline: str | None = None,
) -> None:
    """
    Write the report of a run as one HTML file that needs no other file and no network.

    The same arguments give the same bytes. All text is escaped and the page forbids scripts, so that captions from
    anywhere may be shown.

    Args:
        path (`str` or `os.PathLike`): File to write, e.g. `report.html`; it is replaced.
        title (`str`): Heading of the page.
        log_history (`Sequence[Mapping]`):
            `TrainerState.log_history`. Every key that ends in `loss` is drawn with its `eval_` counterpart over
            `step`; recalls and accuracies that were evaluated at two steps or more are drawn as well.
        metrics (`Mapping[str, float]`):
            Metrics by name. Names that end in `R@1`, `R@5`, `R@10`, `median_rank` or `mean_rank` form a table with
            one row per prefix, the others a list.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): What the numbers are over.
        examples (`Sequence[QueryExample]`): Queries with the clips found for them; may be empty.
        run (`Mapping`): What made the run (command, arguments, versions), shown as a table. Hand in no secrets.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals by metric name.
        headline (`str`, *optional*): Name of the metric that is shown large.

    Raises:
        ValueError: If `headline` or an interval names no metric.
    """
    intervals = intervals or {}
    _check_names(metrics, intervals, headline)
    body = [
        "<header>",
        f"<h1>{_text(title)}</h1>",
        f"<p>Protocol <strong>{_text(protocol)}</strong></p>",
        _summary(metrics, intervals, headline, counts),
        "</header>",
        "<main>",
        _metrics_section(metrics, intervals),
        _curves_section(log_history),
        _examples_section(examples),
        _run_section(run),
        "</main>",
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{_text(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )
    # A lone surrogate, possible in a caption read from JSON, has no UTF-8 form.
    Path(path).write_bytes(page.encode("utf-8", errors="xmlcharrefreplace"))


def format_number(name: str, value: float) -> str:
    """
    Write a metric for people: counts whole, ranks and losses with four digits, fractions with four places.

    Args:
        name (`str`): Name of the metric.
        value (`float`): Its value.

    Returns:
        `str`, e.g. `0.9500` for `R@1`, `1.27` for `mean_rank`, `12,000` for a count.
    """
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    is_fraction = name.endswith(("accuracy", "share", *(f"R@{cutoff}" for cutoff in RECALL_CUTOFFS)))
    return f"{value:.4f}" if is_fraction else f"{value:.4g}"


def _check_names(metrics: Mapping[str, float], intervals: Mapping[str, Interval], headline: str | None) -> None:
    for name in (*intervals, *([headline] if headline is not None else [])):
        if name not in metrics:
            raise ValueError(f"{name!r} is none of the metrics ({', '.join(metrics) or 'there are none'}).")


def _text(value: object) -> str:
    """Escape anything for HTML, in text and in double-quoted attributes alike."""
    return html.escape(str(value), quote=True)


def _words(name: str) -> str:
    """`eval_text_to_video` → `text to video`."""
    return name.removeprefix("eval_").strip("_").replace("_", " ")


def _interval_text(name: str, intervals: Mapping[str, Interval]) -> str:
    if name not in intervals:
        return ""
    low, high = intervals[name]
    return f"{format_number(name, low)} – {format_number(name, high)}"


# Metrics


def _summary(
    metrics: Mapping[str, float], intervals: Mapping[str, Interval], headline: str | None, counts: Mapping[str, int]
) -> str:
    tiles = []
    if headline is not None:
        interval = _interval_text(headline, intervals)
        tiles.append(
            f'<div class="headline"><dt>{_text(_words(headline))}</dt>'
            f"<dd>{_text(format_number(headline, metrics[headline]))}"
            + (f"<small>95 % interval {_text(interval)}</small>" if interval else "")
            + "</dd></div>"
        )
    tiles += [f"<div><dt>{_text(_words(name))}</dt><dd>{count:,}</dd></div>" for name, count in counts.items()]
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _metrics_section(metrics: Mapping[str, float], intervals: Mapping[str, Interval]) -> str:
    rows: dict[str, dict[str, str]] = {}  # prefix -> column -> name of the metric
    for name in metrics:
        column = next((column for column in RETRIEVAL_COLUMNS if name.endswith(column)), None)
        if column is not None:
            rows.setdefault(name.removesuffix(column), {})[column] = name
    sizes = {f"{prefix}{size}" for prefix in rows for size in ("num_queries", "num_candidates")}
    in_table = sizes.union(*(columns.values() for columns in rows.values()))
    others = [name for name in metrics if name not in in_table]
    parts = ['<section aria-labelledby="metrics">', '<h2 id="metrics">Metrics</h2>']
    if not metrics:
        parts.append("<p>Nothing was measured in this run.</p>")
    if rows:
        head = "".join(f'<th scope="col">{_text(label)}</th>' for label in RETRIEVAL_COLUMNS.values())
        lines = []
        for prefix, columns in rows.items():
            cells = []
            for column in RETRIEVAL_COLUMNS:
                if column not in columns:
                    cells.append("<td>–</td>")
                    continue
                name = columns[column]
                cells.append(
                    f"<td>{_text(format_number(name, metrics[name]))}"
                    f"<small>{_text(_interval_text(name, intervals))}</small></td>"
                )
            label = _words(prefix) or "retrieval"
            over = [
                f"{metrics[f'{prefix}num_{what}']:,.0f} {what}"
                for what in ("queries", "candidates")
                if f"{prefix}num_{what}" in metrics
            ]
            lines.append(
                f'<tr><th scope="row">{_text(label)}<small>{", ".join(over)}</small></th>{"".join(cells)}</tr>'
            )
        parts.append(
            "<table><caption>Retrieval. Recalls are fractions of the queries; ties count against the model. "
            f'Small: 95 % bootstrap intervals, resampled by clip.</caption><thead><tr><th scope="col">direction</th>'
            f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        )
    if others:
        lines = [
            f'<tr><th scope="row">{_text(_words(name))}</th><td>{_text(format_number(name, metrics[name]))}</td>'
            f"<td>{_text(_interval_text(name, intervals))}</td></tr>"
            for name in others
        ]
        parts.append(
            "<table><caption>All other measurements on the evaluation set</caption>"
            '<thead><tr><th scope="col">metric</th><th scope="col">value</th><th scope="col">95 % interval</th></tr>'
            f"</thead><tbody>{''.join(lines)}</tbody></table>"
        )
    return "\n".join([*parts, "</section>"])


# Curves


def _curves_section(log_history: Sequence[Mapping[str, JSONValue]]) -> str:
    curves = _curves(log_history)
    parts = ['<section aria-labelledby="curves">', '<h2 id="curves">Training</h2>']
    if curves:
        parts.append(
            '<p class="legend"><span class="key train"></span>training <span class="key eval"></span>evaluation '
            "(dashed, dots). Horizontal: optimisation steps.</p>"
        )
        parts.append('<div class="charts">')
        parts += [_chart(name, train, evaluation) for name, (train, evaluation) in curves.items()]
        parts.append("</div>")
    else:
        parts.append("<p>No losses were logged: this run evaluated without training.</p>")
    return "\n".join([*parts, "</section>"])


Curve: TypeAlias = list[tuple[float, float]]


def _curves(log_history: Sequence[Mapping[str, JSONValue]]) -> dict[str, tuple[Curve, Curve]]:
    """Collect, by name without `eval_`, the `(step, value)` points of training and of evaluation."""
    losses: dict[str, tuple[Curve, Curve]] = {}
    qualities: dict[str, tuple[Curve, Curve]] = {}
    for entry in log_history:
        if "train_runtime" in entry:  # the summary at the end of training repeats means over the run
            continue
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            is_loss = name.endswith("loss")
            if not (is_loss or name.endswith(("R@1", "accuracy"))) or not isinstance(value, int | float):
                continue
            step = entry["step"]
            assert isinstance(step, int | float)
            train, evaluation = (losses if is_loss else qualities).setdefault(name, ([], []))
            (evaluation if key.startswith("eval_") else train).append((step, value))
    several = {name: (train, evaluation) for name, (train, evaluation) in qualities.items() if len(evaluation) > 1}
    return losses | several


def _thin(points: Curve) -> tuple[Curve, int]:
    """Average runs of neighbours so that at most `MAX_CURVE_POINTS` remain; also return how many make one."""
    size = -(-len(points) // MAX_CURVE_POINTS)
    if size <= 1:
        return points, 1
    blocks = np.array_split(np.asarray(points, dtype=np.float64), -(-len(points) // size))
    return [(float(step), float(value)) for step, value in (block.mean(axis=0) for block in blocks)], size


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round values inside `[low, high]`."""
    raw = (high - low) / 3
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (5, 2, 1) if factor * magnitude <= raw * (1 + 1e-9)) * magnitude
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _chart(name: str, train: Curve, evaluation: Curve) -> str:
    drawn, block = _thin(train)
    finite = [point for point in (*drawn, *evaluation) if math.isfinite(point[1])]
    num_lost = sum(not math.isfinite(value) for _, value in (*train, *evaluation))
    title = _words(name)
    described = [
        f"{kind} {format_number(name, points[0][1])} at step {points[0][0]:g} to "
        f"{format_number(name, points[-1][1])} at step {points[-1][0]:g}"
        for kind, points in (("training", train), ("evaluation", evaluation))
        if points
    ]
    notes = []
    if evaluation:
        notes.append(f"last evaluation {format_number(name, evaluation[-1][1])}")
    elif train:
        notes.append(f"last {format_number(name, train[-1][1])}")
    if block > 1:
        notes.append(f"each point averages up to {block} logged values")
    if num_lost:
        notes.append(f"{num_lost} values were not finite")
    caption = f"<figcaption><strong>{_text(title)}</strong> {_text('; '.join(notes))}</figcaption>"
    if not finite:
        return f"<figure>{caption}<p>No finite value to draw.</p></figure>"

    steps, values = [step for step, _ in finite], [value for _, value in finite]
    x_low, x_high = min(steps), max(steps)
    y_low, y_high = min(values), max(values)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    margin = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    y_low, y_high = y_low - margin, y_high + margin

    def x(step: float) -> float:
        return CHART_LEFT + (step - x_low) / (x_high - x_low) * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT)

    def y(value: float) -> float:
        return CHART_TOP + (y_high - value) / (y_high - y_low) * (CHART_HEIGHT - CHART_TOP - CHART_BOTTOM)

    def path(points: Curve) -> str:
        commands, is_open = [], False
        for step, value in points:
            if math.isfinite(value):
                commands.append(f"{'L' if is_open else 'M'}{x(step):.1f} {y(value):.1f}")
            is_open = math.isfinite(value)  # a value that is not finite leaves a gap
        return "".join(commands)

    label = f"{title}: {'; '.join(described)}"
    parts = [f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{_text(label)}">']
    right, bottom = CHART_WIDTH - CHART_RIGHT, CHART_HEIGHT - CHART_BOTTOM
    for tick in _ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{CHART_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{CHART_LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(x_low, x_high):
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{CHART_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    if train:
        parts.append(f'<path class="train" d="{path(drawn)}"/>')
    if evaluation:
        parts.append(f'<path class="eval" d="{path(evaluation)}"/>')
        parts += [
            f'<circle class="eval" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>'
            for step, value in evaluation
            if math.isfinite(value)
        ]
    parts.append("</svg>")
    return f"<figure>{caption}{''.join(parts)}</figure>"


# Examples


def _examples_section(examples: Sequence[QueryExample]) -> str:
    if not examples:
        return ""
    parts = ['<section aria-labelledby="examples">', '<h2 id="examples">Queries and what was found</h2>']
    for example in examples:
        parts.append(
            f'<article><h3 dir="auto">{_text(example.query)}</h3>'
            f"<p>The right clip is at rank <strong>{example.rank:,}</strong> of {example.num_candidates:,}.</p><ol>"
        )
        parts += [_result(result) for result in example.results]
        parts.append("</ol></article>")
    return "\n".join([*parts, "</section>"])


def _result(result: RetrievedClip) -> str:
    kind = ' class="right"' if result.is_correct else ""
    mark = '<span class="mark">✓ right clip</span> ' if result.is_correct else ""
    strip = '<p class="nothing">no picture</p>' if result.frames is None else _strip(result, result.frames)
    caption = f'<p dir="auto">{_text(result.caption)}</p>' if result.caption is not None else ""
    return (
        f"<li{kind}>"
        f'<span class="rank"><small>rank</small>{result.rank}</span>{strip}'
        f'<div class="about"><p>{mark}<span class="name">{_text(result.name)}</span> '
        f'<span class="score">score {result.score:.4g}</span></p>{caption}</div></li>'
    )


def _strip(result: RetrievedClip, frames: np.ndarray) -> str:
    """Join up to `MAX_STRIP_FRAMES` frames, evenly spread, into one JPEG inside the page."""
    num_shown = min(len(frames), MAX_STRIP_FRAMES)
    frames = frames[(2 * np.arange(num_shown) + 1) * len(frames) // (2 * num_shown)]  # centre of each equal part
    _, height, width, _ = frames.shape
    frame_width = max(1, round(width * STRIP_HEIGHT / height))
    gap = 2
    strip = Image.new("RGB", (num_shown * (frame_width + gap) - gap, STRIP_HEIGHT), (128, 128, 128))
    for position, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize((frame_width, STRIP_HEIGHT), Image.Resampling.BICUBIC)
        strip.paste(picture, (position * (frame_width + gap), 0))
    content = io.BytesIO()
    strip.save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    alt = f"{num_shown} frames of {result.name}" + (f": {result.caption}" if result.caption is not None else "")
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{strip.width}" height="{strip.height}" '
        f'loading="lazy" alt="{_text(alt)}">'
    )


# Run


def _run_section(run: Mapping[str, JSONValue]) -> str:
    if not run:
        return ""
    lines = [
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in flatten(run).items()
    ]
    return (
        '<section aria-labelledby="run">\n<h2 id="run">How to repeat it</h2>\n'
        f"<details><summary>Command, arguments and versions ({len(lines)} entries)</summary>\n"
        '<table class="run"><thead><tr><th scope="col">name</th><th scope="col">value</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></details>\n</section>"
    )


def flatten(values: Mapping[str, JSONValue], prefix: str = "") -> dict[str, str]:
    """
    Write nested mappings as one level: `{"versions": {"torch": "2.11"}}` becomes `{"versions.torch": "2.11"}`.

    Args:
        values (`Mapping`): JSON values by name.
        prefix (`str`, *optional*, defaults to `""`): Put before every name.

    Returns:
        `dict[str, str]`: Strings as they are, everything else as JSON.
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


_STYLE = """\
:root {
  color-scheme: light dark;
  --back: #ffffff; --panel: #f5f6f8; --text: #1b1f24; --soft: #57606a; --line: #d5d9df;
  --train: #1f5fbf; --eval: #b04a00; --right: #176f2c; --right-back: #e6f4e9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171b; --panel: #1d2127; --text: #e6e9ed; --soft: #a3acb6; --line: #363d46;
    --train: #7db0ff; --eval: #ffb067; --right: #7ddb93; --right-back: #16301d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 70rem;
  background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0; unicode-bidi: isolate; }
p { margin: 0 0 .5rem; }
small { display: block; font-size: .75rem; font-weight: 400; color: var(--soft); }
td small { white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 0; }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .6rem .9rem; min-width: 7rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles .headline { border-left: .3rem solid var(--train); }
.tiles .headline dd { font-size: 2rem; line-height: 1.2; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .5rem; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child { text-align: left; }
td, thead th { overflow-wrap: normal; }
thead th { color: var(--soft); font-size: .875rem; font-weight: 600; }
tbody th { font-weight: 500; }
.run th, .run td { overflow-wrap: anywhere; text-align: left; font: .8125rem/1.45 ui-monospace, monospace; }
.run th { width: 40%; }
summary { cursor: pointer; margin-bottom: .75rem; }
.legend { color: var(--soft); font-size: .875rem; }
.key { display: inline-block; width: 1.6rem; margin: 0 .4rem 0 .75rem; vertical-align: middle; }
.key:first-child { margin-left: 0; }
.key.train { border-top: 2px solid var(--train); }
.key.eval { border-top: 2px dashed var(--eval); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure {
  display: flex; flex-direction: column; margin: 0; padding: .75rem; background: var(--panel); border-radius: .5rem;
}
figcaption { font-size: .875rem; color: var(--soft); margin-bottom: .35rem; }
figcaption strong { color: var(--text); display: block; }
svg { display: block; width: 100%; height: auto; margin-top: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg path.train { stroke: var(--train); }
svg path.eval { stroke: var(--eval); stroke-dasharray: 5 4; }
svg circle.eval { fill: var(--eval); }
article { margin: 0 0 2rem; }
article > p { color: var(--soft); }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .5rem; }
li {
  display: grid; grid-template-columns: minmax(2rem, max-content) minmax(0, 27rem) minmax(8rem, 1fr);
  gap: .75rem; align-items: center;
  padding: .5rem .75rem; border-radius: .5rem; border: 1px solid var(--line);
}
li.right { background: var(--right-back); border-color: var(--right); }
li p { margin: 0; unicode-bidi: isolate; }
.rank { font-size: 1.1rem; font-weight: 600; line-height: 1.3; text-align: center; overflow-wrap: normal; }
.mark { color: var(--right); font-weight: 600; }
.name { font-family: ui-monospace, monospace; font-size: .875rem; }
.score, .nothing { color: var(--soft); font-size: .875rem; }
.score { white-space: nowrap; }
img { max-width: 100%; height: auto; border-radius: .25rem; }
@media (max-width: 40rem) {
  li { grid-template-columns: minmax(2rem, max-content) minmax(0, 1fr); }
  .about { grid-column: 2; }
  table { font-size: .8125rem; }
  td small { white-space: normal; }
  th, td { padding: .3rem .25rem; }
}
"""
