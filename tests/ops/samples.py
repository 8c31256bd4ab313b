"""Random arguments of the ops, the same for the same seed."""

from collections.abc import Sequence

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
    value = torch.randn(n, int(areas.sum()), m, d, generator=g, dtype=torch.float64)
    locations = torch.rand(n, q, m, *per_query, 2, generator=g, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(n, q, m, *per_query, generator=g, dtype=torch.float64)
    other = location_dtype or dtype
    return value.to(dtype), shapes, starts, locations.to(other), weights.to(other), num_points


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
