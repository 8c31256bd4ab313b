"""Multi-head self-attention inside the shifted windows of a map (Liu et al. 2021, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.configuration.backbones import SwinConfig
from mask2former.model.backbones.windows import (
    bias_of_pairs,
    into_windows,
    out_of_windows,
    window_mask,
)

# Added to the attention scores of masked pairs. The published weights were trained with -100, which
# leaves a probability of 4e-44: too small to matter, but a denormal number, which is slow on a CPU.
SHIFT_PENALTY = -200.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned relative position bias.

    Args:
        config: the backbone's configuration.
        dim: channels, a multiple of `num_heads`.
        num_heads: attention heads.
        shift: rows and columns by which maps are shifted before they are cut into windows.
    """

    def __init__(self, config: SwinConfig, dim: int, num_heads: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, config.window_size, shift
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_bias = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, num_heads))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Self-attention in each window of maps of any size.

        Args:
            x: maps (N, H, W, C).
            valid: bool (N, H, W), True in the image's rectangle at the top left; None: everywhere.

        Returns:
            (N, H, W, C).
        """
        _, height, width, _ = x.shape
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        masked = window_mask(x, valid, self.window, self.shift)
        windows = self._attend(into_windows(x, self.window, self.shift), masked)
        x = out_of_windows(windows, height, width, self.window, self.shift)
        return self.dropout(self.output(x))

    def _attend(self, x: Tensor, masked: Tensor | None) -> Tensor:
        """Windows (W, L, C); `masked` bool (W, L, L)."""
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        bias = bias_of_pairs(self.position_bias, self.window)[None].to(query.dtype)
        if masked is not None:
            bias = torch.where(masked[:, None], bias + SHIFT_PENALTY, bias)
        dropout = self.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, bias, dropout)
        return out.transpose(1, 2).flatten(2)
