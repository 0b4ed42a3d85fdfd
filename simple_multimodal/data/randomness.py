"""Random numbers that depend only on (seed, epoch, sample, purpose)."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

GeneratorOf = Callable[[Any, str], np.random.Generator]
"""Function that returns the generator of a row for a purpose; see [`row_generator`]."""


def sample_generator(seed: int, epoch: int, sample_id: str, purpose: str) -> np.random.Generator:
    """Return a generator for one random choice about one sample.

    Calls with the same arguments return the same stream in any process, worker or thread, whatever random numbers were
    used before; a different value of any argument gives an unrelated stream.

    Args:
        seed (`int`):
            Random seed of the run.
        epoch (`int`):
            Number of the epoch, counted from 0.
        sample_id (`str`):
            Unique name of the sample in its dataset.
        purpose (`str`):
            Name of the choice, such as `"frames"`: choices that must not influence each other have different names.

    Returns:
        `np.random.Generator` (Philox, keyed with a BLAKE2b hash of the arguments).
    """
    key = hashlib.blake2b(repr((int(seed), int(epoch), sample_id, purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def row_generator(seed: int, row: Mapping[str, Any], purpose: str) -> np.random.Generator:
    """Return [`sample_generator`] for a row in its epoch."""
    return sample_generator(seed, row["epoch"], row["id"], purpose)


def stable_hash(text: str) -> int:
    """Return a 63-bit hash of a string, the same in every process: it fits an `int64` tensor and is never negative."""
    return (
        int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1
    )
