"""An activation after a bias, in place, with CPU kernels only: what a feed-forward network does
between its two matrix products. No autograd: the caller computes the products' gradients too."""

import torch
from torch import Tensor

torch.library.define(
    "mask2former_ops::bias_activation_", "(Tensor(a!) x, Tensor bias, bool gelu) -> Tensor(a!)"
)
torch.library.define(
    "mask2former_ops::bias_activation_backward_",
    "(Tensor(a!) x, Tensor(b!) grad, Tensor bias, bool gelu) -> Tensor",
)


def bias_activation_(x: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    """`x = activation(x + bias)` in one pass.

    Args:
        x: (rows, C), float32 or float64 on the CPU, contiguous; overwritten.
        bias: (C,).
        gelu: GELU in its exact form (Hendrycks and Gimpel 2016), else ReLU.

    Returns:
        `x`.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or layout.
        NotImplementedError: there is no compiled kernel.
    """
    return torch.ops.mask2former_ops.bias_activation_(x, bias, gelu)


def bias_activation_backward_(x: Tensor, grad: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    """`bias_activation_`, and in the same pass `grad = grad * activation'(x + bias)`.

    Args:
        x, bias, gelu: those of `bias_activation_`.
        grad: gradient of its result, (rows, C), contiguous; overwritten by that of `x`.

    Returns:
        The gradient of the bias, (C,).

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or layout.
        NotImplementedError: there is no compiled kernel.
    """
    # The sums of some rows each, so that their order does not depend on the threads.
    return torch.ops.mask2former_ops.bias_activation_backward_(x, grad, bias, gelu).sum(0)
