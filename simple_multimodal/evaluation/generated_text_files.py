"""Files of generated text, with the names and formats of multimodalhugs, so that scripts around it read them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from simple_multimodal.evaluation.generated_text import TextResult, one_line
from simple_multimodal.evaluation.result_files import write_whole

PREDICTIONS_FILE = "generated_predictions.txt"
PAIRS_FILE = "predictions_labels.txt"
SCORES_FILE = "predict_results.json"
SACREBLEU_FILE = "test_score.bleu"
ROWS_FILE = "results.jsonl"

_NAMES = {"BLEU": "sacrebleu", "chrF": "chrf", "num_rows": "samples"}
"""Names of multimodalhugs for metrics and counts that it has, too."""


class GeneratedText(NamedTuple):
    """
    What was generated for a row.

    Args:
        row (`int` or `str`): Number or name of the row.
        prediction (`str`): The generated text, as it is; empty for a row that could not be read.
        references (`Sequence[str]`): Reference texts of the row, from its table; empty if it has none.
        score (`float`, *optional*): Score of the beam: the sum of the log-probabilities of its tokens, divided by
            their number to the power of the length penalty.
    """

    row: int | str
    prediction: str
    references: Sequence[str] = ()
    score: float | None = None


def write_generated_texts(
    output_dir: str | os.PathLike[str], rows: Sequence[GeneratedText], result: TextResult | None = None
) -> None:
    """
    Write generated texts and their scores to a folder. Each file is replaced atomically.

    - `generated_predictions.txt`: one line per row, in the order of the rows; an empty text is an empty line.
    - `predictions_labels.txt`: for each row a line `L [i] \\tREFERENCE` per reference and a line
      `P [i] \\tPREDICTION`, where `i` counts the rows from 0. With one reference per row, the lines `L` are the
      references in order; a row without reference has no such line, so that a script that compares the two files line
      by line cannot pair the texts of different rows without noticing.
    - `results.jsonl`: one JSON object per row with its name, the text as it is, references, score of the beam, and the
      value of the result's row metric.

    And if there is a result:

    - `predict_results.json`: its metrics and counts under the names of multimodalhugs (`predict_sacrebleu`,
      `predict_chrf`, `predict_samples`; others as `predict_` with their own name), and in the scale of that file,
      where fractions are times 100.
    - `test_score.bleu`, for scores of sacrebleu: what `sacrebleu REFERENCES -i generated_predictions.txt -w 3`
      prints.

    Texts in the `.txt` files are single lines, see [`one_line`]. `sed -n 's/^L \\[[0-9]\\+\\]\\s*//p'` therefore
    returns the references of `predictions_labels.txt`, one line each.

    Args:
        output_dir (`str` or `os.PathLike`): Existing folder.
        rows (`Sequence[GeneratedText]`): The rows, each once.
        result (`TextResult`, *optional*): Scores of all rows that have references, in order.

    Raises:
        ValueError: If a score is not finite.
    """
    assert result is None or len(result.row_values) == sum(bool(row.references) for row in rows)
    folder = Path(output_dir)
    write_whole(folder / PREDICTIONS_FILE, (f"{one_line(row.prediction)}\n" for row in rows))
    write_whole(folder / PAIRS_FILE, _pairs(rows))
    write_whole(folder / ROWS_FILE, _row_lines(rows, result))
    if result is not None:
        scores = {
            f"predict_{_NAMES.get(name, name)}": 100 * value if name in result.intervals else value
            for name, value in result.metrics.items()
        }
        write_whole(folder / SCORES_FILE, [json.dumps(scores, indent=4, sort_keys=True, allow_nan=False), "\n"])
        if result.sacrebleu_output:
            write_whole(folder / SACREBLEU_FILE, [result.sacrebleu_output, "\n"])


def _pairs(rows: Sequence[GeneratedText]) -> Iterator[str]:
    """Return the lines of references and predictions."""
    for number, row in enumerate(rows):
        for reference in row.references:
            yield f"L [{number}] \t{one_line(reference)}\n"
        yield f"P [{number}] \t{one_line(row.prediction)}\n"


def _row_lines(rows: Sequence[GeneratedText], result: TextResult | None) -> Iterator[str]:
    """Return one line of JSON per row; escapes keep separators of lines such as U+2028 out of the file."""
    values = iter([] if result is None else result.row_values.tolist())
    for row in rows:
        content: dict[str, object] = {
            "row": row.row,
            "prediction": row.prediction,
            "references": list(row.references),
            "score": row.score,
        }
        if result is not None and row.references:
            content[result.row_metric] = next(values)
        yield json.dumps(content, allow_nan=False) + "\n"
