"""Captions that cannot identify their clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simple_multimodal.errors import InputError


def duplicate_captions(captions: Sequence[str], groups: np.ndarray) -> np.ndarray:
    """
    Mark the captions whose text also occurs with another clip.

    No model can tell which clip such a query is about: report their number together with the recalls. Texts that
    differ only in case and white space count as equal, as for an uncased tokenizer.

    Args:
        captions (`Sequence[str]` of length `num_texts`): The texts.
        groups (`np.ndarray` of shape `(num_texts,)`): Group of the clip that each caption describes.

    Returns:
        `np.ndarray` of shape `(num_texts,)`, bool.

    Raises:
        ValueError: If the numbers of captions and groups differ.

    Example:

    ```python
    >>> duplicate_captions(["a man sings", "A man  sings", "a dog", "a dog"], np.array([0, 1, 2, 2]))
    array([ True,  True, False, False])
    ```
    """
    if len(captions) != len(groups):
        raise InputError(f"Every caption needs one group: got {len(captions)} captions and {len(groups)} groups.")
    texts = [" ".join(caption.casefold().split()) for caption in captions]
    groups_of_text: dict[str, set[object]] = {}
    for text, group in zip(texts, np.asarray(groups).tolist(), strict=True):
        groups_of_text.setdefault(text, set()).add(group)
    return np.array([len(groups_of_text[text]) > 1 for text in texts], dtype=np.bool_)
