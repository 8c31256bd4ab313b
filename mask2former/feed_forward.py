"""Two linear layers with an activation between them, whose wide inside never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.gradient_checkpointing import recomputed

# Elements of the inside that are computed at once, so that they stay in a processor's cache.
PART = 1 << 20


def feed_forward(
    x: Tensor,
    fc1: nn.Linear,
    activation: Callable[[Tensor], Tensor],
    fc2: nn.Linear,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """`fc2(dropout(activation(fc1(x))))` of (..., C), of which the backward pass keeps only `x`."""

    def plain(x: Tensor) -> Tensor:
        inside = activation(fc1(x))
        return fc2(inside if dropout is None else dropout(inside))

    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return plain(x)
    dropped = dropout is not None and dropout.training and dropout.p > 0
    if dropped or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return recomputed(plain, x)
    out = _FeedForward.apply(x.flatten(0, -2), *_parameters(fc1), *_parameters(fc2), activation)
    return out.unflatten(0, x.shape[:-1])


def _parameters(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight, linear.bias


class _FeedForward(torch.autograd.Function):
    """Part of the rows after part, in both directions; the backward pass computes the inside again.

    The gradients of the weights are sums over the parts.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Callable
    ) -> Tensor:
        ctx.save_for_backward(x, w1, b1, w2)
        ctx.activation = activation
        out = x.new_empty(len(x), len(w2))
        rows = max(1, PART // len(w1))
        for x_part, out_part in zip(x.split(rows), out.split(rows), strict=True):
            torch.addmm(b2, activation(F.linear(x_part, w1, b1)), w2.T, out=out_part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, w2 = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if wanted[0] else None
        grad_w1, grad_b1, grad_w2 = (torch.zeros_like(of) for of in (w1, b1, w2))
        rows = max(1, PART // len(w1))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            with torch.enable_grad():
                before = F.linear(x[part], w1, b1).detach().requires_grad_()
                inside = ctx.activation(before)
            (grad_before,) = torch.autograd.grad(inside, before, grad[part] @ w2)
            grad_w2.addmm_(grad[part].T, inside.detach())
            grad_w1.addmm_(grad_before.T, x[part])
            grad_b1 += grad_before.sum(0)
            if wanted[0]:
                torch.mm(grad_before, w1, out=grad_x[part])
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(0), None
