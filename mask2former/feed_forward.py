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
    random = dropout is not None and dropout.training and dropout.p > 0

    def inside(x: Tensor, fc1: Callable, *norms: Callable) -> Tensor:
        for norm in norms:
            x = norm(x)
        wide = activation(fc1(x))
        return dropout(wide) if random else wide

    layers = [fc1] if norm is None else [fc1, norm]
    rows = [x.flatten(0, -2)]
    out = linear_in_parts(inside, fc2, layers, rows, width=fc1.out_features, random=random)
    return out.unflatten(0, x.shape[:-1])
