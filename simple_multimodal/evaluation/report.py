"""The report of a run: one self-contained HTML page with metrics, curves, data and examples."""

from __future__ import annotations

import base64
import io
import os
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation import charts, glossary
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.rendering import JSONValue, flatten, format_interval, format_number, render
from simple_multimodal.evaluation.result_files import check_names, write_whole

MAX_STRIP_FRAMES = 6
STRIP_HEIGHT = 96  # of a frame strip in the file, in pixels
MAX_AUDIO_BYTES = 4 * 2**20  # of all audio in the page, before base64


@dataclass(frozen=True)
class Excerpt:
    """
    A few seconds of audio.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`, floats): Mono, full scale at -1 and 1.
        sampling_rate (`int`): In Hz.
    """

    waveform: np.ndarray
    sampling_rate: int

    def to_wav(self) -> bytes:
        """Return a WAV file of 16-bit samples."""
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sampling_rate)
            file.writeframes((np.clip(self.waveform, -1, 1) * 32767).round().astype("<i2").tobytes())
        return content.getvalue()


@dataclass(frozen=True)
class ExampleResult:
    """
    One thing that the model gave for an example, such as a clip that it found or an answer.

    Args:
        name (`str`): What it is called.
        rank (`int`): Its place among all candidates, from 1.
        score (`float`): What the model scored it.
        is_correct (`bool`): Whether it is right.
        text (`str`, *optional*): Words about it, such as the clip's own caption.
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8 RGB, *optional*):
            Some frames in the order of time; without them only the text is shown.
        audio ([`Excerpt`], *optional*): What is heard of it.
    """

    name: str
    rank: int
    score: float
    is_correct: bool
    text: str | None = None
    frames: np.ndarray | None = None
    audio: Excerpt | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and (
            self.frames.ndim != 4
            or self.frames.shape[3] != 3
            or self.frames.size == 0
            or self.frames.dtype != np.uint8
        ):
            raise InputError(
                f"Frames of {self.name!r} must be uint8 of shape (num_frames, height, width, 3), got "
                f"{self.frames.dtype} of shape {self.frames.shape}."
            )


@dataclass(frozen=True)
class Example:
    """
    Something that the model was asked, with what it gave.

    Args:
        title (`str`): What it was asked, such as a query or a question.
        note (`str`): One sentence on how it did, such as the rank of the right result.
        results (`Sequence[ExampleResult]`): What it gave, best first.
    """

    title: str
    note: str
    results: Sequence[ExampleResult]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    log_history: Sequence[Mapping[str, JSONValue]],
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    examples: Sequence[Example],
    run: Mapping[str, JSONValue],
    data: Mapping[str, Mapping[str, int]] | None = None,
    intervals: Mapping[str, Interval] | None = None,
    primary_metric: str | None = None,
    chance: Mapping[str, float] | None = None,
    train_chance: Mapping[str, float] | None = None,
) -> None:
    """
    Write the report of a run as one HTML file that needs no other file and no network.

    The same arguments give the same bytes. All text is escaped and the page forbids scripts, so captions from
    anywhere may be shown.

    Args:
        path (`str` or `os.PathLike`): File to write, e.g. `report.html`; it is replaced.
        title (`str`): Heading of the page.
        log_history (`Sequence[Mapping]`):
            `TrainerState.log_history`. Every key that ends in `loss` is drawn with its `eval_` counterpart over
            `step`; recalls and accuracies that were evaluated at two steps or more are drawn as well, then learning
            rate and speed.
        metrics (`Mapping[str, float]`):
            Metrics by name. Names that end in `R@1`, `R@5`, `R@10`, `median_rank` or `mean_rank` form a table with
            one row per prefix, the others a list.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): What the numbers are over.
        examples (`Sequence[Example]`): What the model was asked and gave; may be empty. Audio stops where
            `MAX_AUDIO_BYTES` are reached.
        run (`Mapping`): What made the run (command, arguments, versions), shown as a table. Must not contain secrets.
        data (`Mapping[str, Mapping[str, int]]`, *optional*): Numbers of each data set by its role, e.g.
            `{"training": {"rows": 12000, "clips": 12000}}`.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals by metric name.
        primary_metric (`str`, *optional*): Name of the metric that is shown large.
        chance (`Mapping[str, float]`, *optional*): What guessing scores, by metric name, where that does not follow
            from the metrics.
        train_chance (`Mapping[str, float]`, *optional*): What guessing scores in training, by name of the loss.

    Raises:
        ValueError: If `primary_metric` or an interval names no metric.
    """
    intervals = intervals or {}
    check_names(metrics, intervals, primary_metric)
    chance = glossary.chance_levels(metrics) | dict(chance or {})
    num_queries = glossary.numbers_of_queries(metrics, counts)
    retrieval = _retrieval_rows(metrics)
    in_table = {name for row in retrieval for name in (*row["cells"], *row["counts"].values())}
    losses = [
        _with_chance(chart, train_chance or {}, {name.removeprefix("eval_"): level for name, level in chance.items()})
        for chart in charts.loss_charts(
            log_history, {name.removeprefix("eval_"): number for name, number in num_queries.items()}
        )
    ]
    page = render(
        "report.html.jinja",
        filters={
            "number": lambda value, name="": format_number(name, value, num_queries.get(name)),
            "interval": lambda name: format_interval(name, intervals, num_queries.get(name)),
            "meaning": glossary.meaning,
        },
        title=title,
        protocol=protocol,
        counts=counts,
        num_queries=num_queries,
        primary_metric=primary_metric,
        metrics=metrics,
        intervals=intervals,
        chance=chance,
        chance_text={name: format_number(name, float(level)) for name, level in chance.items()},
        columns=glossary.RETRIEVAL_COLUMNS,
        retrieval=retrieval,
        others=[name for name in metrics if name not in in_table],
        charts=charts,
        losses=losses,
        pace=charts.pace_charts(log_history),
        contrast=glossary.CONTRAST
        if any(chart.name.startswith("contrastive_") and chart.train and chart.evaluation for chart in losses)
        else None,
        data=data or {},
        data_columns=list(dict.fromkeys(column for values in (data or {}).values() for column in values)),
        examples=_shown(examples),
        run=flatten(run),
    )
    # A lone surrogate, possible in a caption read from JSON, has no UTF-8 form.
    write_whole(path, [page.encode("utf-8", errors="xmlcharrefreplace").decode("utf-8")])


