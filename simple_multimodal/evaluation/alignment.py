"""How two sequences align: longest common subsequence, ROUGE-L and edit distance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

ROUGE_BETA = 1.2
"""How much more recall weighs than precision in ROUGE-L, as in the captioning and the sign language field."""


def rouge_l(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """
    Compute ROUGE-L (Lin, 2004) of one text, the F-score of its longest common subsequence with the references.

    As `pycocoevalcap` 1.2 does, take the highest precision and the highest recall over the references, which may be
    those of different ones, and weigh recall by a beta of 1.2.

    Args:
        tokens (`Sequence[str]`): Tokens of the text.
        references (`Sequence[Sequence[str]]`): Tokens of each reference, at least one.

    Returns:
        `float`: Between 0 and 1; 0 for an empty text.
    """
    lengths = [common_subsequence_length(tokens, reference) for reference in references]
    precision = max(lengths) / max(len(tokens), 1)
    recall = max(length / max(len(reference), 1) for length, reference in zip(lengths, references, strict=True))
    if precision == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def common_subsequence_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """
    Return the length of the longest sequence whose items are in both sequences in this order.

    Args:
        first, second (`Sequence`): Words, or a text as a sequence of characters.

    Example:

    ```python
    >>> common_subsequence_length("a man plays the guitar".split(), "the man plays guitar".split())
    3
    ```
    """
    rows, columns = _numbered(first, second)
    lengths = np.zeros(len(columns) + 1, dtype=np.int64)
    for item in rows:
        extended = np.maximum(lengths[1:], lengths[:-1] + (columns == item))
        lengths[1:] = np.maximum.accumulate(extended)
    return int(lengths[-1])


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """
    Return the smallest number of insertions, deletions and substitutions that turn one sequence into the other
    (Levenshtein, 1966).

    Args:
        first, second (`Sequence`): Words, or a text as a sequence of characters.

    Example:

    ```python
    >>> edit_distance("kitten", "sitting")
    3
    ```
    """
    rows, columns = _numbered(first, second)
    places = np.arange(len(columns) + 1)
    distances = places
    for number, item in enumerate(rows, start=1):
        without_insertions = np.empty_like(distances)
        without_insertions[0] = number
        without_insertions[1:] = np.minimum(distances[1:] + 1, distances[:-1] + (columns != item))
        # Each insertion moves one place to the right and costs 1: subtract the places to take a running minimum.
        distances = np.minimum.accumulate(without_insertions - places) + places
    return int(distances[-1])


def _numbered(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[list[int], np.ndarray]:
    """Return equal numbers for equal items, with the shorter sequence first: the loop is over its items."""
    shorter, longer = sorted((first, second), key=len)
    numbers: dict[Hashable, int] = {}
    shorter_numbers = [numbers.setdefault(item, len(numbers)) for item in shorter]
    return shorter_numbers, np.array([numbers.setdefault(item, len(numbers)) for item in longer], dtype=np.int64)
