"""How maps are shifted, filled up to whole windows and cut into them, and put together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def partition_windows(x: Tensor, size: int) -> Tensor:
    """(N, H, W) -> (N * windows, size * size); H and W are multiples of `size`."""
    n, height, width = x.shape
    x = x.view(n, height // size, size, width // size, size)
    return x.transpose(2, 3).reshape(-1, size * size)


def relative_position_index(size: int) -> Tensor:
    """(size^2, size^2) row numbers in the bias table for each pair of positions in a window."""
    coordinates = torch.stack(
        torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ).flatten(1)
    offsets = coordinates[:, :, None] - coordinates[:, None, :] + size - 1
    return offsets[0] * (2 * size - 1) + offsets[1]


def whole_windows(extent: int | Tensor, size: int) -> int | Tensor:
    """`extent` rounded up to a multiple of `size`."""
    return -(-extent // size) * size


def _shifted_windows(x: Tensor, size: int, shift: int) -> Tensor:
    """(N, H, W) -> (N * windows, size^2), shifted cyclically before it is cut into windows."""
    return partition_windows(x.roll((-shift, -shift), (1, 2)), size)


def window_cells(
    n: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which cell is where, when maps are shifted cyclically and cut into windows.

    Returns:
        the number of the cell in each place, (N * windows, size^2), cells of all maps counted row
        by row and -1 where the maps are filled up to whole windows; and the place of each cell,
        (N * H * W).
    """
    cells = torch.arange(n * height * width, device=device).view(n, height, width)
    cells = F.pad(cells, (0, -width % size, 0, -height % size), value=-1)
    cells = _shifted_windows(cells, size, shift)
    places = cells.new_empty(n * height * width + 1)
    # What is no cell ends up behind the others.
    places[cells] = torch.arange(cells.numel(), device=device).view_as(cells)
    return cells, places[:-1]


def shift_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """bool (windows, size^2, size^2), True where the cyclic shift brought two places together."""

    def regions(extent: int) -> Tensor:
        extent = whole_windows(extent, size)
        place = torch.arange(extent, device=device)
        return (place >= extent - size).long() + (place >= extent - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    windows = partition_windows(region[None], size)
    return windows[:, None, :] != windows[:, :, None]


def absent_places(valid: Tensor, size: int, shift: int) -> Tensor:
    """bool (N * windows, 1, size^2), True in places that an image alone would not have.

    Alone, an image, where `valid` (N, H, W) is True, is filled up with zeros to whole windows;
    those zeros stay.
    """

    def present(of_images: Tensor) -> Tensor:
        extent, whole = (whole_windows(x, size) for x in (of_images.sum(1), of_images.shape[1]))
        return torch.arange(whole, device=valid.device) < extent[:, None]

    absent = ~(present(valid.any(2))[:, :, None] & present(valid.any(1))[:, None, :])
    return _shifted_windows(absent, size, shift)[:, None]


def into_windows(x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Rows of cells (cells, C) -> rows of places; those without a cell hold anything.

    `cells` (places) and `places` (cells) are `window_cells`'. Both directions of both passes copy
    rows, where autograd would add them up one after the other.
    """
    if not torch.is_grad_enabled():
        return x.index_select(0, cells.clamp(min=0))
    return _IntoWindows.apply(x, cells, places)


def out_of_windows(x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Rows of places -> rows of cells: the inverse of `into_windows`."""
    if not torch.is_grad_enabled():
        return x.index_select(0, places)
    return _OutOfWindows.apply(x, cells, places)


class _IntoWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(cells, places)
        return into_windows(x, cells, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return out_of_windows(grad, *ctx.saved_tensors), None, None


class _OutOfWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(cells, places)
        return out_of_windows(x, cells, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cells, places = ctx.saved_tensors
        if len(cells) == len(places):
            return into_windows(grad, cells, places), None, None
        rows = grad.new_zeros(len(cells), grad.shape[1])
        return rows.index_copy(0, places, grad), None, None
