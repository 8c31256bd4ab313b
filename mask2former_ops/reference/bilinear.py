"""The sampling arithmetic that both reference ops share; csrc/bilinear.h is its twin."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Corner(NamedTuple):
    """One of the four pixels around every sample point; all tensors have the points' shape."""

    x: Tensor  # int64 column, 0 where not inside
    y: Tensor  # int64 row, 0 where not inside
    inside: Tensor  # bool: the pixel exists and the point is near the image
    weight: Tensor  # bilinear weight, 0 where not inside
    slope_x: Tensor  # derivative of the weight by the point's column, 0 where not inside
    slope_y: Tensor  # derivative of the weight by the point's row, 0 where not inside


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def coordinate_dtype(device: torch.device) -> torch.dtype:
    """float64 where there is one: a float32 column of 100.3 is only good to 4e-6 of a pixel."""
    return torch.float32 if device.type == "mps" else torch.float64


def corners(
    x: Tensor, y: Tensor, width: Tensor | int, height: Tensor | int, dtype: torch.dtype
) -> Iterator[Corner]:
    """Yields the four pixels around points at column `x` and row `y` (pixel centres at integers).

    A point that is not finite, or a whole pixel or more outside, has no pixel inside. Weights and
    slopes come in `dtype`.
    """
    near = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN
    x, y = torch.where(near, x, 0), torch.where(near, y, 0)
    left, top = x.floor(), y.floor()
    right_part, bottom_part = (x - left).to(dtype), (y - top).to(dtype)
    left, top = left.long(), top.long()
    for down, along_y in ((0, 1 - bottom_part), (1, bottom_part)):
        for across, along_x in ((0, 1 - right_part), (1, right_part)):
            column, row = left + across, top + down
            inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            yield Corner(
                x=torch.where(inside, column, 0),
                y=torch.where(inside, row, 0),
                inside=inside,
                weight=torch.where(inside, along_x * along_y, 0),
                slope_x=torch.where(inside, along_y if across else -along_y, 0),
                slope_y=torch.where(inside, along_x if down else -along_x, 0),
            )
