"""Argument checks of the ops where no kernel runs; csrc/checks.h says the same in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_shape(op: str, name: str, tensor: Tensor, layout: str, expected: Sequence) -> None:
    """Raises RuntimeError unless the shape is `expected`, whose None entries may be any size."""
    got = tensor.shape
    torch._check(
        len(got) == len(expected),
        lambda: (
            f"{op}: {name} must have {len(expected)} dimensions {layout}, "
            f"but has shape {_shape(got)}"
        ),
    )
    for size, wanted in zip(got, expected, strict=True):
        if wanted is not None:
            torch._check(
                size == wanted,
                lambda: (
                    f"{op}: {name} must have shape {layout} = {_shape(expected)}, "
                    f"but has {_shape(got)}"
                ),
            )


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raises RuntimeError unless the dtype is one of `allowed`."""
    if tensor.dtype not in allowed:
        names = " or ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in allowed))
        got = str(tensor.dtype).removeprefix("torch.")
        raise RuntimeError(f"{op}: {name} must be {names}, but is {got}")


def check_device(op: str, name: str, tensor: Tensor, first: str, device: torch.device) -> None:
    """Raises RuntimeError unless the tensor is on `device`, where the argument `first` is."""
    if tensor.device != device:
        raise RuntimeError(
            f"{op}: {name} must be on {device} like {first}, but is on {tensor.device}"
        )


def check_output_mask(op: str, output_mask: Sequence[bool], count: int) -> None:
    """Raises RuntimeError unless there is one value for each of the `count` gradients."""
    if len(output_mask) != count:  # of a list given as bool[N] torch does not check the length
        got = len(output_mask)
        raise RuntimeError(f"{op}: output_mask must have {count} values, but has {got}")


def _shape(sizes: Sequence) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"
