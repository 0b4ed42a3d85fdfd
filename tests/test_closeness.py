"""The tolerance of results that are computed in two ways."""

import pytest
import torch

from tests.closeness import assert_close


def test_the_message_names_the_tensor_and_the_rows_that_differ():
    expected = torch.ones(4, 3, 2)
    actual = expected.clone()
    actual[1, 2, 0] += 1e-3
    actual[3] = torch.nan
    with pytest.raises(AssertionError, match=r"^tokens rows \[1, 3\] of 4: "):
        assert_close({"tokens": actual}, {"tokens": expected})
    assert_close(expected + 1e-6, expected)
