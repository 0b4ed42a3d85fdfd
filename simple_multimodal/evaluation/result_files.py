"""Result files, written atomically: rows and metrics."""

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
    Write a text file atomically, see [`write_atomically`].

    Args:
        path (`str` or `os.PathLike`): File to write, UTF-8; it is replaced.
        pieces (`Iterable[str]`): Its text. If the iterable raises an error, the previous file is kept.
    """
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping]) -> None:
    """
    Write rows as one JSON list with a row per line, holding one row in memory at a time.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        rows (`Iterable[Mapping]`): JSON-serializable rows, e.g. [`retrieval_rows`] or [`question_answering_rows`].

    Raises:
        ValueError: If a row contains a number that is not finite.
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
    deviations: Sequence[str] = (),
    signatures: Mapping[str, str] | None = None,
) -> None:
    """
    Write the metrics file: JSON with the protocol, the counts, the numbers as fractions, and their intervals.

    Args:
        path (`str` or `os.PathLike`): File to write; it is replaced.
        metrics (`Mapping[str, float]`): Metrics by name.
        protocol (`str`): Name of the protocol that the numbers follow.
        counts (`Mapping[str, int]`): Numbers of queries, clips, skipped samples etc. behind the metrics.
        intervals (`Mapping[str, tuple[float, float]]`, *optional*): Bootstrap intervals by metric name.
        primary_metric (`str`, *optional*): Name of the metric that sums up the run.
        selection_split (`str`, *optional*):
            Split that the checkpoint was selected on, e.g. `"validation"`; without one it is `null` in the file.
        audio_crop (`str`, *optional*): Description of the part of longer audio that the model used; `None` for all.
        precision (`str`, *optional*): Precision in which the model computed: `"fp32"`, `"bf16"` or `"fp16"`.
        decoder (`str`, *optional*): Decoder of the frames, such as `"pyav"` or `"torchcodec on cuda"`.
        bad_samples (`Sequence[Mapping[str, str]]`, *optional*): Samples that could not be read, which count as wrong.
        deviations (`Sequence[str]`, *optional*): How the measured manifest deviates from the protocol, one line each.
        signatures (`Mapping[str, str]`, *optional*): How metrics were computed, by metric name; see [`TextResult`].

    Raises:
        ValueError: If a number is not finite, **or** `primary_metric` or an interval is not one of the metrics.
    """
    intervals = intervals or {}
    check_names(metrics, intervals, primary_metric)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"Metric {name!r} is {value}, which JSON cannot represent. Leave it out.")
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
    if deviations:
        content["deviations"] = list(deviations)
    if signatures:
        content["signatures"] = dict(signatures)
    if audio_crop is not None:
        content["audio_crop"] = audio_crop
    if bad_samples:
        content["bad_samples"] = [dict(sample) for sample in bad_samples]
    write_whole(path, [json.dumps(content, indent=2, allow_nan=False), "\n"])


def check_names(metrics: Mapping[str, float], intervals: Mapping[str, Interval], primary_metric: str | None) -> None:
    """Raise a `ValueError` if the primary metric or an interval is not one of the metrics."""
    for name in (*intervals, *([primary_metric] if primary_metric is not None else [])):
        if name not in metrics:
            raise InputError(f"{name!r} is not one of the metrics ({', '.join(metrics) or 'there are none'}).")
