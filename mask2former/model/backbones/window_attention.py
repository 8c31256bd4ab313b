"""Multi-head self-attention inside the shifted windows of a map (Liu et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.configuration.backbones import SwinConfig
from mask2former.model import in_parts
from mask2former.model.backbones.windows import (
    absent_places,
    into_windows,
    out_of_windows,
    relative_position_index,
    shift_mask,
    window_cells,
)
from mask2former.model.gradient_checkpointing import recomputed
from mask2former.model.in_parts import NormInParts, SumOfProducts, goes_in_parts, rows_at_once
from mask2former_ops._extension import has_kernel
from mask2former_ops.window_attention import (
    WindowRows,
    window_attention,
    window_attention_backward,
)

# Added to the attention scores of positions that a cyclic shift brought together from opposite
# sides. The published weights were trained with -100, whose probability of 4e-44 is as nothing in
# the result, but is a denormal number in float32, with which a processor is 70 times as slow.
SHIFT_PENALTY = -200.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned relative position bias."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, config.window_size
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.output = nn.Linear(dim, dim)
        size = self.window
        self.position_bias = nn.Parameter(torch.zeros((2 * size - 1) ** 2, num_heads))
        self.register_buffer("position_index", relative_position_index(size), persistent=False)

    def forward(self, x: Tensor, norm: nn.LayerNorm, shift: int, valid: Tensor | None) -> Tensor:
        """Attention among the normalised positions of each window, of maps of any size.

        Args:
            x: maps (N, H, W, C).
            norm: applied first; a map is filled up with zeros after it.
            shift: rows and columns that the maps are shifted by before they are cut into windows.
            valid: bool (N, H, W), True in the image's rectangle at the top left; None: everywhere.
        """
        bias = self.position_bias[self.position_index].permute(2, 0, 1)
        dropout = self.dropout if self.training else 0.0
        plain = dropout == 0 and goes_in_parts(x, [norm, self.qkv, self.output])
        if plain and has_kernel("window_attention", "cpu"):
            of_norm = norm.eps, norm.weight, norm.bias
            weights = self.qkv.weight, self.qkv.bias, self.output.weight, self.output.bias
            cut = _extents(x, valid), self.window, shift
            keep = torch.is_grad_enabled() and x.shape[-1] >= in_parts.KEPT_CHANNELS
            return _AttentionInParts.apply(cut, keep, *of_norm, x, bias.contiguous(), *weights)

        def whole(x: Tensor) -> Tensor:
            return self._of_all_windows(norm(x), bias, shift, valid, dropout)

        return recomputed(whole, x)

    def _of_all_windows(
        self, x: Tensor, bias: Tensor, shift: int, valid: Tensor | None, dropout: float
    ) -> Tensor:
        n, height, width, channels = x.shape
        cells, places = window_cells(n, height, width, self.window, shift, x.device)
        blank, hidden = cells < 0, None
        if shift:
            hidden = shift_mask(height, width, self.window, shift, x.device).repeat(n, 1, 1)
        if valid is not None:
            blank = blank | ~valid.flatten()[cells]
            absent = absent_places(valid, self.window, shift)
            hidden = absent if hidden is None else hidden | absent
        order = cells.flatten()
        windows = into_windows(x.flatten(0, 2), order, places).view(*cells.shape, channels)
        windows = windows.masked_fill(blank[..., None], 0.0)
        heads = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = bias.to(query.dtype)[None]
        if not torch.is_grad_enabled():
            scores = scores.detach()  # whose mere flag would make it take a much slower path
        if hidden is not None:
            scores = torch.where(hidden[:, None], scores + SHIFT_PENALTY, scores)
        out = F.scaled_dot_product_attention(query, key, value, scores, dropout)
        out = self.output(out.transpose(1, 2).flatten(2))
        return out_of_windows(out.flatten(0, 1), order, places).view_as(x)


def _extents(x: Tensor, valid: Tensor | None) -> Tensor:
    """int64 (N, 2), the rows and columns of the image in each map."""
    if valid is None:
        return torch.tensor(x.shape[1:3]).expand(len(x), 2)
    return torch.stack([valid.any(2).sum(1), valid.any(1).sum(1)], 1)


class _AttentionInParts(torch.autograd.Function):
    """Norm, queries, keys and values, attention and output of some rows of windows after others.

    The backward pass keeps the maps, of many channels also queries, keys and values, and computes
    the rest again. What fills the maps up has no part in the matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cut: tuple[Tensor, int, int],
        keep: bool,
        eps: float,
        scale: Tensor | None,
        shift: Tensor | None,
        x: Tensor,
        bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor | None,
        weight: Tensor,
        weight_bias: Tensor | None,
    ) -> Tensor:
        ctx.cut, ctx.eps = cut, eps
        norm = NormInParts(scale, shift, eps)
        out = x.new_empty(*x.shape[:-1], len(weight))
        blank, kept = _blank(qkv_weight, qkv_bias), []
        for images, rows in _parts(x, cut, len(qkv_weight)):
            qkv = F.linear(norm.normalise(rows.take(x[images])), qkv_weight, qkv_bias)
            inside = window_attention(qkv, blank, bias, rows)
            rows.put(F.linear(inside, weight, weight_bias), out[images])
            if keep:
                kept.append(qkv)
        ctx.save_for_backward(scale, shift, x, bias, qkv_weight, qkv_bias, weight, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, x, bias, qkv_weight, qkv_bias, weight, *kept = ctx.saved_tensors
        norm = NormInParts(scale, shift, ctx.eps)
        blank = _blank(qkv_weight, qkv_bias)
        grad_x, grad_bias = torch.empty_like(x), torch.zeros_like(bias)
        grad_blank = torch.zeros_like(blank)
        *_, wants_qkv, _qkv_bias, wants_output, wants_bias = ctx.needs_input_grad
        of_qkv = SumOfProducts(qkv_weight, wants_qkv)
        of_output = SumOfProducts(weight, wants_output)
        for images, rows in _parts(x, ctx.cut, len(qkv_weight)):
            part, grad_part = rows.take(x[images]), rows.take(grad[images])
            normed, statistics = norm.normalise_again(part)
            qkv = kept.pop(0) if kept else F.linear(normed, qkv_weight, qkv_bias)
            inside, grad_qkv, of_blank, of_bias = window_attention_backward(
                grad_part @ weight, qkv, blank, bias, rows
            )
            grad_bias += of_bias
            of_output.add(grad_part.flatten(0, 2).T, inside.flatten(0, 2))
            grad_qkv = grad_qkv.flatten(0, 2)
            of_qkv.add(grad_qkv.T, normed.flatten(0, 2))
            grad_blank += of_blank + grad_qkv.sum(0)
            grad_normed = (grad_qkv @ qkv_weight).view_as(part)
            rows.put(norm.differentiate(grad_normed, part, statistics), grad_x[images])
        to_qkv = of_qkv.result(), None if qkv_bias is None else grad_blank
        to_output = of_output.result(), grad.flatten(0, 2).sum(0) if wants_bias else None
        return None, None, None, *norm.gradients, grad_x, grad_bias, *to_qkv, *to_output


def _parts(
    x: Tensor, cut: tuple[Tensor, int, int], width: int
) -> Iterator[tuple[slice, WindowRows]]:
    """Whole maps of some images where they are small, else some rows of windows of one image."""
    extents, window, shift = cut
    n, height, across, _ = x.shape
    total, rows = max(1, -(-height // window)), rows_at_once(width)
    images = max(1, rows // max(1, height * across))
    step = total if images > 1 else max(1, round(rows / (window * across)))
    for i in range(0, n, images):
        own = slice(i, i + images)
        for first in range(0, total, step):
            count = min(step, total - first)
            yield (
                own,
                WindowRows(extents[own], height, window, shift, first, count, SHIFT_PENALTY),
            )


def _blank(qkv_weight: Tensor, qkv_bias: Tensor | None) -> Tensor:
    """Query, key and value of a place where the map is filled up with zeros."""
    return qkv_weight.new_zeros(len(qkv_weight)) if qkv_bias is None else qkv_bias
