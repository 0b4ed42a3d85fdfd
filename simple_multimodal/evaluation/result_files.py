"""Files of results, each there whole or not at all: rows, and the metrics file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval
from simple_multimodal.evaluation.precision import Precision
from simple_multimodal.output_folder import write_atomically


def write_whole(path: str | os.PathLike[str], pieces: Iterable[str]) -> None:
    """
    Write a text file whole or not at all, see [`write_atomically`].

    Args:
        path (`str` or `os.PathLike`): File to write, UTF-8; it is replaced.
        pieces (`Iterable[str]`): Its text. If making it fails, what was there before stays.
    """
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping]) -> None:
    """
    Write rows as one JSON list with a row per line, without holding more than one of them.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        rows (`Iterable[Mapping]`): Rows that JSON can hold, e.g. [`retrieval_rows`] or [`question_answering_rows`].

    Raises:
        ValueError: If a row holds a number that is not finite.
    """

    def pieces() -> Iterable[str]:
        encode = json.JSONEncoder(allow_nan=False).encode  # made once: there may be millions of rows
        separator = "[\n"
        for row in rows:
            yield separator + encode(row)
            separator = ",\n"
        yield "\n]\n" if separator == ",\n" else "[]\n"

    write_whole(path, pieces())


def write_metrics(
    path: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float],
    protocol: str,
    counts: Mapping[str, int],
    intervals: Mapping[str, Interval] | None = None,
    primary_metric: str | None = None,
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
        primary_metric (`str`, *optional*): Name of the metric that sums up the run.
        selection_split (`str`, *optional*):
            Split by whose numbers the checkpoint was chosen, e.g. `"validation"`; `null` in the file: by none.
        audio_crop (`str`, *optional*): What the model heard of longer audio, in words; `None`: all of it.
        precision (`str`, *optional*): What the model computed in: `"fp32"`, `"bf16"` or `"fp16"`.
        decoder (`str`, *optional*): What decoded frames, such as `"pyav"` or `"torchcodec on cuda"`.
        bad_samples (`Sequence[Mapping[str, str]]`, *optional*): What could not be read, and counts as wrong.

    Raises:
        ValueError: If a number is not finite, or if `primary_metric` or an interval names no metric.
    """
    intervals = intervals or {}
    check_names(metrics, intervals, primary_metric)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"Metric {name!r} is {value}, which JSON cannot hold. Leave out what was not measured.")
    content: dict[str, object] = {
        "protocol": protocol,
        "selection_split": selection_split,
        "precision": precision,
        "decoder": decoder,
        "primary_metric": primary_metric,
        "counts": dict(counts),
        "metrics": dict(metrics),
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }
    if audio_crop is not None:
        content["audio_crop"] = audio_crop
    if bad_samples:
        content["bad_samples"] = [dict(sample) for sample in bad_samples]
    write_whole(path, [json.dumps(content, indent=2, allow_nan=False), "\n"])


def check_names(metrics: Mapping[str, float], intervals: Mapping[str, Interval], primary_metric: str | None) -> None:
    """Refuse a primary_metric or an interval of something that was not measured."""
    for name in (*intervals, *([primary_metric] if primary_metric is not None else [])):
        if name not in metrics:
            raise InputError(f"{name!r} is none of the metrics ({', '.join(metrics) or 'there are none'}).")
