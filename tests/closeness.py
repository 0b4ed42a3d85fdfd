"""Tolerance for results that are computed in two ways, relative to the largest compared value."""

from collections.abc import Mapping

import torch

ROUNDING = 1e-5
"""Tolerance for float32, whose steps are 6e-8 of a value: sums of hundreds of terms in a different order, through
several layers. Kernels of other CPUs have differed by up to 3e-6; errors differ by 1e-3 or more.
"""

Tensors = torch.Tensor | Mapping[str, torch.Tensor]


def assert_close(actual: Tensors, expected: Tensors, tolerance: float = ROUNDING) -> None:
    """Check that differences are at most `tolerance` times the largest expected value, and that integers are equal.
    The message names the entries of the first dimension, such as the rows of a batch, that differ.

    In a mapping, such as the gradients of a model, the largest value of each tensor counts, but at least a tenth of
    the largest value of all tensors: a tensor whose gradients cancel (attention does not depend on a bias of its keys)
    holds rounding errors of the others.

    Args:
        actual, expected (`torch.Tensor` or `dict[str, torch.Tensor]`): Values of the same shapes, types and keys.
        tolerance (`float`, *optional*): Relative tolerance.
    """
    if isinstance(expected, torch.Tensor):
        actual, expected = {"": actual}, {"": expected}
    assert actual.keys() == expected.keys()
    largest = {name: _largest(tensor) for name, tensor in expected.items()}
    floor = 0.1 * max(largest.values(), default=0.0)
    for name, tensor in expected.items():
        atol = tolerance * max(largest[name], floor) if tensor.is_floating_point() else 0

        def message(text: str, name: str = name, atol: float = atol) -> str:
            return f"{name}{_rows_that_differ(actual[name], expected[name], atol)}: {text}"

        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=atol, msg=message)


def _rows_that_differ(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> str:
    if actual.shape != expected.shape or expected.ndim < 2:
        return ""
    differs = (actual - expected).abs().nan_to_num(nan=torch.inf).flatten(1).amax(dim=1) > atol
    return f" rows {differs.nonzero().flatten().tolist()} of {len(differs)}"


def _largest(tensor: torch.Tensor) -> float:
    if not tensor.is_floating_point():
        return 0.0
    return float(tensor.detach().abs()[tensor.isfinite()].max()) if tensor.isfinite().any() else 0.0
