"""Tests of the order of rows, alone and distributed by accelerate."""

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches

from simple_multimodal.data.sampler import EpochSampler

NUM_ROWS = 11


class Rows(torch.utils.data.Dataset):
    """Dataset that returns each key."""

    epoch = 0

    def __len__(self):
        return NUM_ROWS

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, key):
        return key


def test_yields_epoch_and_index():
    sampler = EpochSampler(Rows(), seed=0, shuffle=False)
    assert list(sampler) == [(0, index) for index in range(NUM_ROWS)]
    sampler.set_epoch(2)
    assert list(sampler) == [(2, index) for index in range(NUM_ROWS)]
    assert len(sampler) == NUM_ROWS


def test_the_order_depends_on_seed_and_epoch_only():
    sampler = EpochSampler(Rows(), seed=0)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(first) == [(0, index) for index in range(NUM_ROWS)]
    sampler.set_epoch(1)
    assert [index for _, index in sampler] != [index for _, index in first]
    assert [index for _, index in EpochSampler(Rows(), seed=1)] != [index for _, index in first]


def loaders(num_processes: int, num_workers: int = 0) -> list:
    """Return the data loader that `accelerate` prepares in each of several processes."""
    prepared = []
    for process_index in range(num_processes):
        dataset = Rows()
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=2,
            sampler=EpochSampler(dataset, seed=3),
            collate_fn=list,
            num_workers=num_workers,
        )
        prepared.append(
            prepare_data_loader(loader, num_processes=num_processes, process_index=process_index, put_on_device=False)
        )
    return prepared


def epochs_of(loader, epochs) -> list:
    batches = []
    for epoch in epochs:
        loader.set_epoch(epoch)  # as `Trainer` does
        batches.append(list(loader))
    return batches


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_order(num_processes):
    dataset = Rows()
    sampler = EpochSampler(dataset, seed=3)
    per_process = [epochs_of(loader, range(3)) for loader in loaders(num_processes)]
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected = list(sampler)
        distributed = [
            row
            for step in zip(*(process[epoch] for process in per_process), strict=True)
            for batch in step
            for row in batch
        ]
        assert distributed[:NUM_ROWS] == expected
        assert set(distributed) == set(expected)  # the first rows are repeated to make batches even


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_resume_in_the_middle_of_an_epoch(num_processes):
    uninterrupted = [epochs_of(loader, range(4)) for loader in loaders(num_processes)]
    for process_index, loader in enumerate(loaders(num_processes)):  # a new process, whose sampler is in epoch 0
        resumed = skip_first_batches(loader, 1)
        resumed.set_epoch(2)
        assert list(resumed) == uninterrupted[process_index][2][1:]
        loader.set_epoch(3)
        assert list(loader) == uninterrupted[process_index][3]


def test_workers_see_the_epoch():
    (loader,) = loaders(1, num_workers=2)
    (reference,) = loaders(1)
    assert epochs_of(loader, range(2)) == epochs_of(reference, range(2))
