"""Two linear layers with an activation between them, whose wide inside never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mask2former.in_parts import linear_in_parts


def feed_forward(
    x: Tensor,
    fc1: nn.Linear,
    activation: Callable[[Tensor], Tensor],
    fc2: nn.Linear,
    *,
    norm: nn.LayerNorm | None = None,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """`fc2(dropout(activation(fc1(norm(x)))))` of (..., C); the backward pass keeps only `x`."""

    def inside(x: Tensor) -> Tensor:
        wide = activation(fc1(x if norm is None else norm(x)))
        return wide if dropout is None else dropout(wide)

    parameters = [*fc1.parameters(), *(() if norm is None else norm.parameters())]
    random = dropout is not None and dropout.training and dropout.p > 0
    rows = x.flatten(0, -2)
    out = linear_in_parts(inside, fc2, [rows], parameters, fc1.out_features, random)
    return out.unflatten(0, x.shape[:-1])
