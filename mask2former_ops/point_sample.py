"""Bilinear point sampling, the whole contract of the operator.

Schema, public function, checks, reference, fake, autograd, vmap, autocast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mask2former_ops import reference
from mask2former_ops._checks import (
    FLOATING,
    check_before,
    check_device,
    check_dtype,
    check_map_size,
    check_output_mask,
    check_shape,
)
from mask2former_ops._extension import warn_of_fallback
from mask2former_ops._vmap import fold, place, unfold

_OP = "mask2former_ops::point_sample"
_BACKWARD = "mask2former_ops::point_sample_backward"

torch.library.define(
    _OP,
    "(Tensor input, Tensor points, *, bool align_corners=False) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
# A gradient that output_mask does not ask for comes back as an empty tensor of shape (0,). On the
# CPU gradients are always deterministic; on CUDA, where asked for.
torch.library.define(
    _BACKWARD,
    "(Tensor grad_output, Tensor input, Tensor points, bool align_corners, bool[2] output_mask, *, "
    "bool deterministic=False) -> (Tensor grad_input, Tensor grad_points)",
    tags=torch.Tag.pt2_compliant_tag,
)


def point_sample(input: Tensor, points: Tensor, align_corners: bool = False) -> Tensor:
    """Samples feature maps at points (PointRend, arXiv 1912.08193, section 3.1).

    As `torch.nn.functional.grid_sample`, bilinear with zero padding, but points run over [0, 1],
    points that the whole batch shares are passed once, and masks are not converted. A point
    that is not finite, or a pixel or more away from the map, samples zero and gets a zero gradient.

    Args:
        input: (N, C, H, W) float64, float32, float16, bfloat16, uint8 or bool.
        points: (N or 1, P, 2) or (N or 1, Hg, Wg, 2) as (x, y); float64 for a float64 input, else
            float32 or a half input's own dtype. With a first size of 1 the points serve the whole
            batch.
        align_corners: whether 0 and 1 are the centres of the border pixels, not their outer edges.

    Returns:
        (N, C, P) or (N, C, Hg, Wg) in input's dtype, float32 for uint8 and bool. Differentiable
        once, in input and points; `torch.vmap` maps over both. With
        `torch.use_deterministic_algorithms(True)` gradients are bit-identical in every run, on
        CUDA too.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device.
    """
    return torch.ops.mask2former_ops.point_sample(input, points, align_corners=align_corners)


def _check_arguments(input: Tensor, points: Tensor) -> None:
    op = "point_sample"
    check_dtype(op, "input", input, (*FLOATING, torch.uint8, torch.bool))
    check_shape(op, "input", input, "(N, C, H, W)", (None,) * 4)
    if input.dtype in (torch.float16, torch.bfloat16):
        either = (input.dtype, torch.float32)
    else:
        either = (_output_dtype(input),)
    check_dtype(op, "points", points, either)
    if points.dim() == 4:
        check_shape(op, "points", points, "(N or 1, Hg, Wg, 2)", (None, None, None, 2))
    else:
        check_shape(op, "points", points, "(N or 1, P, 2)", (None, None, 2))
    torch._check(
        points.shape[0] == 1 or points.shape[0] == input.shape[0],
        lambda: (
            f"{op}: points must have a first size of 1 or input's N = {input.shape[0]}, "
            f"but has {points.shape[0]}"
        ),
    )
    check_device(op, "points", points, "input", input.device)


def _check_backward_arguments(
    grad_output: Tensor,
    input: Tensor,
    points: Tensor,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> None:
    _check_arguments(input, points)
    op = "point_sample_backward"
    check_output_mask(op, output_mask, 2)
    if output_mask[0] and not input.is_floating_point():
        dtype = str(input.dtype).removeprefix("torch.")
        raise RuntimeError(f"{op}: input has no gradient, because it is {dtype}")
    check_dtype(op, "grad_output", grad_output, (_output_dtype(input),))
    layout = "(N, C, P)" if points.dim() == 3 else "(N, C, Hg, Wg)"
    check_shape(op, "grad_output", grad_output, layout, (*input.shape[:2], *points.shape[1:-1]))
    check_device(op, "grad_output", grad_output, "input", input.device)


def _check_call(input: Tensor, points: Tensor) -> None:
    _check_arguments(input, points)
    check_map_size("point_sample", "input", input)


def _check_backward_call(grad_output: Tensor, input: Tensor, *arguments) -> None:
    _check_backward_arguments(grad_output, input, *arguments)
    check_map_size("point_sample_backward", "input", input)


check_before(_OP, _check_call)
check_before(_BACKWARD, _check_backward_call)


def _output_dtype(input: Tensor) -> torch.dtype:
    return input.dtype if input.is_floating_point() else torch.float32


@torch.library.impl(_OP, "default")
def _reference(input, points, *, align_corners=False):
    warn_of_fallback("point_sample", input.device.type)
    return reference.point_sample(input, points, align_corners=align_corners)


@torch.library.impl(_BACKWARD, "default")
def _reference_backward(
    grad_output, input, points, align_corners, output_mask, *, deterministic=False
):
    warn_of_fallback("point_sample", input.device.type)
    return reference.point_sample_backward(grad_output, input, points, align_corners, output_mask)


@torch.library.register_fake(_OP)
def _fake(input, points, *, align_corners=False):
    _check_arguments(input, points)
    return input.new_empty((*input.shape[:2], *points.shape[1:-1]), dtype=_output_dtype(input))


@torch.library.register_fake(_BACKWARD)
def _fake_backward(grad_output, input, points, align_corners, output_mask, *, deterministic=False):
    _check_backward_arguments(grad_output, input, points, align_corners, output_mask)
    return (
        input.new_empty(input.shape if output_mask[0] else 0),
        points.new_empty(points.shape if output_mask[1] else 0),
    )


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    input, points = inputs
    if not ctx.needs_input_grad[1]:  # then the backward asks for the shape and dtype alone
        input = input.new_empty(()).expand(input.shape)
    ctx.save_for_backward(input, points)
    ctx.align_corners = keyword_only_inputs["align_corners"]


def _backward(ctx, grad_output):
    wanted = list(ctx.needs_input_grad[:2])
    gradients = torch.ops.mask2former_ops.point_sample_backward(
        grad_output,
        *ctx.saved_tensors,
        ctx.align_corners,
        wanted,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return tuple(
        gradient if asked else None for gradient, asked in zip(gradients, wanted, strict=True)
    )


torch.library.register_autograd(_OP, _backward, setup_context=_setup_context)


def _no_double_backward(ctx, *grads):
    raise NotImplementedError("point_sample can be differentiated once, not twice")


torch.library.register_autograd(_BACKWARD, _no_double_backward)


def _for_every_image(points: Tensor, images: int) -> Tensor:
    """(size * images, ...) of points (size, images or 1, ...), where size is the mapped one."""
    if points.shape[1] == 1:
        points = points.expand(-1, images, *points.shape[2:])
    return points.flatten(0, 1)


def _vmap(info, in_dims, input, points, *, align_corners=False):
    size = info.batch_size
    if in_dims[0] is None:  # one input serves the mapped points, as more points
        output = point_sample(input, fold(points, in_dims[1], size, into=1), align_corners)
        return unfold(output, size, at=2), 2
    input = fold(input, in_dims[0], size, into=0)
    if in_dims[1] is not None or points.shape[0] != 1:
        points = place(points, in_dims[1], size, at=0)
        points = _for_every_image(points, input.shape[0] // size)
    return unfold(point_sample(input, points, align_corners), size, at=0), 0


def _vmap_backward(
    info,
    in_dims,
    grad_output,
    input,
    points,
    align_corners,
    output_mask,
    *,
    deterministic=False,
):
    size = info.batch_size
    grad_output = fold(grad_output, in_dims[0], size, into=0)
    input = fold(input, in_dims[1], size, into=0)
    points = place(points, in_dims[2], size, at=0)
    grad_input, grad_points = torch.ops.mask2former_ops.point_sample_backward(
        grad_output,
        input,
        _for_every_image(points, input.shape[0] // size),
        align_corners,
        output_mask,
        deterministic=deterministic,
    )
    if output_mask[0]:
        grad_input = unfold(grad_input, size, at=0)
    if output_mask[1]:
        grad_points = unfold(grad_points, size, at=0)
        if points.shape[1] == 1:  # one image's share each
            grad_points = grad_points.sum(1, keepdim=True)
    return (grad_input, grad_points), tuple(0 if asked else None for asked in output_mask)


torch.library.register_vmap(_OP, _vmap)
torch.library.register_vmap(_BACKWARD, _vmap_backward)


def _autocast(device_type: str):
    def autocast(input, points, *, align_corners=False):
        # The input stays as it is, so that a caller who keeps masks in float32 keeps them there.
        if points.dtype != torch.float64:
            points = points.float()
        with torch.autocast(device_type, enabled=False):
            return point_sample(input, points, align_corners)

    return autocast


torch.library.impl(_OP, "AutocastCPU")(_autocast("cpu"))
torch.library.impl(_OP, "AutocastCUDA")(_autocast("cuda"))
