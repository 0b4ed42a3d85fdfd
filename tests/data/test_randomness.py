"""Tests of generators that depend only on their arguments."""

import numpy as np

from simple_multimodal.data.randomness import sample_generator, stable_hash


def test_known_values():
    """Runs must be reproducible in another process and next year, so these numbers must not change."""
    assert sample_generator(0, 0, "a", "frames").integers(0, 1000, 4).tolist() == [739, 355, 367, 413]
    assert stable_hash("video=a.mp4") == 6645821717985034581


def test_only_the_arguments_matter():
    base = (0, 1, "clip", "frames")
    others = [(1, 1, "clip", "frames"), (0, 2, "clip", "frames"), (0, 1, "clip2", "frames"), (0, 1, "clip", "crop")]
    streams = [tuple(sample_generator(*arguments).random(3)) for arguments in (base, *others)]
    assert len(set(streams)) == 5
    np.random.seed(0)
    np.random.default_rng().random(10)
    assert tuple(sample_generator(*base).random(3)) == streams[0]


def test_a_hash_fits_a_signed_tensor():
    hashes = [stable_hash(str(number)) for number in range(1000)]
    assert len(set(hashes)) == 1000 and 0 <= min(hashes) and max(hashes) < 2**63
