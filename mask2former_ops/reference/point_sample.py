"""Bilinear sampling of feature maps at points in pure PyTorch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mask2former_ops.reference.bilinear import (
    Corner,
    accumulation_dtype,
    coordinate_dtype,
    corners,
)


def point_sample(input: Tensor, points: Tensor, *, align_corners: bool = False) -> Tensor:
    """See `mask2former_ops.point_sample`; arguments are taken as valid."""
    n, c, height, width = input.shape
    dtype = accumulation_dtype(input.dtype)
    flat_points = points.flatten(1, -2)
    pixels = input.flatten(2)
    output = torch.zeros(n, c, flat_points.shape[1], dtype=dtype, device=input.device)
    if pixels.numel() and output.numel():
        for corner in _corners(flat_points, height, width, align_corners, dtype):
            index = (corner.y * width + corner.x)[:, None].expand_as(output)
            sampled = torch.gather(pixels, 2, index).to(dtype)
            inside = corner.inside[:, None]
            output += torch.where(inside, corner.weight[:, None] * sampled, 0)
    output_dtype = input.dtype if input.is_floating_point() else torch.float32
    return output.view(n, c, *points.shape[1:-1]).to(output_dtype)


def point_sample_backward(
    grad_output: Tensor,
    input: Tensor,
    points: Tensor,
    align_corners: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of input and points; one that is not asked for is an empty (0,)."""
    height, width = input.shape[2:]
    dtype = accumulation_dtype(input.dtype)
    flat_points = points.flatten(1, -2)
    pixels = input.flatten(2)
    grad = grad_output.flatten(2).to(dtype)
    grad_pixels = torch.zeros(
        pixels.shape if output_mask[0] else 0, dtype=dtype, device=input.device
    )
    grad_x, grad_y = (
        torch.zeros(flat_points.shape[:2], dtype=dtype, device=input.device) for _ in "xy"
    )
    if pixels.numel() and grad.numel():
        for corner in _corners(flat_points, height, width, align_corners, dtype):
            index = (corner.y * width + corner.x)[:, None].expand_as(grad)
            inside = corner.inside[:, None]
            if output_mask[0]:
                share = torch.where(inside, corner.weight[:, None] * grad, 0)
                grad_pixels.scatter_add_(2, index, share)
            if output_mask[1]:
                sampled = torch.gather(pixels, 2, index).to(dtype)
                dot = (sampled * grad).sum(1).sum_to_size(corner.weight.shape)
                grad_x += torch.where(corner.inside, corner.slope_x * dot, 0)
                grad_y += torch.where(corner.inside, corner.slope_y * dot, 0)
    grad_input, grad_points = input.new_empty(0), points.new_empty(0)
    if output_mask[0]:
        grad_input = grad_pixels.view(input.shape).to(input.dtype)
    if output_mask[1]:
        border = 1 if align_corners else 0
        scaled = torch.stack((grad_x * (width - border), grad_y * (height - border)), -1)
        grad_points = scaled.view(points.shape).to(points.dtype)
    return grad_input, grad_points


def _corners(
    points: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype
) -> Iterator[Corner]:
    """Yields the four corners of points (N or 1, P, 2); each tensor is (N or 1, P)."""
    x, y = points.to(coordinate_dtype(points.device)).unbind(-1)
    if align_corners:
        x, y = x * (width - 1), y * (height - 1)
    else:
        x, y = x * width - 0.5, y * height - 0.5
    return corners(x, y, width, height, dtype)
