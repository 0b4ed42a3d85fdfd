"""Scores of texts with clips, computed in blocks of rows, so that the whole matrix is never needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simple_multimodal.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_BLOCK_ELEMENTS = 1 << 24
"""Maximum number of scores in a block: 64 MiB of float32. 4,096 texts with as many clips are one block."""
ROW_MULTIPLE = 64
"""Divisor of the number of rows of a block if there are several blocks; see [`CosineScores`]."""


@dataclass(frozen=True)
class Processes:
    """
    The processes that share the work; by default only this one.

    Args:
        index (`int`): Number of this process, from 0.
        count (`int`): Number of processes.
        gather (`Callable`): Collective function that returns the values of all processes in order.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]


ALONE = Processes()


class Scores(ABC):
    """
    Scores of every text (row) with every clip (column), higher is better.

    Block `n` belongs to process `n % processes.count`. Blocks, and therefore results, do not depend on the number of
    processes.

    Args:
        shape (`tuple[int, int]`): Numbers of texts and clips, neither 0.
        dtype (`np.dtype`): Floating-point type of the scores.
        processes ([`Processes`], *optional*): Processes that share the work.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype, processes: Processes = ALONE):
        if 0 in shape:
            raise InputError(f"Scores must have shape (num_texts, num_clips), neither 0, got {shape}.")
        self.shape, self.dtype, self.processes = shape, dtype, processes
        num_rows = max(1, MAX_BLOCK_ELEMENTS // shape[1])
        if ROW_MULTIPLE < num_rows < shape[0]:
            num_rows -= num_rows % ROW_MULTIPLE
        self.rows_per_block = min(num_rows, shape[0])

    @abstractmethod
    def rows(self, begin: int, end: int) -> np.ndarray:
        """Return scores of texts `begin` to `end`, at most `rows_per_block`, with all clips; do not modify them."""

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield this process's blocks in ascending order: a slice of rows, and their scores."""
        for begin, end in self._spans():
            yield slice(begin, end), self.rows(begin, end)

    def at(self, pairs: np.ndarray) -> np.ndarray:
        """
        Return single scores; all processes must call it with the same pairs.

        Args:
            pairs (`np.ndarray` of shape `(num_pairs, 2)`, integers): Positions of text and clip.

        Returns:
            `np.ndarray` of shape `(num_pairs,)`: Exactly the scores in the blocks.
        """
        order = np.argsort(pairs[:, 0], kind="stable")
        texts, clips = pairs[order].T
        found = {}
        for begin, end in self._spans():
            low, high = np.searchsorted(texts, [begin, end])
            if low < high:
                found[low] = self.rows(begin, end)[texts[low:high] - begin, clips[low:high]]
        values = np.empty(len(pairs), self.dtype)
        for part in self.processes.gather(found):
            for low, own in part.items():
                values[order[low : low + len(own)]] = own
        return values

    def whole(self) -> np.ndarray:
        """Compute the whole matrix, in every process."""
        step = self.rows_per_block
        return np.concatenate([self.rows(n, min(n + step, self.shape[0])) for n in range(0, self.shape[0], step)])

    def combine(self, how: np.ufunc, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Reduce arrays over all processes, e.g. with `np.maximum`, array by array."""
        return tuple(how.reduce(parts) for parts in zip(*self.processes.gather(arrays), strict=True))

    def _spans(self) -> Iterator[tuple[int, int]]:
        step = self.rows_per_block
        for begin in range(self.processes.index * step, self.shape[0], self.processes.count * step):
            yield begin, min(begin + step, self.shape[0])


class MatrixScores(Scores):
    """
    Scores in a matrix.

    Args:
        matrix (`np.ndarray` of shape `(num_texts, num_clips)`): Real scores.
        processes ([`Processes`], *optional*): Processes that share the work; each has the whole matrix.
    """

    def __init__(self, matrix: np.ndarray, processes: Processes = ALONE):
        self.matrix = as_floats(matrix)
        super().__init__(self.matrix.shape, self.matrix.dtype, processes)

    def rows(self, begin: int, end: int) -> np.ndarray:
        return self.matrix[begin:end]


class CosineScores(Scores):
    """
    Dot products of embeddings, computed on demand and not kept.

    All products have the same shape: a matrix product may round differently with another number of rows, so that equal
    texts would get different scores. The last block therefore starts early and only its last rows are used.

    Args:
        texts (`torch.FloatTensor` of shape `(num_texts, dim)`): Unit-length embeddings, on the CPU.
        clips (`torch.FloatTensor` of shape `(num_clips, dim)`): Unit-length embeddings, on the CPU.
        bad_texts (`np.ndarray` of shape `(num_texts,)`, bool, *optional*): Texts that get the lowest possible scores.
        bad_clips (`np.ndarray` of shape `(num_clips,)`, bool, *optional*): Clips that get the lowest possible scores.
        processes ([`Processes`], *optional*): Processes that share the work; each has all embeddings.
    """

    def __init__(
        self,
        texts: torch.Tensor,
        clips: torch.Tensor,
        *,
        bad_texts: np.ndarray | None = None,
        bad_clips: np.ndarray | None = None,
        processes: Processes = ALONE,
    ):
        self.texts, self.clips = texts, clips
        self.bad_texts, self.bad_clips = bad_texts, bad_clips
        super().__init__((len(texts), len(clips)), np.dtype(np.float32), processes)

    def rows(self, begin: int, end: int) -> np.ndarray:
        first = max(0, end - self.rows_per_block)
        block = (self.texts[first:end] @ self.clips.T).numpy()[begin - first :]
        if self.bad_texts is not None:
            block[self.bad_texts[begin:end]] = -np.inf
        if self.bad_clips is not None:
            block[:, self.bad_clips] = -np.inf
        return block


class ScoredPairs(NamedTuple):
    """
    Scores of some pairs of text and clip.

    Args:
        pairs (`np.ndarray` of shape `(num_pairs, 2)`, int64): Positions of text and clip, ascending, without repeats.
        values (`np.ndarray` of shape `(num_pairs,)`, floating): Score of each pair, higher is better.
    """

    pairs: np.ndarray
    values: np.ndarray


def as_scores(scores: Scores | np.ndarray) -> Scores:
    """Return scores unchanged, or a matrix as [`MatrixScores`]."""
    return scores if isinstance(scores, Scores) else MatrixScores(scores)


def as_floats(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix of real scores in floating point, or raise an error if it is invalid."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.size == 0 or matrix.dtype.kind not in "fiu":
        raise InputError(
            f"Scores must be real numbers of shape (num_queries, num_candidates), neither 0, got shape "
            f"{matrix.shape} of {matrix.dtype}."
        )
    return matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)  # unsigned integers cannot be negated


def dual_softmax_scores(scores: np.ndarray, *, temperature: float) -> np.ndarray:
    """
    Multiply each score by a softmax over all queries of its candidate (Cheng et al., 2021, arXiv:2109.04290).

    A candidate that fits many queries counts less for each of them. The result for one query therefore depends on all
    queries of the test set, which a system that answers one query at a time does not know. Report such numbers under
    a separate protocol (`dsl`), never together with numbers without it.

    Scores that are not positive are left unchanged: multiplying them by a small weight would raise them.

    Args:
        scores (`np.ndarray` of shape `(num_queries, num_candidates)`):
            Finite scores, e.g. cosines. For the other direction pass the transposed matrix.
        temperature (`float`): Temperature of the softmax, which scores are divided by; above 0, e.g. 0.01 for cosines.

    Returns:
        `np.ndarray` of shape `(num_queries, num_candidates)`, float64.

    Raises:
        ValueError: If scores are not finite real numbers, **or** `temperature` is not above 0.
    """
    scores = as_floats(scores).astype(np.float64)
    if not np.isfinite(scores).all():
        raise InputError(
            f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are infinite or NaN; the dual softmax needs "
            "finite scores. Leave out the queries and candidates without them."
        )
    if not temperature > 0:
        raise InputError(f"The temperature of the dual softmax must be above 0, got {temperature}.")
    weights = np.exp((scores - scores.max(axis=0)) / temperature)  # (num_queries, num_candidates)
    weights /= weights.sum(axis=0)
    return np.where(scores > 0, scores * weights, scores)
