"""What the scores of generated text have in common: the result, one line per text, and the intervals of sums."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.bootstrap import Interval, group_members, percentile_interval, resampled_groups

_LINE_BREAKS_AND_TABS = re.compile(r"\r\n|[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
"""All that `str.splitlines` takes as the end of a line, and the tab, with which `sacrebleu` separates systems."""


class TextResult(NamedTuple):
    """
    Scores of generated text.

    Metrics are fractions as everywhere in this library, so that 0.4169 is what `sacrebleu` prints and papers quote as
    41.69. `signatures` and `sacrebleu_output` hold the numbers in that scale.

    Args:
        metrics (`dict[str, float]`): Metrics and counts by name.
        intervals (`dict[str, tuple[float, float]]`): Bootstrap interval of each metric that is not a count.
        signatures (`dict[str, str]`): How metrics were computed, by the name of the metric.
        row_metric (`str`): What `row_values` are.
        row_values (`np.ndarray` of shape `(num_rows,)`, float64): Value of each row. Their mean is not the value of
            the corpus, unless the metric is defined as a mean.
        sacrebleu_output (`str`): What the command `sacrebleu REFERENCES -i PREDICTIONS -w 3` prints; empty for scores
            that are not those of sacrebleu.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    signatures: dict[str, str]
    row_metric: str
    row_values: np.ndarray
    sacrebleu_output: str = ""


def one_line(text: str) -> str:
    """
    Return a text as one line of a file: line breaks and tabs become spaces, and outer white space is removed.

    A line break would shift all later lines of the file, for whichever of Python's line separators the reader knows.
    `sacrebleu` reads a tab on its standard input as the end of one system's output. A surrogate without its pair,
    which UTF-8 cannot represent, becomes a question mark.

    Args:
        text (`str`): Any text.
    """
    return _LINE_BREAKS_AND_TABS.sub(" ", text).strip().encode("utf-8", "replace").decode("utf-8")


def check_texts(predictions: Sequence[str], references: Sequence[object]) -> None:
    """Raise a `ValueError` unless there are as many predictions as references (or lists of them), at least one."""
    if len(predictions) != len(references) or not predictions:
        raise InputError(
            "Each prediction is scored against the reference of its row, and there must be at least one: got "
            f"{len(predictions)} predictions and {len(references)} references."
        )


def interval_of_sums(
    statistics: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, groups: np.ndarray | None = None
) -> Interval:
    """
    Return the percentile bootstrap interval of a score that is a function of sums over rows.

    Args:
        statistics (`np.ndarray` of shape `(num_rows, num_statistics)`): What each row adds to the sums.
        score (`Callable`): Function of sums `(num_resamples, num_statistics)` that returns `(num_resamples,)`.
        groups (`np.ndarray` of shape `(num_rows,)`, *optional*): Clip of each row; see [`bootstrap_interval`].
    """
    members = group_members(len(statistics), groups)
    of_groups = np.zeros((int(members.max()) + 1, statistics.shape[1]))
    np.add.at(of_groups, members, statistics)
    blocks = resampled_groups(len(of_groups), num_values=len(of_groups))
    return percentile_interval(np.concatenate([score(counts @ of_groups) for counts in blocks]))
