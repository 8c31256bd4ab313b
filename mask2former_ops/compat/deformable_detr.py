"""Deformable-DETR's names, which most detectors after it kept (arXiv 2010.04159).

`import mask2former_ops.compat.deformable_detr as MSDA` takes the place of
`import MultiScaleDeformableAttention as MSDA`. Where that line cannot be edited, this comes before:
`sys.modules["MultiScaleDeformableAttention"] = mask2former_ops.compat.deformable_detr`.

As in the compiled extension a result has the dtype of `value`, also under autocast. Beyond it: any
device and floating dtype, inputs that are not contiguous, int32 shapes and starts, any batch size.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mask2former_ops.modules import MSDeformAttn
from mask2former_ops.ms_deform_attn import ms_deform_attn

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "ms_deform_attn_backward",
    "ms_deform_attn_core_pytorch",
    "ms_deform_attn_forward",
]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """`mask2former_ops.ms_deform_attn`, with upstream's sixth argument. Differentiable once.

    Args:
        value: (N, S, M, D) in a floating dtype.
        value_spatial_shapes: (L, 2) int64 or int32, (H, W) of each level.
        value_level_start_index: (L,) int64 or int32, where each level starts in S.
        sampling_locations: (N, Q, M, L, P, 2) as (x, y) in [0, 1]; float32 with a half value stays
            float32, any other dtype is taken in value's.
        attention_weights: (N, Q, M, L, P), likewise.
        im2col_step: ignored; N need not be a multiple of it.

    Returns:
        (N, Q, M * D) in value's dtype.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype, device, or levels that do not fit S.
    """
    with _no_autocast(value.device.type):
        return ms_deform_attn(
            value,
            _int64(value_spatial_shapes),
            _int64(value_level_start_index),
            _in_accepted_dtype(value, sampling_locations),
            _in_accepted_dtype(value, attention_weights),
        )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> list[Tensor]:
    """Gradients of `ms_deform_attn_forward`, for an autograd function that calls it.

    Args:
        grad_output: (N, Q, M * D) in value's dtype. The others are those of the forward.

    Returns:
        [grad_value, grad_sampling_locations, grad_attention_weights], each like its argument.

    Raises:
        RuntimeError: as the forward, and for a `grad_output` of the wrong shape, dtype or device.
    """
    gradients = torch.ops.mask2former_ops.ms_deform_attn_backward(
        grad_output,
        value,
        _int64(value_spatial_shapes),
        _int64(value_level_start_index),
        _in_accepted_dtype(value, sampling_locations),
        _in_accepted_dtype(value, attention_weights),
        None,
        [True, True, True],
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    arguments = (value, sampling_locations, attention_weights)
    return [g.to(argument.dtype) for g, argument in zip(gradients, arguments, strict=True)]


class MSDeformAttnFunction:
    """Upstream's autograd function: `MSDeformAttnFunction.apply(...)`.

    The operator brings its own gradients, so that `torch.compile` sees one node and no Python.
    """

    apply = staticmethod(ms_deform_attn_forward)


def ms_deform_attn_core_pytorch(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same from four arguments, the levels lying one after the other in `value`.

    It runs the kernel, not a path through `grid_sample`; unlike upstream's function of this name it
    can be differentiated once, not twice.

    Args:
        value_spatial_shapes: (L, 2) int64 or int32, or a list of L (H, W). The others, the result
            and the errors are those of `ms_deform_attn_forward`.
    """
    if not isinstance(value_spatial_shapes, Tensor):
        value_spatial_shapes = torch.tensor(value_spatial_shapes)
    areas = value_spatial_shapes.prod(1)
    return ms_deform_attn_forward(
        value,
        value_spatial_shapes,
        areas.cumsum(0) - areas,
        sampling_locations,
        attention_weights,
        im2col_step=1,
    )


def _no_autocast(device_type: str) -> AbstractContextManager:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _int64(metadata: Tensor) -> Tensor:
    """int32 widened; anything else stays for the operator to judge."""
    return metadata.long() if metadata.dtype == torch.int32 else metadata


def _in_accepted_dtype(value: Tensor, other: Tensor) -> Tensor:
    """Locations or weights in a dtype that the operator accepts with value's."""
    if value.dtype in (torch.float16, torch.bfloat16) and other.dtype == torch.float32:
        return other  # half coordinates would be coarse
    return other.to(value.dtype)
