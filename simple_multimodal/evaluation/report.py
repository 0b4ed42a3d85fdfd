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
from simple_multimodal.evaluation.rendering import (
    JSONValue,
    flatten,
    format_chance,
    format_interval,
    format_number,
    render,
)
from simple_multimodal.evaluation.result_files import check_names, write_whole

MAX_STRIP_FRAMES = 6
STRIP_HEIGHT = 96  # height of a strip of frames in pixels
MAX_AUDIO_BYTES = 4 * 2**20  # size of all audio in the page, before base64


@dataclass(frozen=True)
class Excerpt:
    """
    A few seconds of audio.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`, floats): Mono waveform with values in [-1, 1].
        sampling_rate (`int`): Sampling rate in Hz.
    """

    waveform: np.ndarray
    sampling_rate: int

    def to_wav(self) -> bytes:
        """Return the content of a WAV file with 16-bit samples."""
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
    One output of the model for an example, such as a clip that it found or an answer.

    Args:
        name (`str`): Name of the result.
        rank (`int`): Its rank among all candidates, from 1.
        score (`float`): Score that the model gave it.
        is_correct (`bool`): Whether it is right.
        text (`str`, *optional*): Text about it, such as the clip's own caption.
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8 RGB, *optional*):
            Frames in temporal order; without them only the text is shown.
        audio ([`Excerpt`], *optional*): Part of its audio.
    """

    name: str
    rank: int
    score: float
    is_correct: bool
    text: str | None = None
    frames: np.ndarray | None = None
    audio: Excerpt | None = None

    def __post_init__(self) -> None:
        _check_frames(self.name, self.frames)


@dataclass(frozen=True)
class Example:
    """
    An input of the model with its outputs.

    Args:
        title (`str`): The input, such as a query or a question.
        note (`str`): One sentence about the quality of the results, such as the rank of the right one.
        results (`Sequence[ExampleResult]`): Outputs of the model, best first.
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, uint8 RGB, *optional*): Frames of the input.
        audio ([`Excerpt`], *optional*): Part of the audio of the input.
    """

    title: str
    note: str
    results: Sequence[ExampleResult]
    frames: np.ndarray | None = None
    audio: Excerpt | None = None

    def __post_init__(self) -> None:
        _check_frames(self.title, self.frames)


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
    notes: Sequence[str] = (),
    data: Mapping[str, Mapping[str, int]] | None = None,
    intervals: Mapping[str, Interval] | None = None,
    primary_metric: str | None = None,
    chance: Mapping[str, float] | None = None,
    train_chance: Mapping[str, float] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, JSONValue]]] | None = None,
) -> None:
    """
    Write the report of a run as one HTML file that needs no other file and no network.

    The same arguments give the same bytes. All text is escaped and the page forbids scripts, so that captions from
    untrusted sources can be shown.

    Args:
        path (`str` or `os.PathLike`): File to write, e.g. `report.html`; it is replaced.
        title (`str`): Heading of the page.
        log_history (`Sequence[Mapping]`):
            `TrainerState.log_history`. Every key that ends in `loss` is plotted with its `eval_` counterpart over
            `step`; recalls and accuracies that were evaluated at two or more steps are plotted as well, then learning
            rate and speed.
        metrics (`Mapping[str, float]`):
            Metrics by name. Names that end in `R@1`, `R@5`, `R@10`, `median_rank` or `mean_rank` form a table with
            one row per prefix, the others a list.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): Numbers of queries, clips etc. that the metrics are computed over.
        examples (`Sequence[Example]`): Inputs of the model with its outputs; may be empty. Audio beyond
            `MAX_AUDIO_BYTES` is left out.
        run (`Mapping`): Command, arguments and versions of the run, shown as a table. Must not contain secrets.
        notes (`Sequence[str]`, *optional*): Sentences about the command, shown under it.
        data (`Mapping[str, Mapping[str, int]]`, *optional*): Counts of each data set by its role, e.g.
            `{"training": {"rows": 12000, "clips": 12000}}`.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals by metric name.
        primary_metric (`str`, *optional*): Name of the metric that is shown large.
        chance (`Mapping[str, float]`, *optional*): Chance levels by metric name that do not follow from the metrics.
        train_chance (`Mapping[str, float]`, *optional*): Chance levels in training by name of the loss.
        tables (`Mapping[str, Sequence[Mapping]]`, *optional*): Further tables by title: rows with the same columns.

    Raises:
        ValueError: If `primary_metric` or an interval is not one of the metrics.
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
        chance_text={name: format_chance(name, float(level), num_queries.get(name)) for name, level in chance.items()},
        columns=glossary.RETRIEVAL_COLUMNS,
        retrieval=retrieval,
        others=[name for name in metrics if name not in in_table],
        tables=tables or {},
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
        notes=notes,
    )
    # A lone surrogate, which a caption read from JSON may contain, cannot be encoded in UTF-8.
    write_whole(path, [page.encode("utf-8", errors="xmlcharrefreplace").decode("utf-8")])


def _with_chance(chart: charts.Chart, train: Mapping[str, float], evaluation: Mapping[str, float]) -> charts.Chart:
    """Add the chance levels in training and in evaluation to the notes of a chart, if they are known."""
    levels = {
        "training": train.get(chart.name) if chart.train else None,
        "evaluation": evaluation.get(chart.name) if chart.evaluation else None,
    }
    said = [f"{format_number(chart.name, level)} in {kind}" for kind, level in levels.items() if level is not None]
    return chart._replace(notes=f"{chart.notes}; chance {', '.join(said)}") if said else chart


def _retrieval_rows(metrics: Mapping[str, float]) -> list[dict]:
    """Return rows of the retrieval table: prefix, the name of the metric or `None` per column, and names of counts."""
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


def _check_frames(name: str, frames: np.ndarray | None) -> None:
    if frames is not None and (
        frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0 or frames.dtype != np.uint8
    ):
        raise InputError(
            f"Frames of {name!r} must be uint8 of shape (num_frames, height, width, 3), got {frames.dtype} of shape "
            f"{frames.shape}."
        )


def _shown(examples: Sequence[Example]) -> list[dict]:
    """Return examples for the template: with encoded frames, and audio up to `MAX_AUDIO_BYTES`."""
    num_bytes = 0

    def encoded(item: Example | ExampleResult) -> dict:
        nonlocal num_bytes
        audio = None if item.audio is None else item.audio.to_wav()
        is_left_out = audio is not None and num_bytes + len(audio) > MAX_AUDIO_BYTES
        if audio is not None and not is_left_out:
            num_bytes += len(audio)
        return {
            "strip": None if item.frames is None else _strip(item.frames),
            "audio": None if audio is None or is_left_out else _encoded(audio),
            "seconds": None if item.audio is None else len(item.audio.waveform) / item.audio.sampling_rate,
            "is_left_out": is_left_out,
        }

    return [
        {
            "example": example,
            **encoded(example),
            "results": [{"result": result, **encoded(result)} for result in example.results],
        }
        for example in examples
    ]


def _strip(frames: np.ndarray) -> dict:
    """Join up to `MAX_STRIP_FRAMES` evenly spaced frames into one JPEG."""
    num_shown = min(len(frames), MAX_STRIP_FRAMES)
    frames = frames[(2 * np.arange(num_shown) + 1) * len(frames) // (2 * num_shown)]  # center of each equal part
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
