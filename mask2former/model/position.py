"""Sine position embedding of a feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_embedding(
    valid: Tensor, channels: int, dtype: torch.dtype, temperature: float = 10000.0
) -> Tensor:
    """Two-dimensional sine embedding, normalised to 2 pi (Carion et al. 2020, appendix A.4).

    Args:
        valid: bool (N, H, W), True where the position belongs to the image; padding is not counted,
            so that an image gets the same embedding alone and in a padded batch.
        channels: width of the result, a multiple of 4: first half y, second half x.
        dtype: dtype of the result.

    Returns:
        (N, channels, H, W) on the device of `valid`.
    """
    half = channels // 2
    exact = torch.promote_types(dtype, torch.float32)  # half precision cannot count to 300
    index = torch.arange(half, device=valid.device)
    frequency = temperature ** (2 * (index // 2).to(exact) / half)
    counts = valid.to(exact)

    def embed(axis: int) -> Tensor:
        position = counts.cumsum(axis)
        last = position.narrow(axis, -1, 1)
        position = position / (last + 1e-6) * (2 * math.pi)
        phase = position[..., None] / frequency
        pairs = torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1)
        return pairs.flatten(-2)

    return torch.cat((embed(1), embed(2)), dim=-1).permute(0, 3, 1, 2).to(dtype)
