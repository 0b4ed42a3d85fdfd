"""Random numbers that are a function of (seed, epoch, sample, purpose) and of nothing else."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

GeneratorOf = Callable[[Any, str], np.random.Generator]
"""Return the generator of a row for a purpose; see [`row_generator`]."""


def sample_generator(seed: int, epoch: int, sample_id: str, purpose: str) -> np.random.Generator:
    """A generator for one random choice about one sample.

    Two calls with the same arguments give the same stream, in whichever process, worker or thread they run, and
    whatever was drawn before; another value of any argument gives an unrelated stream.

    Args:
        seed (`int`):
            Of the run.
        epoch (`int`):
            Counted from 0.
        sample_id (`str`):
            Unique name of the sample in its data set.
        purpose (`str`):
            What is drawn, for instance `"frames"`: choices that must not influence each other get their own name.

    Returns:
        `np.random.Generator` (Philox, keyed with a BLAKE2b hash of the arguments).
    """
    key = hashlib.blake2b(repr((int(seed), int(epoch), sample_id, purpose)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def row_generator(seed: int, row: Mapping[str, Any], purpose: str) -> np.random.Generator:
    """Return [`sample_generator`] for a row in its epoch."""
    return sample_generator(seed, row["epoch"], row["id"], purpose)


def stable_hash(text: str) -> int:
    """Hash of a string in 63 bits, the same in every process: fits a signed 64-bit tensor and is never negative."""
    return (
        int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1
    )
