"""Tests of the masks of the pre-training objectives."""

import numpy as np
import pytest

from simple_multimodal.data.masking import masked_count, mlm_mask, patch_mask, tube_mask


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("num_items", "ratio", "count"),
    [(496, 0.3, 149), (196, 0.8, 157), (10, 0.5, 5), (3, 0.01, 1), (3, 0.99, 2), (2, 0.5, 1)],
)
def test_masked_count(num_items, ratio, count):
    assert masked_count(num_items, ratio) == count


@pytest.mark.parametrize(("num_items", "ratio"), [(1, 0.5), (10, 0.0), (10, 1.0), (10, -0.1), (10, 1.5)])
def test_masked_count_refuses_bad_arguments(num_items, ratio):
    with pytest.raises(ValueError):
        masked_count(num_items, ratio)


def test_patch_mask_has_the_exact_count_in_every_window():
    mask = patch_mask(5, 40, ratio=0.3, generator=generator())
    assert mask.shape == (200,) and mask.dtype == bool
    assert mask.reshape(5, 40).sum(1).tolist() == [12] * 5
    assert len({row.tobytes() for row in mask.reshape(5, 40)}) == 5


def test_the_patch_mask_of_a_window_does_not_depend_on_later_windows():
    assert np.array_equal(
        patch_mask(1, 40, ratio=0.3, generator=generator()), patch_mask(3, 40, ratio=0.3, generator=generator())[:40]
    )


def test_tube_mask_is_the_same_at_all_times():
    mask = tube_mask(4, 3, 5, ratio=0.8, generator=generator()).reshape(4, 15)
    assert mask.sum(1).tolist() == [12] * 4
    assert (mask == mask[0]).all()


def test_every_position_is_masked_equally_often():
    masks = np.stack([tube_mask(1, 4, 4, ratio=0.5, generator=generator(seed)) for seed in range(2000)])
    assert masks.sum(1).tolist() == [8] * 2000
    assert abs(masks.mean(0) - 0.5).max() < 0.06


def mask_tokens(ids: np.ndarray, maskable: np.ndarray, probability: float = 0.3, seed: int = 0):
    return mlm_mask(
        ids,
        maskable,
        probability=probability,
        mask_token_id=4,
        replacement_ids=np.arange(5, 30),
        generator=generator(seed),
    )


@pytest.mark.parametrize(("num_tokens", "count"), [(1, 1), (2, 1), (5, 2), (10, 3), (33, 10)])
def test_mlm_mask_chooses_the_exact_count(num_tokens, count):
    ids = np.arange(100, 100 + num_tokens + 3)
    maskable = np.array([False] + [True] * num_tokens + [False] * 2)
    for seed in range(20):
        changed, labels = mask_tokens(ids, maskable, seed=seed)
        chosen = labels != -100
        assert chosen.sum() == count
        assert not (chosen & ~maskable).any()
        assert np.array_equal(labels[chosen], ids[chosen])
        assert np.array_equal(changed[~chosen], ids[~chosen])


def test_mlm_mask_without_a_maskable_token_changes_nothing():
    ids = np.array([2, 3, 0])
    changed, labels = mask_tokens(ids, np.zeros(3, dtype=bool))
    assert changed.tolist() == [2, 3, 0] and labels.tolist() == [-100] * 3


def test_mlm_mask_replaces_80_10_10():
    ids = np.full(20000, 1000)
    changed, labels = mask_tokens(ids, np.ones(20000, dtype=bool), probability=0.5)
    chosen = changed[labels != -100]
    assert len(chosen) == 10000
    assert abs((chosen == 4).mean() - 0.8) < 0.02
    assert abs((chosen == 1000).mean() - 0.1) < 0.02
    random = chosen[(chosen != 4) & (chosen != 1000)]
    assert set(random.tolist()) == set(range(5, 30))


def test_mlm_mask_does_not_depend_on_padding():
    ids = np.arange(100, 120)
    maskable = np.ones(20, dtype=bool)
    changed, labels = mask_tokens(ids, maskable)
    padded = mask_tokens(np.append(ids, [0] * 7), np.append(maskable, [False] * 7))
    assert np.array_equal(padded[0][:20], changed) and np.array_equal(padded[1][:20], labels)


def test_mlm_mask_does_not_change_its_input():
    ids = np.arange(100, 120)
    mask_tokens(ids, np.ones(20, dtype=bool))
    assert np.array_equal(ids, np.arange(100, 120))
