"""Shared parts of towers of patches: normalised pixels, splitting by a mask, position tables and interpolation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from simple_multimodal.errors import InputError


def to_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Return the `(height, width)` of a size in a config, where one number means a square."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def normalize_pixels(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """
    Normalise `uint8` pixels as a tower was trained on them; a floating-point tensor is taken as normalised already.

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, num_frames, 3, height, width)`): RGB.
        mean, std (`Sequence[float]`): Values per channel, in units of 0 to 1.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    return torch.stack([(pixels[:, :, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=2)


def visible_patches(masked_patches: torch.Tensor, num_patches: int) -> torch.Tensor:
    """
    Return the positions of the patches that are not masked, in ascending order.

    Their number follows from the shapes, so nothing has to wait for the device.

    Args:
        masked_patches (`torch.LongTensor` of shape `(num_rows, num_masked)`): Different positions below `num_patches`.
        num_patches (`int`): Number of patches of a row.

    Returns:
        `torch.LongTensor` of shape `(num_rows, num_patches - num_masked)`.
    """
    num_rows, num_masked = masked_patches.shape
    mask = torch.zeros(num_rows, num_patches, dtype=torch.bool, device=masked_patches.device)
    order = mask.scatter(1, masked_patches, True).int().argsort(dim=1, stable=True)
    return order[:, : num_patches - num_masked]


def take_patches(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Select `(num_rows, num_positions, size)` from `values (num_rows, num_patches, size)`."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def sinusoidal_grid(height: int, width: int, hidden_size: int) -> torch.Tensor:
    """
    Return the fixed position table of MAE ([He et al., 2021](https://huggingface.co/papers/2111.06377)) for any grid.

    The original code swaps the two axes, and pretrained weights rely on it: the first half of each vector encodes the
    column, the second half the row.

    Returns:
        `torch.FloatTensor` of shape `(1 + height * width, hidden_size)`: zeros for the class token, then row by row.
    """
    if hidden_size % 4:
        raise InputError(
            f"A two-dimensional sinusoidal table needs a hidden size that is a multiple of 4, but got {hidden_size}."
        )
    frequencies = 10000.0 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)[:, None] * frequencies
    columns = torch.arange(width, dtype=torch.float64).repeat(height)[:, None] * frequencies
    table = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)  # (height * width, hidden)
    return torch.cat([torch.zeros(1, hidden_size), table.float()])


def sinusoidal_sequence(length: int, hidden_size: int) -> torch.Tensor:
    """
    Return the fixed position table of "Attention is all you need", sine and cosine interleaved, as VideoMAE uses it.

    Returns:
        `torch.FloatTensor` of shape `(length, hidden_size)`.
    """
    exponents = 2 * (torch.arange(hidden_size, dtype=torch.float64) // 2) / hidden_size
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10000.0**exponents
    angles[:, 0::2] = angles[:, 0::2].sin()
    angles[:, 1::2] = angles[:, 1::2].cos()
    return angles.float()


def interpolate_grid(table: torch.Tensor, source: tuple[int, ...], target: tuple[int, ...]) -> torch.Tensor:
    """
    Resample a position table: bicubic over space, then linear over time, corners not aligned.

    Args:
        table (`torch.FloatTensor` of shape `(time * height * width, hidden_size)`): Rows in that order.
        source, target (`tuple[int, ...]`): `(time, height, width)` of the table and of the result, in patches.

    Returns:
        `torch.FloatTensor` of shape `(target time * height * width, hidden_size)`.
    """
    grid = table.float().view(*source, -1).permute(0, 3, 1, 2)  # (time, hidden, height, width)
    if source[1:] != target[1:]:
        grid = F.interpolate(grid, size=target[1:], mode="bicubic", align_corners=False)
    grid = grid.permute(2, 3, 1, 0).flatten(0, 1)  # (height * width, hidden, time)
    if source[0] != target[0]:
        grid = F.interpolate(grid, size=target[0], mode="linear", align_corners=False)
    return grid.permute(2, 0, 1).flatten(0, 1)  # (time * height * width, hidden)
