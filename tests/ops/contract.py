"""What the contract tests of the ops share."""

import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.cpp_extension import get_cxx_compiler

from tests.ops.samples import generator
from tests.ops.tolerances import assert_close

# torch.compile's default backend compiles C++ that includes Python.h.
_CAN_COMPILE = (
    shutil.which(get_cxx_compiler()) and Path(sysconfig.get_path("include"), "Python.h").exists()
)
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.skipif(not _CAN_COMPILE, reason="needs a C++ compiler and Python.h"),
            # torch 2.13 warns of itself
            pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
        ],
    ),
]


def without_kernel(op: torch._ops.OpOverload, *arguments) -> Tensor:
    """What runs on a type of device that there is no kernel for."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.XLA)
    checks = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    return op.redispatch(keys | checks, *arguments)


def assert_same(result: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Asserts the same float64 numbers and the same gradients of the leaves."""
    assert_close(result, expected, torch.float64)
    grad = torch.randn(expected.shape, generator=generator(1), dtype=torch.float64)
    for ours, wanted in zip(
        torch.autograd.grad(result, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert_close(ours, wanted, torch.float64)


def check_vmap(
    function: Callable[..., Tensor], samples: Sequence[Sequence[Tensor]], in_dims: tuple
) -> None:
    """Asserts that torch.vmap over the samples, stacked at `in_dims`, does what a loop does.

    An argument whose in_dims is None is the first sample's, for all.
    """
    leaves = [
        (mapped[0] if dim is None else torch.stack(mapped, dim)).requires_grad_()
        for mapped, dim in zip(zip(*samples, strict=True), in_dims, strict=True)
    ]
    pairs = list(zip(leaves, in_dims, strict=True))
    outputs = [
        function(*(leaf if dim is None else leaf.select(dim, k) for leaf, dim in pairs))
        for k in range(len(samples))
    ]
    assert_same(torch.vmap(function, in_dims)(*leaves), torch.stack(outputs), leaves)


def check_many_gradients_at_a_time(output: Tensor, leaves: Sequence[Tensor]) -> None:
    """Asserts that the backward can be mapped over gradients of the output."""
    grads = torch.randn(3, *output.shape, generator=generator(1), dtype=torch.float64)
    together = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
    for k, grad in enumerate(grads):
        alone = torch.autograd.grad(output, leaves, grad, retain_graph=True)
        for ours, expected in zip(together, alone, strict=True):
            assert_close(ours[k], expected, torch.float64)
