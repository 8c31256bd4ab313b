"""Windows of a map: padding, cyclic shift, and which positions of a window see each other."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.model.padding import valid_sizes

Length = TypeVar("Length", int, Tensor)


def into_windows(x: Tensor, size: int, shift: int) -> Tensor:
    """(N, H, W, C) -> (N * windows, size^2, C): padded with zeros, shifted cyclically, cut."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def out_of_windows(windows: Tensor, height: int, width: int, size: int, shift: int) -> Tensor:
    """(N * windows, size^2, C) -> (N, height, width, C), the inverse of `into_windows`."""
    grid = whole_windows(height, size) // size, whole_windows(width, size) // size
    x = windows.unflatten(1, (size, size)).unflatten(0, (-1, *grid))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width].contiguous()


def whole_windows(length: Length, size: int) -> Length:
    """`length` rounded up to a multiple of `size`."""
    return -(-length // size) * size


def bias_of_pairs(table: Tensor, size: int) -> Tensor:
    """The bias of each pair of positions in a window, by the offset between them.

    Args:
        table: ((2 * size - 1)^2, heads), a row for each offset, from (1 - size, 1 - size) on, row
            by row.

    Returns:
        (heads, size^2, size^2), for each query position (second) and key position (third).
    """
    offsets = table.view(2 * size - 1, 2 * size - 1, -1)
    # pairs[i, j, :, k, l] is the row of the offset (i - k, j - l).
    pairs = offsets.unfold(0, size, 1).unfold(1, size, 1).flip(3, 4)
    return pairs.permute(2, 0, 1, 3, 4).flatten(3, 4).flatten(1, 2)


def window_mask(x: Tensor, valid: Tensor | None, size: int, shift: int) -> Tensor | None:
    """Pairs of positions that must not see each other in a window of the maps `x` (N, H, W, C).

    These are positions that the cyclic shift brought together from opposite sides. If there is
    padding, they are also positions of the image and positions that the image would not have
    alone. Alone it is padded with zeros to whole windows, and these zeros take part.

    Args:
        x: the maps, for their shape and device.
        valid: bool (N, H, W), True where there is image; None: everywhere.
        size, shift: as for `into_windows`.

    Returns:
        bool (N * windows, size^2, size^2), True where masked; None if nothing is masked.
    """
    if not shift and valid is None:
        return None
    row, column = (torch.arange(whole_windows(n, size), device=x.device) for n in x.shape[1:3])
    region = 2 * (row < shift).long()[:, None] + (column < shift)
    region = region.expand(len(x), -1, -1)
    if valid is not None:
        rows, columns = whole_windows(valid_sizes(valid), size)[..., None].unbind(1)
        alone = (row < rows)[:, :, None] & (column < columns)[:, None]
        region = region.masked_fill(~alone, -1)
    region = into_windows(region[..., None], size, shift)[..., 0]
    return region[:, :, None] != region[:, None]
