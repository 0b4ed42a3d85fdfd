"""Scores of generated captions with several references: BLEU, ROUGE-L and CIDEr-D as captioning papers report them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.alignment import rouge_l
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean
from simple_multimodal.evaluation.caption_tokens import caption_tokens
from simple_multimodal.evaluation.generated_text import TextResult, check_texts, interval_of_sums

MAX_ORDER = 4
"""Number of tokens of the longest n-grams that are counted."""

CIDER_SIGMA = 6.0
"""Standard deviation, in n-grams, of the Gaussian penalty for captions of another length than the reference."""

SIGNATURE = "tok:ptb-rules|case:lc|ref_len:closest|as:pycocoevalcap-1.2|meteor:no, it needs Java"


def caption_result(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, groups: np.ndarray | None = None
) -> TextResult:
    """
    Score captions with the definitions of `pycocoevalcap` 1.2, which captioning papers use, without Java.

    BLEU-n (Papineni et al., 2002) is that of the corpus, with the length of the closest reference. ROUGE-L is the mean
    over rows of [`rouge_l`]. CIDEr-D (Vedantam et al., 2015, arXiv:1411.5726) is the mean over rows of [`cider_d`]; it
    is between 0 and 10, and papers quote it times 100 as they do the others. METEOR is not computed: it is defined by
    a Java program with its tables of synonyms, and other implementations give other numbers.

    Args:
        predictions (`Sequence[str]` of length `num_rows`): Generated captions. An empty one counts.
        references (`Sequence[Sequence[str]]` of length `num_rows`): References of each row, at least one.
        groups (`np.ndarray` of shape `(num_rows,)`, *optional*): Clip of each row; see [`bootstrap_interval`].

    Returns:
        [`TextResult`] with the metrics `BLEU-1` to `BLEU-4`, `ROUGE-L`, `CIDEr-D` and `num_rows`; the row metric is
        `CIDEr-D`. The intervals of `CIDEr-D` leave the weights of n-grams, which all rows define, as they are.

    Raises:
        ValueError: If the numbers of predictions and references differ, there are none, **or** a row has no reference.
    """
    check_texts(predictions, references)
    if without := [row for row, texts in enumerate(references) if not texts]:
        raise InputError(
            f"{len(without)} of {len(references)} rows have no reference caption (first: row {without[0]}). Leave "
            "them out of the scores."
        )
    tokens = [caption_tokens(text) for text in predictions]
    reference_tokens = [[caption_tokens(text) for text in texts] for texts in references]
    counts = [_ngram_counts(words) for words in tokens]
    reference_counts = [[_ngram_counts(words) for words in texts] for texts in reference_tokens]

    statistics = np.array(
        [
            _bleu_statistics(len(words), row_counts, [len(reference) for reference in texts], row_references)
            for words, row_counts, texts, row_references in zip(
                tokens, counts, reference_tokens, reference_counts, strict=True
            )
        ]
    )
    rouge = np.array([rouge_l(words, texts) for words, texts in zip(tokens, reference_tokens, strict=True)])
    cider = cider_d(counts, reference_counts)

    metrics, intervals = {}, {}
    for order in range(1, MAX_ORDER + 1):

        def bleu(sums: np.ndarray, order: int = order) -> np.ndarray:
            return _bleu_of_sums(sums, order)

        metrics[f"BLEU-{order}"] = float(bleu(statistics.sum(axis=0, keepdims=True))[0])
        intervals[f"BLEU-{order}"] = interval_of_sums(statistics, bleu, groups=groups)
    for name, values in (("ROUGE-L", rouge), ("CIDEr-D", cider)):
        metrics[name] = float(values.mean())
        intervals[name] = bootstrap_interval(values, resampled_mean, groups=groups)
    numbers = sorted({len(texts) for texts in references})
    num_references = "-".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    return TextResult(
        metrics | {"num_rows": len(predictions)},
        intervals,
        dict.fromkeys(metrics, f"nrefs:{num_references}|{SIGNATURE}"),
        row_metric="CIDEr-D",
        row_values=cider,
    )


def cider_d(counts: Sequence[Counter], references: Sequence[Sequence[Counter]]) -> np.ndarray:
    """
    Compute CIDEr-D of each row (Vedantam et al., 2015, arXiv:1411.5726): ten times the mean, over n-gram lengths and
    references, of the cosine of the clipped n-gram counts, each weighted by the inverse of how many rows it occurs in.

    Args:
        counts (`Sequence[Counter]` of length `num_rows`): Count of each n-gram, a tuple of tokens, in each caption.
        references (`Sequence[Sequence[Counter]]` of length `num_rows`): The same of the references of each row.

    Returns:
        `np.ndarray` of shape `(num_rows,)`, float64, between 0 and 10. For one row it is 0: all its n-grams are in all
        rows and weigh nothing.
    """
    row_counts = Counter(ngram for texts in references for ngram in set().union(*texts))
    log_rows = math.log(len(counts))

    def weighted(ngrams: Counter) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """Return the weighted n-grams of each length, their norms, and the number of bigrams."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in ngrams.items():
            vectors[len(ngram) - 1][ngram] = count * (log_rows - math.log(max(row_counts[ngram], 1)))
        norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for ngram, count in ngrams.items() if len(ngram) == 2)

    values = np.zeros(len(counts))
    for row, (ngrams, texts) in enumerate(zip(counts, references, strict=True)):
        vectors, norms, length = weighted(ngrams)
        total = 0.0
        for reference_vectors, reference_norms, reference_length in map(weighted, texts):
            similarity = 0.0
            for vector, norm, reference, reference_norm in zip(
                vectors, norms, reference_vectors, reference_norms, strict=True
            ):
                if norm and reference_norm:
                    shared = sum(min(value, reference.get(ngram, 0)) * reference.get(ngram, 0)
                                 for ngram, value in vector.items())  # fmt: skip
                    similarity += shared / (norm * reference_norm)
            total += similarity * math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
        values[row] = 10 * total / MAX_ORDER / len(texts)
    return values


def _ngram_counts(tokens: Sequence[str]) -> Counter:
    """Return how often each n-gram of up to `MAX_ORDER` tokens occurs."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def _bleu_statistics(
    length: int, counts: Counter, reference_lengths: Sequence[int], references: Sequence[Counter]
) -> list[int]:
    """Return the length, that of the closest reference (the shorter of two), and how many n-grams of each length are
    right, clipped to the reference that has the most, and how many there are.
    """
    closest = min(reference_lengths, key=lambda reference: (abs(reference - length), reference))
    right = [0] * MAX_ORDER
    for ngram, count in counts.items():
        right[len(ngram) - 1] += min(count, max(reference[ngram] for reference in references))
    return [length, closest, *right, *(max(length - order, 0) for order in range(MAX_ORDER))]


def _bleu_of_sums(sums: np.ndarray, max_order: int) -> np.ndarray:
    """Return BLEU `(num_sums,)` of sums of [`_bleu_statistics`] `(num_sums, 2 + 2 * MAX_ORDER)`, with the tiny numbers
    that `pycocoevalcap` adds so that no division is by 0.
    """
    small, tiny = 1e-9, 1e-15
    right, total = sums[:, 2 : 2 + max_order], sums[:, 2 + MAX_ORDER : 2 + MAX_ORDER + max_order]
    precision = np.prod((right + tiny) / (total + small), axis=1) ** (1 / max_order)
    ratio = (sums[:, 0] + tiny) / (sums[:, 1] + small)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))
