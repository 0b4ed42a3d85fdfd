"""What a task adds to a batch in the loader process: labels, masks and other draws, one entry per row."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from simple_multimodal.data.randomness import GeneratorOf
from simple_multimodal.data.rows import Row


class Targets(Protocol):
    """Compute a task's entries of a batch. Picklable: the collator calls it last, in the process that loads.

    A row with `row.get("is_skipped")` stands for a sample that could not be read, or for none at all: it has no
    modality, and a task's columns may be missing. Return entries for it that count for nothing, such as a label of -1.
    """

    def __call__(
        self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of: GeneratorOf
    ) -> dict[str, torch.Tensor]:
        """Compute entries to add.

        Args:
            rows (`Sequence[Row]`):
                Of the batch, in its order, with their further columns.
            batch (`Mapping[str, Any]`):
                What the collator has made of them.
            generator_of (`Callable[[Row, str], np.random.Generator]`):
                Where every random choice about a row comes from, by row and purpose.

        Returns:
            `dict[str, torch.Tensor]`: By name; the first dimension of each is the batch.
        """
