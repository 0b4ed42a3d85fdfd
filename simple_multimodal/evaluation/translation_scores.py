"""Scores of translations: BLEU and chrF of sacrebleu, and BLEU-n and ROUGE-L of sign language papers."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from simple_multimodal.errors import MissingPackageError
from simple_multimodal.evaluation.alignment import ROUGE_BETA, rouge_l
from simple_multimodal.evaluation.bootstrap import (
    MAX_BOOTSTRAP_ELEMENTS,
    NUM_RESAMPLES,
    Interval,
    bootstrap_interval,
    resampled_mean,
)
from simple_multimodal.evaluation.generated_text import TextResult, check_texts, one_line
from simple_multimodal.evaluation.glossary import UNSEEN

MAX_ORDER = 4
"""Largest n of BLEU-n."""

SEED = 12345
"""Random seed of the intervals, that of sacrebleu."""


def require_sacrebleu() -> ModuleType:
    """Import the package `sacrebleu`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("sacrebleu")
    except ImportError as error:
        raise MissingPackageError(
            "BLEU and chrF need the package sacrebleu: pip install 'simple-multimodal[bleu]', or pip install "
            "sacrebleu."
        ) from error


def translation_result(
    predictions: Sequence[str], references: Sequence[str], *, training_texts: Collection[str] | None = None
) -> TextResult:
    """
    Score translations as `sacrebleu` (Post, 2018, arXiv:1804.08771) does, and as sign language papers do.

    BLEU of a corpus is not the mean of its batches: give all rows at once. Texts are compared as they are, but for
    line breaks and tabs, which count as spaces because the files have one line per row (see [`one_line`]). References
    are the strings of the table, never decoded labels, in which unknown words and cut ends are missing.

    Metrics are fractions, as all metrics of this library; `signatures` have the lines that papers quote, with
    sacrebleu's numbers between 0 and 100.

    Args:
        predictions (`Sequence[str]` of length `num_rows`): Translations. An empty one counts, also that of a row that
            could not be read.
        references (`Sequence[str]` of length `num_rows`): Reference of each row.
        training_texts (`Collection[str]`, *optional*): Targets of the training table. A model may have learned their
            sentences by heart; all metrics are therefore repeated, with the prefix `unseen_`, over the rows whose
            reference does not occur among them; without such rows, they are left out.

    Returns:
        [`TextResult`] with these metrics, of which each has an interval, and the counts `num_rows` and, with
        `training_texts`, `num_unseen_rows`:

        - `BLEU` (Papineni et al., 2002): tokenizer 13a, case as it is, exponential smoothing.
        - `chrF` (Popović, 2015) and `chrF++` (Popović, 2017), which also counts words and their pairs.
        - `BLEU-1` to `BLEU-4`: in lower case, over words between white space, with the same smoothing.
        - `ROUGE-L`: mean over rows of [`rouge_l`] over the same words.

        The intervals of the first three and of `BLEU-n` are sacrebleu's: mean and 95 % range of 1000 resamples of the
        rows, with its seed. The row metric is `BLEU` with effective order, as sacrebleu computes it for one sentence.

    Raises:
        ValueError: If the numbers of predictions and references differ, **or** there are none.
        ImportError: If `sacrebleu` is not installed.

    Example:

    ```python
    >>> result = translation_result(["am freitag regnet es im norden"], ["am freitag schneit es im norden"])
    >>> round(result.metrics["BLEU-1"], 4)
    0.8333
    >>> print(result.sacrebleu_output)
    {
     "name": "BLEU",
     "score": 37.992,
    ...
    ```
    """
    check_texts(predictions, references)
    predictions, targets = [one_line(text) for text in predictions], [one_line(text) for text in references]
    result = _scores(predictions, targets)
    if training_texts is None:
        return result
    known = set(training_texts)
    unseen = [row for row, reference in enumerate(references) if reference not in known]
    counts: dict[str, float] = {"num_unseen_rows": len(unseen)}
    if not unseen:
        return result._replace(metrics=result.metrics | counts)
    part = _scores([predictions[row] for row in unseen], [targets[row] for row in unseen])
    part_metrics = {f"{UNSEEN}{name}": part.metrics[name] for name in part.intervals}
    return result._replace(
        metrics=result.metrics | part_metrics | counts,
        intervals=result.intervals | {f"{UNSEEN}{name}": interval for name, interval in part.intervals.items()},
        signatures=result.signatures | {f"{UNSEEN}{name}": line for name, line in part.signatures.items()},
    )


