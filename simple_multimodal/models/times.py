"""Embeddings of times."""

import math

import torch


def time_embedding(
    seconds: torch.Tensor, hidden_size: int, shortest: float = 0.5, longest: float = 1024.0
) -> torch.Tensor:
    """Return the sinusoidal embedding of a time, the same function for audio and video.

    The sines of "Attention Is All You Need" (Vaswani et al. 2017) over seconds instead of positions.

    Args:
        seconds (`torch.Tensor` of shape `(batch_size, num_tokens)`): Time in the segment, in seconds.
        hidden_size (`int`): Size of the embedding, even.
        shortest, longest (`float`): The geometric series of periods, in seconds, starts at `shortest` and ends one
            step before `longest`.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`, float32.
    """
    ratio = torch.arange(hidden_size // 2, device=seconds.device, dtype=torch.float32) / (hidden_size // 2)
    periods = shortest * (longest / shortest) ** ratio
    angles = seconds.float()[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
