"""A norm, two linear layers with an activation between them, and the residual around them; their
wide inside never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.model.gradient_checkpointing import recomputed
from mask2former.model.in_parts import NormInParts, SumOfProducts, goes_in_parts, rows_at_once
from mask2former_ops._extension import has_kernel
from mask2former_ops.bias_activation import bias_activation_, bias_activation_backward_

Activation = Callable[[Tensor], Tensor]


def feed_forward(
    x: Tensor,
    norm: nn.LayerNorm,
    fc1: nn.Linear,
    activation: Activation,
    fc2: nn.Linear,
    *,
    normed_residual: bool,
    inner_dropout: nn.Dropout | None = None,
    dropout: nn.Dropout,
) -> Tensor:
    """`y + dropout(fc2(inner_dropout(activation(fc1(norm(x))))))` of (..., C).

    With `normed_residual` y is `norm(x)`, as behind a layer whose norms come last, else `x`. The
    backward pass keeps only `x`.
    """

    def whole(x: Tensor) -> Tensor:
        normed = norm(x)
        inside = activation(fc1(normed))
        out = fc2(inside if inner_dropout is None else inner_dropout(inside))
        return (normed if normed_residual else x) + dropout(out)

    if not torch.is_grad_enabled():
        return whole(x)
    random = any(d is not None and d.training and d.p > 0 for d in (inner_dropout, dropout))
    biased = fc1.bias is not None and fc2.bias is not None
    function = biased and not isinstance(activation, nn.Module)  # which may have weights of its own
    if random or not function or not goes_in_parts(x, [norm, fc1, fc2]):
        return recomputed(whole, x)
    weights = norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias
    rows = x.flatten(0, -2)
    out = _FeedForward.apply(activation, normed_residual, norm.eps, rows, *weights)
    return out.unflatten(0, x.shape[:-1])


class _FeedForward(torch.autograd.Function):
    """Of rows (R, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        normed_residual: bool,
        eps: float,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        ctx.activation, ctx.normed_residual, ctx.eps = activation, normed_residual, eps
        ctx.save_for_backward(x, scale, shift, weight1, bias1, weight2)
        norm = NormInParts(scale, shift, eps)
        out = torch.empty_like(x)
        for part, (inside,) in _parts(x, weight1, 1):
            normed = norm.normalise(x[part])
            torch.mm(normed, weight1.T, out=inside)
            _activate_(inside, bias1, activation)
            torch.add(normed if normed_residual else x[part], bias2, out=out[part])
            out[part].addmm_(inside, weight2.T)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight1, bias1, weight2 = ctx.saved_tensors
        norm = NormInParts(scale, shift, ctx.eps)
        grad = grad.contiguous()
        grad_x, grad_bias1 = torch.empty_like(x), torch.zeros_like(bias1)
        *_, wants1, _bias1, wants2, _bias2 = ctx.needs_input_grad
        grad1, grad2 = SumOfProducts(weight1, wants1), SumOfProducts(weight2, wants2)
        for part, (inside, grad_inside) in _parts(x, weight1, 2):
            normed, statistics = norm.normalise_again(x[part])
            torch.mm(normed, weight1.T, out=inside)
            torch.mm(grad[part], weight2, out=grad_inside)
            grad_bias1 += _differentiate_(inside, grad_inside, bias1, ctx.activation)
            grad2.add(grad[part].T, inside)
            grad1.add(grad_inside.T, normed)
            if ctx.normed_residual:
                grad_normed = torch.addmm(grad[part], grad_inside, weight1)
                grad_x[part] = norm.differentiate(grad_normed, x[part], statistics)
            else:
                grad_normed = grad_inside @ weight1
                through = norm.differentiate(grad_normed, x[part], statistics)
                torch.add(grad[part], through, out=grad_x[part])
        of_weights = grad1.result(), grad_bias1, grad2.result(), grad.sum(0)
        return None, None, None, grad_x, *norm.gradients, *of_weights


def _parts(x: Tensor, weight: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the rows, with memory for so many times their inside, the same for all."""
    length = min(rows_at_once(len(weight)), len(x))
    memory = [x.new_empty(length, len(weight)) for _ in range(buffers)]
    for start in range(0, len(x), max(length, 1)):
        rows = min(length, len(x) - start)
        yield slice(start, start + rows), [whole[:rows] for whole in memory]


def _activate_(x: Tensor, bias: Tensor, activation: Activation) -> None:
    """`x = activation(x + bias)`."""
    if _has_kernel(activation):
        bias_activation_(x, bias, gelu=activation is F.gelu)
    else:
        x.copy_(activation(x.add_(bias)))


def _differentiate_(x: Tensor, grad: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """The same, and `grad` becomes that of `x`; returns that of `bias`."""
    if _has_kernel(activation):
        return bias_activation_backward_(x, grad, bias, gelu=activation is F.gelu)
    before = (x + bias).requires_grad_()
    with torch.enable_grad():
        after = activation(before)
    x.copy_(after.detach())
    grad.copy_(torch.autograd.grad(after, before, grad)[0])
    return grad.sum(0)


def _has_kernel(activation: Activation) -> bool:
    return activation in (F.relu, F.gelu) and has_kernel("bias_activation_", "cpu")
