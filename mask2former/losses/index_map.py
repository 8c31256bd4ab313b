"""Index maps: all annotated masks of an image that do not overlap, in one integer (H, W).

The value of a pixel is the index of its annotation in the image's class labels, not a class. The
masks (T, H, W) that it stands for are sampled without ever being built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mask2former_ops.reference.bilinear import coordinate_dtype, corners


def sample_index_map(index_map: Tensor, ids: Tensor, points: Tensor) -> Tensor:
    """What `point_sample` makes of the masks `index_map == id`: bilinear, zero beyond the map.

    Args:
        index_map: integer (H, W).
        ids: integer (T,), the values of the map whose masks are sampled.
        points: (T or 1, P, 2) as (x, y) in [0, 1], float32 or float64; with a first size of 1 they
            serve all masks.

    Returns:
        (T, P) from 0 to 1, in the dtype of the points.
    """
    height, width = index_map.shape
    ids = ids[:, None].to(index_map.dtype)
    sampled = points.new_zeros(len(ids), points.shape[1])
    x, y = points.to(coordinate_dtype(points.device)).unbind(-1)
    for corner in corners(x * width - 0.5, y * height - 0.5, width, height, points.dtype):
        sampled += torch.where(index_map[corner.y, corner.x] == ids, corner.weight, 0)
    return sampled
