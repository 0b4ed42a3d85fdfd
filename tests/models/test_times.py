"""Embeddings of times."""

import math

import torch

from simple_multimodal.models.times import time_embedding
from tests.closeness import assert_close


def test_time_embedding_has_one_period_per_pair_of_sine_and_cosine():
    seconds = torch.tensor([[0.0, 0.125, 8.0]])
    table = time_embedding(seconds, 4, shortest=0.5, longest=128.0)  # periods 0.5 and 8 seconds
    eighth = 2 * math.pi * 0.125 / 8
    expected = [[0, 0, 1, 1], [1, math.sin(eighth), 0, math.cos(eighth)], [0, 0, 1, 1]]
    assert_close(table, torch.tensor([expected], dtype=torch.float32))
    assert time_embedding(seconds.half(), 4).dtype == torch.float32
