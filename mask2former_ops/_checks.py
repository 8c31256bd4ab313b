"""What the argument checks of all operators share. C++ takes its arguments as valid.

`check_before` puts an operator's checks in front of its kernels, compiled ones and reference alike.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# The dispatch key right above the devices' keys. torch lets every call pass there, with autograd
# or without, under inference mode, vmap and autocast, from Python and C++. Only fake tensors do not
# come so far: an operator's fake checks shapes and dtypes itself.
_KEY = torch._C.DispatchKey.BackendSelect
_DEVICES = torch._C._dispatch_keyset_full_after(_KEY)
_LIBRARY = torch.library.Library("mask2former_ops", "FRAGMENT")


def check_before(op: str, check: Callable[..., None]) -> None:
    """Lets no call of an operator reach a device unless `check` accepts its arguments.

    Args:
        op: full name of a defined operator without overloads.
        check: takes the operator's positional arguments and raises RuntimeError.
    """
    name = op.removeprefix("mask2former_ops::")
    overload = getattr(torch.ops.mask2former_ops, name).default

    def checked(keys, *arguments, **options):
        check(*arguments)
        return overload.redispatch(keys & _DEVICES, *arguments, **options)

    _LIBRARY.impl(name, checked, "BackendSelect", with_keyset=True)


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


def check_map_size(op: str, name: str, tensor: Tensor) -> None:
    """Raises RuntimeError for maps (..., H, W) whose rows or columns 32 bits cannot count."""
    height, width = tensor.shape[-2:]
    if max(height, width) >= 2**31:
        raise RuntimeError(
            f"{op}: {name} must have fewer than 2^31 rows and columns, but has {height} x {width}"
        )


def check_output_mask(op: str, output_mask: Sequence[bool], count: int) -> None:
    """Raises RuntimeError unless there is one value for each of the `count` gradients."""
    if len(output_mask) != count:  # of a list given as bool[N] torch does not check the length
        got = len(output_mask)
        raise RuntimeError(f"{op}: output_mask must have {count} values, but has {got}")


def _shape(sizes: Sequence) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"