def _scores(predictions: list[str], references: list[str]) -> TextResult:
    """Return the scores of lines, without those of a part of the rows."""
    sacrebleu = require_sacrebleu()
    # `force` silences a warning about references with a space before the full stop, which many tables have.
    bleu = {"references": [references], "force": True}
    scorers = {
        "BLEU": sacrebleu.BLEU(**bleu),
        "chrF": sacrebleu.CHRF(references=[references]),
        "chrF++": sacrebleu.CHRF(references=[references], word_order=2),
    }
    for order in range(1, MAX_ORDER + 1):
        scorers[f"BLEU-{order}"] = sacrebleu.BLEU(**bleu, lowercase=True, tokenize="none", max_ngram_order=order)

    scores = {name: scorer.corpus_score(predictions, None) for name, scorer in scorers.items()}
    lines = {name: scorer.get_signature().format() for name, scorer in scorers.items()}
    metrics = {name: score.score / 100 for name, score in scores.items()}
    signatures = {name: score.format(width=3, signature=lines[name]) for name, score in scores.items()}
    intervals = {name: _interval(scorer, predictions) for name, scorer in scorers.items()}

    pairs = [*zip(predictions, references, strict=True)]
    rouge = np.array([rouge_l(text.lower().split(), [reference.lower().split()]) for text, reference in pairs])
    metrics["ROUGE-L"] = float(rouge.mean())
    intervals["ROUGE-L"] = bootstrap_interval(rouge, resampled_mean)
    signatures["ROUGE-L"] = f"ROUGE-L|nrefs:1|case:lc|tok:none|beta:{ROUGE_BETA} = {100 * metrics['ROUGE-L']:.3f}"
    of_row = sacrebleu.BLEU(effective_order=True)
    return TextResult(
        metrics | {"num_rows": len(predictions)},
        intervals,
        signatures,
        row_metric="BLEU",
        row_values=np.array([of_row.sentence_score(text, [reference]).score / 100 for text, reference in pairs]),
        sacrebleu_output=scores["BLEU"].format(width=3, signature=lines["BLEU"], is_json=True),
    )


def _interval(scorer: Any, predictions: list[str]) -> Interval:
    """
    Return the bootstrap interval of sacrebleu, from the same resamples and in its precision.

    Its own function takes about 100 kB per row, and in version 2.6 raises a TypeError for chrF if a resample has no
    character in common with the references, as at the start of a training: it adds floats and NumPy's float32.
    """
    statistics = np.array(scorer._extract_corpus_statistics(predictions, None), dtype=np.float64)
    num_rows = len(statistics)
    generator = np.random.default_rng(SEED)
    block = max(1, MAX_BOOTSTRAP_ELEMENTS // num_rows)
    scores = []
    for start in range(0, NUM_RESAMPLES, block):
        for rows in generator.choice(num_rows, size=(min(block, NUM_RESAMPLES - start), num_rows)):
            sums = np.bincount(rows, minlength=num_rows) @ statistics
            scores.append(float(scorer._compute_score_from_stats(sums.astype(np.float32)).score))
    scores.sort()
    outside = NUM_RESAMPLES // 40  # on each side
    mean, half_range = float(np.mean(scores)), (scores[-1 - outside] - scores[outside]) / 2
    return (mean - half_range) / 100, (mean + half_range) / 100
