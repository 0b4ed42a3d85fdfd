"""The order of the rows in an epoch."""

from collections.abc import Iterator
from typing import Protocol

import torch

from simple_multimodal.data.randomness import sample_generator


class EpochDataset(Protocol):
    """What the sampler needs of a data set, as [`RowDataset`] has it."""

    @property
    def epoch(self) -> int: ...

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Yields `(epoch, index)` pairs, so that whatever is drawn for a sample can depend on the epoch.

    The order is a function of `seed` and epoch. All processes go through the same order; `accelerate` deals its
    batches out to them. The epoch is the data set's, because of the three things that `accelerate` (1.15) may tell the
    epoch to, the sampler is out of its reach after a resume in the middle of an epoch on several processes
    (`SkipBatchSampler` around `BatchSamplerShard`), and the data set is called instead.

    Args:
        dataset ([`RowDataset`]):
            Whose rows are ordered.
        seed (`int`):
            Of the run.
        shuffle (`bool`, *optional*, defaults to `True`):
            Draw a new order in each epoch; otherwise rows come as they are.

    Example:

    ```python
    >>> list(EpochSampler(dataset, seed=0))  # of four rows
    [(0, 2), (0, 0), (0, 3), (0, 1)]
    ```
    """

    def __init__(self, dataset: EpochDataset, *, seed: int, shuffle: bool = True):
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, counted from 0."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.dataset.epoch
        order = range(len(self.dataset))
        if self.shuffle:
            order = sample_generator(self.seed, epoch, "", "order").permutation(len(self.dataset)).tolist()
        for index in order:
            yield epoch, index
