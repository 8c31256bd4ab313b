"""Random arguments of the ops, the same for the same seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS = ((6, 5), (1, 1), (3, 8))


def generator(seed: int) -> torch.Generator:
    """A generator of its own, so that no test depends on the order of the tests."""
    return torch.Generator().manual_seed(seed)


def msda_arguments(
    dtype: torch.dtype = torch.float64,
    *,
    location_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    levels: Sequence[tuple[int, int]] = LEVELS,
    n: int = 2,
    q: int = 7,
    m: int = 3,
    d: int = 5,
    p: int = 4,
    num_points: list[int] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[int] | None]:
    """Arguments of ms_deform_attn; about a third of the locations lie outside their maps."""
    g = generator(seed)
    shapes = torch.tensor(levels, dtype=torch.int64).view(-1, 2)
    areas = shapes.prod(1)
    starts = areas.cumsum(0) - areas
    per_query = (len(levels), p) if num_points is None else (sum(num_points),)
    value = torch.randn(n, int(areas.sum()), m, d, generator=g, dtype=torch.float64).to(dtype)
    locations = torch.rand(n, q, m, *per_query, 2, generator=g, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(n, q, m, *per_query, generator=g, dtype=torch.float64)
    locations = locations.to(location_dtype or dtype)
    return value, shapes, starts, locations, weights.to(weight_dtype or dtype), num_points


def msda_grad(arguments: Sequence, seed: int = 1) -> Tensor:
    """A gradient for the output of ms_deform_attn."""
    value, locations = arguments[0], arguments[3]
    shape = value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]
    grad = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return grad.to(value.dtype)


def point_arguments(
    dtype: torch.dtype = torch.float64,
    *,
    point_dtype: torch.dtype | None = None,
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (6, 7),
    points: tuple[int, ...] = (2, 11),
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Arguments of point_sample; about a third of the points lie outside. bool and uint8 too."""
    g = generator(seed)
    values = torch.randn(n, c, *size, generator=g, dtype=torch.float64)
    where = torch.rand(*points, 2, generator=g, dtype=torch.float64) * 1.4 - 0.2
    if dtype == torch.bool:
        values = values > 0
    elif dtype == torch.uint8:
        values = (values * 50 + 128).clamp(0, 255)
    if point_dtype is None:
        point_dtype = dtype if dtype.is_floating_point else torch.float32
    return values.to(dtype), where.to(point_dtype)


def point_grad(input: Tensor, points: Tensor, seed: int = 1) -> Tensor:
    """A gradient for the output of point_sample."""
    shape = *input.shape[:2], *points.shape[1:-1]
    grad = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return grad.to(input.dtype if input.is_floating_point() else torch.float32)


def mask_logits(
    dtype: torch.dtype = torch.float32,
    masks: int = 3,
    size: tuple[int, int] = (20, 30),
    seed: int = 0,
) -> Tensor:
    """Logits (masks, H, W) of uncertain_points."""
    numbers = torch.randn(masks, *size, generator=generator(seed), dtype=torch.float64)
    return numbers.to(dtype)


def on_the_grid(
    size: tuple[int, int], count: int, *, align_corners: bool = False, seed: int = 0
) -> Tensor:
    """(count, 2) float64 locations at centres and edges of the pixels of a map (H, W), and up to a
    pixel outside it."""
    columns = []
    for pixels in reversed(size):
        at = torch.arange(-2, 2 * pixels + 1, dtype=torch.float64) / 2  # from -1 to H or W
        at = at / max(pixels - 1, 1) if align_corners else (at + 0.5) / pixels
        columns.append(at[torch.randint(len(at), (count,), generator=generator(seed))])
        seed += 1
    return torch.stack(columns, -1)


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, every second one in memory, with 77 in between."""
    return torch.stack((tensor, torch.full_like(tensor, 77)), -1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    """The same numbers; maps (N, C, H, W) lie pixel by pixel."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def lazy_zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Zeros in memory that the system hands out only where it is written."""
    name = str(dtype).removeprefix("torch.")
    return torch.from_numpy(np.zeros(shape, name))
