"""The order of the rows in an epoch."""

from collections.abc import Iterator
from typing import Protocol

import torch

from simple_multimodal.data.randomness import sample_generator


class EpochDataset(Protocol):
    """Interface of a dataset that the sampler uses, such as [`RowDataset`]."""

    @property
    def epoch(self) -> int: ...

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Sampler of `(epoch, index)` pairs, so that the random choices for a sample can depend on the epoch.

    The order depends only on `seed` and the epoch. All processes use the same order; `accelerate` distributes its
    batches among them. The epoch is stored in the dataset: `accelerate` (1.15) may call `set_epoch` on one of three
    objects, and after a resume in the middle of an epoch on several processes it cannot reach the sampler
    (`SkipBatchSampler` around `BatchSamplerShard`) and calls the dataset instead.

    Args:
        dataset ([`RowDataset`]):
            Dataset with the rows.
        seed (`int`):
            Random seed of the run.
        shuffle (`bool`, *optional*, defaults to `True`):
            Use a new random order in each epoch; otherwise keep the order of the rows.

    Example:

    ```python
    >>> list(EpochSampler(dataset, seed=0))  # four rows
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
