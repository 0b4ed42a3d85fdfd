"""Word and character error rates of transcripts, with their normalization."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.alignment import edit_distance
from simple_multimodal.evaluation.caption_tokens import WORD
from simple_multimodal.evaluation.generated_text import TextResult, check_texts, interval_of_sums

_SPOKEN_WORD = re.compile(rf"{WORD}(?:'{WORD})*")

SIGNATURE = "case:lc|punctuation:no|unicode:nfkc|numbers:as written"


def transcript_words(text: str) -> list[str]:
    """
    Return the words of a transcript as they are compared: lower case, without punctuation, in Unicode's NFKC form.

    Words are sequences of letters and digits, with apostrophes inside: `It's` is one word, `high-five` two. Numbers,
    abbreviations and spellings stay as they are written, so that `5` is not `five`.

    Args:
        text (`str`): A transcript.

    Example:

    ```python
    >>> transcript_words("It’s a high-five, Dr. Jones!")
    ["it's", 'a', 'high', 'five', 'dr', 'jones']
    ```
    """
    return _SPOKEN_WORD.findall(unicodedata.normalize("NFKC", text).replace("’", "'").lower())


def transcript_result(
    predictions: Sequence[str], references: Sequence[str], *, groups: np.ndarray | None = None
) -> TextResult:
    """
    Compute the error rates of transcripts: insertions, deletions and substitutions over all rows, divided by the
    number of words (or characters) of all references.

    Both texts are normalized by [`transcript_words`]; characters are those of the words with one space between them.

    Args:
        predictions (`Sequence[str]` of length `num_rows`): Transcripts. An empty one misses all words of its row.
        references (`Sequence[str]` of length `num_rows`): What was said.
        groups (`np.ndarray` of shape `(num_rows,)`, *optional*): Clip of each row; see [`bootstrap_interval`].

    Returns:
        [`TextResult`] with the metrics `WER`, `CER`, `num_rows` and `num_words`, that of the references; lower is
        better, and values above 1 are possible. The row metric is `WER`; in a row where nothing was said it is the
        number of words in the transcript.

    Raises:
        ValueError: If the numbers of predictions and references differ, there are none, **or** no reference has a
            word.
    """
    check_texts(predictions, references)
    pairs = [
        (transcript_words(text), transcript_words(reference))
        for text, reference in zip(predictions, references, strict=True)
    ]
    words = np.array([(edit_distance(text, reference), len(reference)) for text, reference in pairs])
    spelled = [(" ".join(text), " ".join(reference)) for text, reference in pairs]
    characters = np.array([(edit_distance(text, reference), len(reference)) for text, reference in spelled])
    num_words = int(words[:, 1].sum())
    if num_words == 0:
        raise InputError(f"None of {len(references)} references has a word: there is nothing to measure.")

    metrics, intervals = {}, {}
    for name, statistics in (("WER", words), ("CER", characters)):
        metrics[name] = float(_error_rate(statistics.sum(axis=0, keepdims=True))[0])
        intervals[name] = interval_of_sums(statistics, _error_rate, groups=groups)
    return TextResult(
        metrics | {"num_rows": len(predictions), "num_words": num_words},
        intervals,
        dict.fromkeys(metrics, SIGNATURE),
        row_metric="WER",
        row_values=words[:, 0] / np.maximum(words[:, 1], 1),
    )


def _error_rate(sums: np.ndarray) -> np.ndarray:
    """Return errors divided by lengths `(num_sums,)`, from sums of both `(num_sums, 2)`."""
    return sums[:, 0] / np.maximum(sums[:, 1], 1)  # a resample may have no word
