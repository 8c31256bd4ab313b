"""Multi-scale deformable attention, the whole contract of the operator.

Schema, public function, checks, reference, fake, autograd, vmap, autocast.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mask2former_ops import reference
from mask2former_ops._checks import (
    FLOATING,
    check_before,
    check_device,
    check_dtype,
    check_output_mask,
    check_shape,
)
from mask2former_ops._extension import warn_of_fallback
from mask2former_ops._vmap import fold, unfold

_OP = "mask2former_ops::ms_deform_attn"
_BACKWARD = "mask2former_ops::ms_deform_attn_backward"

torch.library.define(
    _OP,
    "(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights, int[]? num_points=None) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
# A gradient that output_mask does not ask for comes back as an empty tensor of shape (0,). On the
# CPU gradients are always deterministic; on CUDA, where asked for.
torch.library.define(
    _BACKWARD,
    "(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
    "Tensor sampling_locations, Tensor attention_weights, int[]? num_points, bool[3] output_mask, "
    "*, bool deterministic=False) "
    "-> (Tensor grad_value, Tensor grad_sampling_locations, Tensor grad_attention_weights)",
    tags=torch.Tag.pt2_compliant_tag,
)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Weighted sum of bilinear samples of feature maps (Deformable DETR, arXiv 2010.04159, eq. 3).

    Samples outside a map are zero; pixel centres lie at (i + 0.5) / size (align_corners=False). A
    location that is not finite, or a pixel or more away from its map, adds nothing and gets a zero
    gradient.

    Args:
        value: (N, S, M, D) float64, float32, float16 or bfloat16: the L maps flattened one after
            the other, S = sum of H * W; M heads of D channels.
        spatial_shapes: (L, 2) int64, (H, W) of each map, on value's device or the CPU.
        level_start_index: (L,) int64, where each map starts in S, on value's device or the CPU.
        sampling_locations: (N, Q, M, L, P, 2) as (x, y), 0 and 1 being the outer edges of the map;
            value's dtype or, with half value, float32 (better: bfloat16 is half a pixel coarse).
        attention_weights: (N, Q, M, L, P), value's dtype or, with half value, float32.
        num_points: the number of points of each level, L integers, where levels differ: locations
            are then (N, Q, M, sum(num_points), 2) and weights (N, Q, M, sum(num_points)).

    Returns:
        (N, Q, M * D) in value's dtype, accumulated in float32 (float64 for float64). Differentiable
        once, in value, sampling_locations and attention_weights; `torch.vmap` maps over these
        three. With `torch.use_deterministic_algorithms(True)` gradients are bit-identical in
        every run, on CUDA too. Under autocast value is taken in the autocast dtype and the other
        two in float32.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, the levels do not fit S or
            overlap, or `torch.vmap` maps over them. Levels on a GPU are not read back, because the
            host would have to wait: there, one that does not lie within value samples zero.
    """
    return torch.ops.mask2former_ops.ms_deform_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )


