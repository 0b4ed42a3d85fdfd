"""Masks of the pre-training objectives: exact counts, chosen with a generator per sample."""

import numpy as np

from simple_multimodal.errors import InputError


def masked_count(num_items: int, ratio: float) -> int:
    """Return the number of masked items for a ratio: the rounded share, with at least one masked and one visible.

    Raises:
        ValueError: If the ratio is not between 0 and 1 **or** there are fewer than two items.
    """
    if not 0 < ratio < 1:
        raise InputError(f"A mask ratio must be between 0 and 1, got {ratio}.")
    if num_items < 2:
        raise InputError(f"At least 2 patches are needed to mask some and keep some, got {num_items}.")
    return min(max(round(num_items * ratio), 1), num_items - 1)


def _exact_mask(num_items: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return a uniformly random `bool` array of shape `(num_items,)` with exactly `count` entries `True`."""
    mask = np.zeros(num_items, dtype=bool)
    mask[generator.permutation(num_items)[:count]] = True
    return mask


def patch_mask(
    num_windows: int, patches_per_window: int, *, ratio: float, generator: np.random.Generator
) -> np.ndarray:
    """Mask audio patches, as in Masked Autoencoders that Listen ([paper](https://huggingface.co/papers/2207.06405)).

    Windows are masked one after the other, so that the mask of a window does not depend on how many follow.

    Returns:
        `np.ndarray` of `bool` and shape `(num_windows * patches_per_window,)`, `True` where masked; the same count,
        [`masked_count`], in each window.
    """
    count = masked_count(patches_per_window, ratio)
    return np.concatenate([_exact_mask(patches_per_window, count, generator) for _ in range(num_windows)])


def tube_mask(
    num_steps: int, num_rows: int, num_columns: int, *, ratio: float, generator: np.random.Generator
) -> np.ndarray:
    """Mask video patches: the same positions in all frames, as in VideoMAE
    ([paper](https://huggingface.co/papers/2203.12602)).

    Args:
        num_steps (`int`):
            Tubelets in time.
        num_rows (`int`):
            Patches in height.
        num_columns (`int`):
            Patches in width.
        ratio (`float`):
            Share of the positions to mask.
        generator (`np.random.Generator`):
            Generator of the sample.

    Returns:
        `np.ndarray` of `bool` and shape `(num_steps * num_rows * num_columns,)` in the order time, height, width;
        `True` where masked, [`masked_count`] positions in each step.
    """
    places = num_rows * num_columns
    return np.tile(_exact_mask(places, masked_count(places, ratio), generator), num_steps)


def mlm_mask(
    input_ids: np.ndarray,
    maskable: np.ndarray,
    *,
    probability: float,
    mask_token_id: int,
    replacement_ids: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens to predict, as in BERT ([paper](https://huggingface.co/papers/1810.04805)), by exact count.

    Of the chosen tokens, 80 % become the mask token, 10 % a random token and 10 % stay (chosen per token). Padding
    is ignored, so the choice does not depend on the length to which a batch is padded.

    Args:
        input_ids (`np.ndarray` of shape `(sequence_length,)`):
            Token ids.
        maskable (`np.ndarray` of `bool` and shape `(sequence_length,)`):
            `True` for tokens that may be chosen: neither special nor padding.
        probability (`float`):
            Share of the tokens to choose: `round(probability * num_maskable)`, but at least one if there is any.
        mask_token_id (`int`):
            Id of the mask token.
        replacement_ids (`np.ndarray` of shape `(num_replacements,)`):
            Ids of the tokens used as random replacements.
        generator (`np.random.Generator`):
            Generator of the sample.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Changed ids, and labels with -100 where nothing is predicted; both of shape
        `(sequence_length,)`.
    """
    if not 0 < probability < 1:
        raise InputError(f"The probability of masking a token must be between 0 and 1, got {probability}.")
    ids = input_ids.copy()
    labels = np.full_like(input_ids, -100)
    positions = np.flatnonzero(maskable)
    if len(positions) == 0:
        return ids, labels
    count = max(round(len(positions) * probability), 1)
    chosen = np.sort(generator.permutation(positions)[:count])
    labels[chosen] = input_ids[chosen]
    fate = generator.random(count)
    random_ids = generator.choice(replacement_ids, count)
    ids[chosen] = np.where(fate < 0.8, mask_token_id, np.where(fate < 0.9, random_ids, input_ids[chosen]))
    return ids, labels
