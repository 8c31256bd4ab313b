"""Multi-scale deformable attention in pure PyTorch (arXiv 2010.04159, equation 3)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_ops.reference.bilinear import (
    Corner,
    accumulation_dtype,
    coordinate_dtype,
    corners,
)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """See `mask2former_ops.ms_deform_attn`; arguments are taken as valid."""
    n, _, m, d = value.shape
    dtype = accumulation_dtype(value.dtype)
    attention = attention_weights.flatten(3).to(dtype)  # (N, Q, M, K)
    queries, samples = attention.shape[1], attention.shape[3]
    if value.numel() == 0 or attention.numel() == 0:
        return value.new_zeros(n, queries, m * d)
    # One pass of weighted row sums: every sample is four rows of D channels and four weights.
    rows, weights = [], []
    for row, corner in _corner_rows(
        value, spatial_shapes, level_start_index, sampling_locations, num_points
    ):
        rows.append(row)
        weights.append(torch.where(corner.inside, corner.weight * attention, 0))
    bags = (n * queries * m, 4 * samples)
    output = F.embedding_bag(
        torch.stack(rows, -1).view(bags),
        _padded_rows(value, dtype),
        mode="sum",
        per_sample_weights=torch.stack(weights, -1).view(bags),
    )
    return output.view(n, queries, m * d).to(value.dtype)


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; one that is not asked for is an empty (0,)."""
    d = value.shape[3]
    dtype = accumulation_dtype(value.dtype)
    attention = attention_weights.flatten(3).to(dtype).contiguous()
    heads, samples = attention.shape[:3].numel(), attention.shape[3]  # N*Q*M, K
    grad = grad_output.to(dtype).reshape(heads, d)
    padded = _padded_rows(value, dtype)
    grad_rows = torch.zeros_like(padded)
    grad_x, grad_y, grad_attention = (torch.zeros_like(attention) for _ in range(3))
    for row, corner in _corner_rows(
        value, spatial_shapes, level_start_index, sampling_locations, num_points
    ):
        if output_mask[0]:
            scale = torch.where(corner.inside, corner.weight * attention, 0)
            share = scale.view(heads, samples, 1) * grad[:, None]
            grad_rows.index_add_(0, row.flatten(), share.view(heads * samples, d))
        if output_mask[1] or output_mask[2]:
            sampled = padded[row.view(heads, samples)]  # (N*Q*M, K, D)
            dot = torch.bmm(sampled, grad[:, :, None]).view_as(attention)
            grad_attention += torch.where(corner.inside, corner.weight * dot, 0)
            grad_x += torch.where(corner.inside, corner.slope_x * dot * attention, 0)
            grad_y += torch.where(corner.inside, corner.slope_y * dot * attention, 0)
    grad_value, grad_locations = value.new_empty(0), sampling_locations.new_empty(0)
    grad_weights = attention_weights.new_empty(0)
    if output_mask[0]:
        grad_value = grad_rows[:-1].view(value.shape).to(value.dtype, copy=True)
    if output_mask[1]:
        _, height, width = _levels(spatial_shapes, level_start_index, num_points, attention_weights)
        # A unit of location is the size of the level in pixels.
        grad_locations = torch.stack((grad_x * width, grad_y * height), -1)
        grad_locations = grad_locations.view(sampling_locations.shape)
        grad_locations = grad_locations.to(sampling_locations.dtype)
    if output_mask[2]:
        grad_weights = grad_attention.view(attention_weights.shape).to(attention_weights.dtype)
    return grad_value, grad_locations, grad_weights


def _padded_rows(value: Tensor, dtype: torch.dtype) -> Tensor:
    """value as (N*S*M + 1, D); the last row is zero and stands for every pixel outside."""
    rows = value.reshape(value.shape[:3].numel(), value.shape[3]).to(dtype)
    return torch.cat((rows, rows.new_zeros(1, value.shape[-1])))


def _levels(
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    num_points: Sequence[int] | None,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start, height and width of the level of each of the K samples of a query, each (K,)."""
    device = attention_weights.device
    count = spatial_shapes.shape[0]
    if num_points is None:
        num_points = [attention_weights.shape[4]] * count
    level = torch.repeat_interleave(
        torch.arange(count, device=device),
        torch.tensor(num_points, dtype=torch.int64, device=device),
        output_size=sum(num_points),
    )
    height, width = spatial_shapes.to(device)[level].unbind(-1)
    return level_start_index.to(device)[level], height, width


def _corner_rows(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    num_points: Sequence[int] | None,
) -> Iterator[tuple[Tensor, Corner]]:
    """Yields the four corners of all samples, (N, Q, M, K), each with its row in `_padded_rows`."""
    n, s, m, _ = value.shape
    start, height, width = _levels(
        spatial_shapes, level_start_index, num_points, sampling_locations[..., 0]
    )
    locations = sampling_locations.to(coordinate_dtype(value.device))
    locations = locations.flatten(3, -2).contiguous()  # (N, Q, M, K, 2)
    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    image = torch.arange(n, device=value.device).view(n, 1, 1, 1)
    head = torch.arange(m, device=value.device).view(1, 1, m, 1)
    for corner in corners(x, y, width, height, accumulation_dtype(value.dtype)):
        row = (image * s + start + corner.y * width + corner.x) * m + head
        yield torch.where(corner.inside, row, n * s * m), corner