def _check_arguments(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None,
) -> None:
    op = "ms_deform_attn"
    check_dtype(op, "value", value, FLOATING)
    check_shape(op, "value", value, "(N, S, M, D)", (None,) * 4)
    check_dtype(op, "spatial_shapes", spatial_shapes, (torch.int64,))
    check_shape(op, "spatial_shapes", spatial_shapes, "(L, 2)", (None, 2))
    levels = spatial_shapes.shape[0]
    check_dtype(op, "level_start_index", level_start_index, (torch.int64,))
    check_shape(op, "level_start_index", level_start_index, "(L)", (levels,))
    n, _, m, _ = value.shape
    if num_points is None:
        per_query, layout = (levels, None), "(N, Q, M, L, P"
    else:
        if len(num_points) != levels or any(count < 0 for count in num_points):
            raise RuntimeError(
                f"{op}: num_points must be {levels} counts, one for each row of spatial_shapes, "
                f"but is {list(num_points)}"
            )
        per_query, layout = (sum(num_points),), "(N, Q, M, sum(num_points)"
    either = (value.dtype,) if value.dtype == torch.float64 else (value.dtype, torch.float32)
    check_dtype(op, "sampling_locations", sampling_locations, either)
    check_shape(
        op, "sampling_locations", sampling_locations, f"{layout}, 2)", (n, None, m, *per_query, 2)
    )
    check_dtype(op, "attention_weights", attention_weights, either)
    check_shape(
        op, "attention_weights", attention_weights, f"{layout})", sampling_locations.shape[:-1]
    )
    for name, tensor in (
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        check_device(op, name, tensor, "value", value.device)
    for name, tensor in (
        ("spatial_shapes", spatial_shapes),
        ("level_start_index", level_start_index),
    ):
        if tensor.device.type != "cpu":
            check_device(op, name, tensor, "value", value.device)


def _check_levels(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor) -> None:
    """Raises RuntimeError for levels that do not fit value, where reading them costs no sync."""
    if spatial_shapes.device.type != "cpu" or level_start_index.device.type != "cpu":
        return
    shapes, starts, size = spatial_shapes.tolist(), level_start_index.tolist(), value.shape[1]
    for (height, width), start in zip(shapes, starts, strict=True):
        inside = 0 <= start <= size - height * width
        if not (inside and 0 <= height < 2**31 and 0 <= width < 2**31):
            raise RuntimeError(
                f"ms_deform_attn: spatial_shapes and level_start_index must give levels inside "
                f"value's S = {size}, but one is {height} x {width} and starts at {start}"
            )
    covered = sum(height * width for height, width in shapes)
    if covered != size:
        raise RuntimeError(
            f"ms_deform_attn: spatial_shapes must cover value's S = {size}, but its levels have "
            f"{covered} pixels"
        )
    spans = sorted(
        (start, start + height * width)
        for (height, width), start in zip(shapes, starts, strict=True)
        if height * width
    )
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        raise RuntimeError(
            f"ms_deform_attn: level_start_index must not let levels overlap, but is {starts}"
        )


def _check_call(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> None:
    _check_arguments(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )
    _check_levels(value, spatial_shapes, level_start_index)


def _check_grad_output(
    grad_output: Tensor, value: Tensor, sampling_locations: Tensor, output_mask: Sequence[bool]
) -> None:
    op, (n, _, m, d) = "ms_deform_attn_backward", value.shape
    check_output_mask(op, output_mask, 3)
    check_dtype(op, "grad_output", grad_output, (value.dtype,))
    check_shape(
        op, "grad_output", grad_output, "(N, Q, M * D)", (n, sampling_locations.shape[1], m * d)
    )
    check_device(op, "grad_output", grad_output, "value", value.device)


def _check_backward_call(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None,
    output_mask: Sequence[bool],
) -> None:
    _check_call(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )
    _check_grad_output(grad_output, value, sampling_locations, output_mask)


check_before(_OP, _check_call)
check_before(_BACKWARD, _check_backward_call)


@torch.library.impl(_OP, "default")
def _reference(
    value,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    attention_weights,
    num_points=None,
):
    warn_of_fallback("ms_deform_attn", value.device.type)
    return reference.ms_deform_attn(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )


@torch.library.impl(_BACKWARD, "default")
def _reference_backward(
    grad_output,
    value,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    attention_weights,
    num_points,
    output_mask,
    *,
    deterministic=False,
):
    warn_of_fallback("ms_deform_attn", value.device.type)
    return reference.ms_deform_attn_backward(
        grad_output,
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations,
        attention_weights,
        num_points,
        output_mask,
    )


@torch.library.register_fake(_OP)
def _fake(
    value,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    attention_weights,
    num_points=None,
):
    _check_arguments(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )
    n, _, m, d = value.shape
    return value.new_empty(n, sampling_locations.shape[1], m * d)


@torch.library.register_fake(_BACKWARD)
def _fake_backward(
    grad_output,
    value,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    attention_weights,
    num_points,
    output_mask,
    *,
    deterministic=False,
):
    _check_arguments(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points
    )
    _check_grad_output(grad_output, value, sampling_locations, output_mask)
    return tuple(
        tensor.new_empty(tensor.shape if wanted else 0)
        for tensor, wanted in zip(
            (value, sampling_locations, attention_weights), output_mask, strict=True
        )
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_points = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_output):
    wanted = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
    gradients = torch.ops.mask2former_ops.ms_deform_attn_backward(
        grad_output,
        *ctx.saved_tensors,
        ctx.num_points,
        wanted,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    value, locations, weights = (
        gradient if asked else None for gradient, asked in zip(gradients, wanted, strict=True)
    )
    return value, None, None, locations, weights, None


torch.library.register_autograd(_OP, _backward, setup_context=_setup_context)


def _no_double_backward(ctx, *grads):
    raise NotImplementedError("ms_deform_attn can be differentiated once, not twice")


torch.library.register_autograd(_BACKWARD, _no_double_backward)


def _check_levels_are_shared(in_dims) -> None:
    if in_dims[0] is not None or in_dims[1] is not None:
        raise RuntimeError(
            "ms_deform_attn: torch.vmap cannot map over spatial_shapes and level_start_index, "
            "because all images of a batch share their levels; give them in_dims=None"
        )


def _vmap(info, in_dims, value, shapes, starts, locations, weights, num_points=None):
    _check_levels_are_shared(in_dims[1:3])
    size, into = info.batch_size, 0
    if in_dims[0] is None:  # one value serves the mapped queries, as more queries
        into = 1
    else:
        value = fold(value, in_dims[0], size, into)
    locations = fold(locations, in_dims[3], size, into)
    weights = fold(weights, in_dims[4], size, into)
    output = ms_deform_attn(value, shapes, starts, locations, weights, num_points)
    return unfold(output, size, at=into), into


def _vmap_backward(
    info,
    in_dims,
    grad_output,
    value,
    shapes,
    starts,
    locations,
    weights,
    num_points,
    output_mask,
    *,
    deterministic=False,
):
    _check_levels_are_shared(in_dims[2:4])
    size = info.batch_size
    grad_output, value, locations, weights = (
        fold(tensor, in_dims[i], size, into=0)
        for i, tensor in ((0, grad_output), (1, value), (4, locations), (5, weights))
    )
    gradients = torch.ops.mask2former_ops.ms_deform_attn_backward(
        grad_output,
        value,
        shapes,
        starts,
        locations,
        weights,
        num_points,
        output_mask,
        deterministic=deterministic,
    )
    return tuple(
        unfold(gradient, size, at=0) if asked else gradient
        for gradient, asked in zip(gradients, output_mask, strict=True)
    ), tuple(0 if asked else None for asked in output_mask)


torch.library.register_vmap(_OP, _vmap)
torch.library.register_vmap(_BACKWARD, _vmap_backward)


def _autocast(device_type: str):
    def autocast(value, shapes, starts, locations, weights, num_points=None):
        if value.dtype != torch.float64:
            value = value.to(torch.get_autocast_dtype(device_type))
            locations, weights = locations.float(), weights.float()
        with torch.autocast(device_type, enabled=False):
            return ms_deform_attn(value, shapes, starts, locations, weights, num_points)

    return autocast


torch.library.impl(_OP, "AutocastCPU")(_autocast("cpu"))
torch.library.impl(_OP, "AutocastCUDA")(_autocast("cuda"))
