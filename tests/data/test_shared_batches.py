"""Batches that a worker passes on in shared memory."""

import pytest
import torch
from torch.utils.data import DataLoader

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.processing import batch_memory
from tests.data.conftest import assert_equal


class CountingCollator:
    """Collator that reports how many blocks of shared memory the worker has, and whether large tensors are in them."""

    def __init__(self, collator: MultimodalCollator):
        self.collator = collator

    def __call__(self, rows):
        batch = self.collator(rows)
        addresses = [batch["pixel_values_videos"].data_ptr(), batch["audio_values"].data_ptr()]
        batch["are_in_blocks"] = torch.tensor(set(addresses) <= set(batch_memory._loans))
        batch["num_blocks"] = torch.tensor(len(batch_memory._loans))
        return batch


def worker_batches(processor, dataset, **options) -> DataLoader:
    return DataLoader(
        [dataset[0, number % len(dataset)] for number in range(60)],
        batch_size=2,
        collate_fn=CountingCollator(MultimodalCollator(processor)),
        **options,
    )


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_worker_reuses_the_blocks_of_large_tensors(processor, dataset, start_method):
    expected = list(worker_batches(processor, dataset))
    assert not any(batch.pop("are_in_blocks") or batch.pop("num_blocks") for batch in expected)
    received = worker_batches(processor, dataset, num_workers=1, multiprocessing_context=start_method)
    for first, second in zip(received, expected, strict=True):
        assert first.pop("are_in_blocks") and first.pop("num_blocks") <= 12  # two in each batch
        assert type(first) is dict
        assert_equal(first, second)


def test_a_block_is_not_reused_while_a_view_of_it_is_held(processor, dataset):
    expected = list(worker_batches(processor, dataset))
    views = [batch["pixel_values_videos"][1:, 0] for batch in worker_batches(processor, dataset, num_workers=1)]
    for view, batch in zip(views, expected, strict=True):
        assert torch.equal(view, batch["pixel_values_videos"][1:, 0])
