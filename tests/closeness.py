"""How near two ways of computing the same have to be: relative to the largest value that is compared."""

from collections.abc import Mapping

import torch

ROUNDING = 1e-5
"""Of float32, whose steps are 6e-8 of a value: sums of hundreds of terms in another order, through some layers.
Kernels of other CPUs have differed by up to 3e-6; a fault differs by 1e-3 and more.
"""

Tensors = torch.Tensor | Mapping[str, torch.Tensor]


def assert_close(actual: Tensors, expected: Tensors, tolerance: float = ROUNDING) -> None:
    """Differences are at most `tolerance` times the largest expected value; integers are equal.

    Within a mapping, such as the gradients of a model, that is the largest value of each tensor, but no tensor
    counts for less than a tenth of the largest of all: one whose gradients cancel (attention does not feel a bias of
    its keys) holds the rounding errors of the others.

    Args:
        actual, expected (`torch.Tensor` or `dict[str, torch.Tensor]`): of the same shapes, types and keys.
        tolerance (`float`, *optional*): relative.
    """
    if isinstance(expected, torch.Tensor):
        actual, expected = {"": actual}, {"": expected}
    assert actual.keys() == expected.keys()
    largest = {name: _largest(tensor) for name, tensor in expected.items()}
    floor = 0.1 * max(largest.values(), default=0.0)
    for name, tensor in expected.items():
        atol = tolerance * max(largest[name], floor) if tensor.is_floating_point() else 0
        torch.testing.assert_close(
            actual[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def _largest(tensor: torch.Tensor) -> float:
    if not tensor.is_floating_point():
        return 0.0
    return float(tensor.detach().abs()[tensor.isfinite()].max()) if tensor.isfinite().any() else 0.0
