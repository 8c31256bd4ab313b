"""A linear layer of something wide, which never exists as a whole when a processor trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mask2former.gradient_checkpointing import recomputed

# Elements of the wide inside that are computed at once, so that they stay in a processor's cache.
PART = 1 << 20
# But so many rows that a matrix product is worth the weights that it reads.
LEAST_ROWS = 1024


def linear_in_parts(
    inside: Callable[..., Tensor],
    linear: nn.Linear,
    layers: Sequence[nn.Linear | nn.LayerNorm],
    inputs: Sequence[Tensor | None],
    *,
    shared: Sequence[Tensor] = (),
    width: int,
    random: bool,
) -> Tensor:
    """`linear(inside(*inputs, *shared, *layers))`; the backward pass keeps inputs and shared only.

    It computes the rest again. On a processor some items come after the others, in both directions,
    and the gradients of all weights are sums over these parts. Layers that somebody replaced,
    parametrised or hung hooks on are called as a whole.

    Args:
        inside: gives an item for each item of the inputs (items, ..., C), by itself.
        linear: with a bias.
        layers: all that `inside` calls and have weights.
        inputs: of as many items, or None; gradients go to the first only.
        shared: other tensors that `inside` uses and may want gradients.
        width: elements that `inside` takes for each row that `linear` multiplies.
        random: `inside` draws random numbers, which must be the same in the second run.
    """

    def whole(*inputs: Tensor | None) -> Tensor:
        return linear(inside(*inputs, *shared, *layers))

    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return whole(*inputs)
    on_cpu = inputs[0].device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if random or not on_cpu or not all(map(_is_plain, [linear, *layers])):
        return recomputed(whole, *inputs)
    length = -(-max(PART // width, LEAST_ROWS) // inputs[0].shape[1:-1].numel())
    weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
    tensors = [*inputs, linear.weight, linear.bias, *shared, *weights]
    return _LinearInParts.apply(inside, layers, length, len(inputs), *tensors)


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling it does nothing but its formula."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks
    hooks += layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) in (nn.Linear, nn.LayerNorm) and not any(hooks)


class _LinearInParts(torch.autograd.Function):
    """Of its tensors, `count` are the inputs, two the last layer's, and the rest for `inside`.

    `inside` gets layers that have those very tensors as weights: a module's own would count twice
    for a hook on a parameter, here and where the sum over the parts arrives.
    """

    @staticmethod
    def forward(
        ctx: Any, inside: Callable, layers: Sequence, length: int, count: int, *tensors: Tensor
    ) -> Tensor:
        ctx.inside, ctx.layers, ctx.length, ctx.count = inside, layers, length, count
        ctx.save_for_backward(*tensors)
        inputs, (weight, bias, *rest) = tensors[:count], tensors[count:]
        out = inputs[0].new_empty(*inputs[0].shape[:-1], len(weight))
        for part in _parts(len(out), length):
            wide = inside(*_taken(inputs, part), *_used(rest, layers)).flatten(0, -2)
            torch.addmm(bias, wide, weight.T, out=out[part].flatten(0, -2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, tensors, wanted = ctx.count, ctx.saved_tensors, ctx.needs_input_grad[4:]
        (first, *others), weight, rest = tensors[:count], tensors[count], tensors[count + 2 :]
        rest = [
            None if x is None else x.detach().requires_grad_(trained)
            for x, trained in zip(rest, wanted[count + 2 :], strict=True)
        ]
        used = _used(rest, ctx.layers)
        trained = [x for x in rest if x is not None and x.requires_grad]
        totals = [torch.zeros_like(x) for x in trained]
        grad_first, grad_weight = torch.empty_like(first), torch.zeros_like(weight)
        grad = grad.contiguous()
        for part in _parts(len(grad), ctx.length):
            with torch.enable_grad():
                taken = first[part].detach().requires_grad_()
                wide = ctx.inside(taken, *_taken(others, part), *used)
            grad_part = grad[part].flatten(0, -2)
            grad_weight.addmm_(grad_part.T, wide.detach().flatten(0, -2))
            grad_wide = (grad_part @ weight).view_as(wide)
            grad_first[part], *of_part = torch.autograd.grad(wide, [taken, *trained], grad_wide)
            for total, addend in zip(totals, of_part, strict=True):
                total += addend
        found = iter(totals)
        of_rest = [next(found) if x is not None and x.requires_grad else None for x in rest]
        unsplit = [None] * (count - 1)
        grad_bias = grad.flatten(0, -2).sum(0)
        return *[None] * 4, grad_first, *unsplit, grad_weight, grad_bias, *of_rest


def _parts(whole: int, length: int) -> Iterator[slice]:
    return (slice(start, start + length) for start in range(0, whole, length))


def _taken(inputs: Sequence[Tensor | None], part: slice) -> list[Tensor | None]:
    return [None if x is None else x[part] for x in inputs]


def _used(tensors: Sequence[Tensor | None], layers: Sequence[nn.Module]) -> list[Any]:
    """The shared tensors, then the layers with the weights and biases that follow them."""
    split = len(tensors) - 2 * len(layers)
    weights, biases = tensors[split::2], tensors[split + 1 :: 2]
    return [*tensors[:split], *map(_with_weights, layers, weights, biases)]


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> Callable:
    if isinstance(layer, nn.Linear):
        return partial(F.linear, weight=weight, bias=bias)
    shape = layer.normalized_shape
    return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=layer.eps)
