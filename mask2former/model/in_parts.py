"""What is wide inside of a layer is computed in parts on a processor, some rows after the others,
in both directions; where rows have few channels the backward pass computes it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

# Elements of the wide inside that are computed at once, so that they stay in a processor's cache.
PART = 1 << 20
# But so many rows that a matrix product is worth the weights that it reads.
LEAST_ROWS = 1024
# Of rows of so many channels the inside is kept after all: the more channels a row has, the longer
# it takes to compute a number of its inside again, which takes the same memory.
KEPT_CHANNELS = 384
PLAIN = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GroupNorm)


def rows_at_once(width: int) -> int:
    """Rows of a part whose inside is `width` elements wide."""
    return max(PART // width, LEAST_ROWS)


def goes_in_parts(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether these layers of `x` are computed in parts, by operations of our own.

    Only on a processor, and not where somebody replaced a layer, parametrised it or hung hooks on
    it, nor where operations are recorded or take place in half precision.
    """
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    here = x.device.type == "cpu" and full and not is_recorded()
    return here and not _has_any_global_hook() and all(map(_is_plain, layers))


def is_recorded() -> bool:
    """Whether operations are compiled, exported or traced, and must not depend on numbers."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling it does nothing but its formula."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks
    hooks += layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) in PLAIN and "forward" not in vars(layer) and not any(hooks)


class NormInParts:
    """A layer norm of one part after the other; sums up the gradients of its weights."""

    def __init__(self, scale: Tensor | None, shift: Tensor | None, eps: float) -> None:
        self.weights, self.eps = (scale, shift), eps
        self.gradients = [None if x is None else torch.zeros_like(x) for x in self.weights]

    def normalise(self, x: Tensor) -> Tensor:
        """(..., C), normalised."""
        return F.layer_norm(x, x.shape[-1:], *self.weights, self.eps)

    def normalise_again(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The same, and what `differentiate` needs."""
        normed, *statistics = torch.native_layer_norm(x, x.shape[-1:], *self.weights, self.eps)
        return normed, statistics

    def differentiate(self, grad: Tensor, x: Tensor, statistics: Sequence[Tensor]) -> Tensor:
        """The gradient of `x` from that of the normalised."""
        wanted = [True, *(x is not None for x in self.weights)]
        grad_x, *found = torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], *statistics, *self.weights, wanted
        )
        for total, addend in zip(self.gradients, found, strict=True):
            if total is not None:
                total += addend
        return grad_x


class SumOfProducts:
    """The gradient of a weight matrix, a product for each part."""

    def __init__(self, weight: Tensor, wanted: bool) -> None:
        self.weight, self.wanted, self.total = weight, wanted, None

    def add(self, a: Tensor, b: Tensor) -> None:
        """Adds `a @ b`."""
        if not self.wanted:
            return
        if self.total is None:
            self.total = torch.mm(a, b)
        else:
            self.total.addmm_(a, b)

    def result(self) -> Tensor | None:
        """The gradient, None if nobody wants it."""
        if self.wanted and self.total is None:
            return torch.zeros_like(self.weight)
        return self.total