def _with_chance(chart: charts.Chart, train: Mapping[str, float], evaluation: Mapping[str, float]) -> charts.Chart:
    """Add to the notes of a chart what guessing scores in training and in evaluation, where that is known."""
    levels = {
        "training": train.get(chart.name) if chart.train else None,
        "evaluation": evaluation.get(chart.name) if chart.evaluation else None,
    }
    said = [f"{format_number(chart.name, level)} in {kind}" for kind, level in levels.items() if level is not None]
    return chart._replace(notes=f"{chart.notes}; chance {', '.join(said)}") if said else chart


def _retrieval_rows(metrics: Mapping[str, float]) -> list[dict]:
    """Rows of the table of retrieval: prefix, the metric's name or `None` in each column, and names of counts."""
    rows: dict[str, dict[str, str]] = {}
    for name in metrics:
        column = next((column for column in glossary.RETRIEVAL_COLUMNS if name.endswith(column)), None)
        if column is not None:
            rows.setdefault(name.removesuffix(column), {})[column] = name
    return [
        {
            "prefix": prefix,
            "cells": [names.get(column) for column in glossary.RETRIEVAL_COLUMNS],
            "counts": {
                what: f"{prefix}num_{what}" for what in ("queries", "candidates") if f"{prefix}num_{what}" in metrics
            },
        }
        for prefix, names in rows.items()
    ]


def _shown(examples: Sequence[Example]) -> list[dict]:
    """Examples as the page shows them: frames and audio as data, the latter up to `MAX_AUDIO_BYTES`."""
    num_bytes = 0
    shown = []
    for example in examples:
        results = []
        for result in example.results:
            audio = None if result.audio is None else result.audio.to_wav()
            is_left_out = audio is not None and num_bytes + len(audio) > MAX_AUDIO_BYTES
            if audio is not None and not is_left_out:
                num_bytes += len(audio)
            results.append(
                {
                    "result": result,
                    "strip": None if result.frames is None else _strip(result.frames),
                    "audio": None if audio is None or is_left_out else _encoded(audio),
                    "seconds": None
                    if result.audio is None
                    else len(result.audio.waveform) / result.audio.sampling_rate,
                    "is_left_out": is_left_out,
                }
            )
        shown.append({"example": example, "results": results})
    return shown


def _strip(frames: np.ndarray) -> dict:
    """Join up to `MAX_STRIP_FRAMES` frames, evenly spread, into one JPEG."""
    num_shown = min(len(frames), MAX_STRIP_FRAMES)
    frames = frames[(2 * np.arange(num_shown) + 1) * len(frames) // (2 * num_shown)]  # centre of each equal part
    _, height, width, _ = frames.shape
    frame_width = max(1, round(width * STRIP_HEIGHT / height))
    gap = 2
    strip = Image.new("RGB", (num_shown * (frame_width + gap) - gap, STRIP_HEIGHT), (128, 128, 128))
    for position, frame in enumerate(frames):
        image = Image.fromarray(frame).resize((frame_width, STRIP_HEIGHT), Image.Resampling.BICUBIC)
        strip.paste(image, (position * (frame_width + gap), 0))
    content = io.BytesIO()
    strip.save(content, "JPEG", quality=85)
    return {
        "data": _encoded(content.getvalue()),
        "width": strip.width,
        "height": strip.height,
        "num_frames": num_shown,
    }


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
