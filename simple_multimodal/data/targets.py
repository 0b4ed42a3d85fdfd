"""Entries that a task adds to a batch in the loader process: labels, masks and random choices, one per row."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row


class Targets(Protocol):
    """Function that computes a task's entries of a batch. It must be picklable: the collator calls it last, in the
    loader process.

    A row with `row.get("is_skipped")` is a placeholder, for example for a sample that could not be read: it has no
    modality, and a task's columns may be missing. Return entries for it that are ignored, such as a label of -1.
    """

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """Compute the entries to add.

        Args:
            rows (`Sequence[Row]`):
                Rows of the batch in order, with their further columns.
            batch (`Mapping[str, Any]`):
                Entries that the collator made from them.
            generator_of (`Callable[[Row, str], np.random.Generator]`):
                Returns the generator for a row and a purpose; use it for every random choice about the row.

        Returns:
            `dict[str, torch.Tensor]`: Tensors by name; the first dimension of each is the batch.
        """
