"""A linear layer of something wide, which never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mask2former.gradient_checkpointing import recomputed

# Elements of the wide inside that are computed at once, so that they stay in a processor's cache.
PART = 1 << 20
# But so many rows that a matrix product is worth the weights that it reads.
LEAST_ROWS = 1024


def linear_in_parts(
    inside: Callable[..., Tensor],
    linear: nn.Linear,
    inputs: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    width: int,
    random: bool,
) -> Tensor:
    """`linear(inside(*inputs))`, of which the backward pass keeps the inputs and computes the rest
    again; on a processor some rows after the others, in both directions.

    Args:
        inside: each row of its result is a function of that row of the inputs, and `parameters`.
        inputs: of equal length, or None; gradients go to the first only.
        parameters: all that `inside` uses and may want gradients; those are sums over the parts.
        width: elements that a row of the layer's takes inside.
        random: `inside` draws random numbers, which must be the same in the second run.
    """

    def plain(*inputs: Tensor | None) -> Tensor:
        return linear(inside(*inputs))

    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return plain(*inputs)
    if random or inputs[0].device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return recomputed(plain, *inputs)
    length = -(-max(PART // width, LEAST_ROWS) // inputs[0].shape[1:-1].numel())
    weights = linear.weight, linear.bias
    return _LinearInParts.apply(inside, length, len(inputs), *inputs, *weights, *parameters)


class _LinearInParts(torch.autograd.Function):
    """As above; of its tensors, `count` are the inputs, two the layer's and the rest parameters."""

    @staticmethod
    def forward(ctx: Any, inside: Callable, length: int, count: int, *tensors: Tensor) -> Tensor:
        ctx.inside, ctx.length, ctx.count = inside, length, count
        ctx.save_for_backward(*tensors)
        inputs, (weight, bias) = tensors[:count], tensors[count : count + 2]
        out = inputs[0].new_empty(*inputs[0].shape[:-1], len(weight))
        for part in _parts(len(out), length):
            wide = inside(*_taken(inputs, part)).flatten(0, -2)
            torch.addmm(bias, wide, weight.T, out=out[part].flatten(0, -2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs, weight, parameters = (
            tensors[: ctx.count],
            tensors[ctx.count],
            tensors[ctx.count + 2 :],
        )
        grad = grad.contiguous()
        first = inputs[0]
        wanted = ctx.needs_input_grad[3:]
        grad_first = torch.empty_like(first)
        grad_weight = torch.zeros_like(weight)
        trained = [p for p, w in zip(parameters, wanted[ctx.count + 2 :], strict=True) if w]
        grads = [torch.zeros_like(p) for p in trained]
        for part in _parts(len(grad), ctx.length):
            with torch.enable_grad():
                taken, *others = _taken(inputs, part)
                taken = taken.detach().requires_grad_()
                wide = ctx.inside(taken, *others)
            grad_part = grad[part].flatten(0, -2)
            grad_weight.addmm_(grad_part.T, wide.detach().flatten(0, -2))
            grad_wide = (grad_part @ weight).view_as(wide)
            grad_first[part], *of_part = torch.autograd.grad(wide, [taken, *trained], grad_wide)
            for total, addend in zip(grads, of_part, strict=True):
                total += addend
        found = iter(grads)
        of_parameters = [next(found) if w else None for w in wanted[ctx.count + 2 :]]
        of_inputs = [grad_first] + [None] * (ctx.count - 1)
        return None, None, None, *of_inputs, grad_weight, grad.flatten(0, -2).sum(0), *of_parameters


def _parts(whole: int, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, whole, length)]


def _taken(inputs: Sequence[Tensor | None], part: slice) -> list[Tensor | None]:
    return [None if x is None else x[part] for x in inputs]
