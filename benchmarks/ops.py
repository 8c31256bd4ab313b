"""ms_deform_attn and point_sample on the CPU against the same in grid_sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import race, table
from benchmarks.shapes import ATTENTION, POINTS, Attention, Points
from mask2former_ops import ms_deform_attn, point_sample, reference

GRID_SAMPLE = "grid_sample"


def run(rounds: int) -> None:
    """Prints one table for each shape and direction."""
    for shape in ATTENTION:
        attention_races(shape, rounds)
    for shape in POINTS:
        point_races(shape, rounds)


def attention_arguments(shape: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random arguments; locations scatter by two pixels around random reference points."""
    g = torch.Generator().manual_seed(0)
    shapes = torch.tensor(shape.levels)
    areas = shapes.prod(1)
    pixels = int(areas.sum())
    queries = pixels if shape.queries is None else shape.queries
    value = torch.randn(shape.images, pixels, shape.heads, shape.channels, generator=g)
    if shape.queries is None:
        centres = torch.cat([pixel_centres(*level) for level in shape.levels])
    else:
        centres = torch.rand(queries, 2, generator=g)
    per_query = shape.images, queries, shape.heads, len(shape.levels), shape.points
    offsets = torch.randn(*per_query, 2, generator=g) * 2 / shapes.flip(1)[:, None]
    weights = torch.rand(*per_query, generator=g).flatten(3).softmax(-1).view(per_query)
    locations = centres[:, None, None, None] + offsets
    return value, shapes, areas.cumsum(0) - areas, locations, weights


def pixel_centres(height: int, width: int) -> Tensor:
    """(H * W, 2) as (x, y) in [0, 1], row by row."""
    y, x = (torch.arange(size).add(0.5) / size for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)


def attention_by_grid_sample(value, shapes, starts, locations, weights) -> Tensor:
    """The pure PyTorch path that detectors use: grid_sample level by level."""
    n, _, m, d = value.shape
    q, levels, p = locations.shape[1], locations.shape[3], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    sizes = shapes.prod(1).tolist()
    samples = [
        F.grid_sample(part.permute(0, 2, 3, 1).reshape(n * m, d, *size), grid, align_corners=False)
        for part, grid, size in zip(value.split(sizes, 1), grids, shapes.tolist(), strict=True)
    ]
    weights = weights.transpose(1, 2).reshape(n * m, 1, q, levels * p)
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(n, m * d, q).transpose(1, 2)


def attention_races(shape: Attention, rounds: int) -> None:
    """Forward, and forward with all three gradients."""
    arguments = attention_arguments(shape)
    queries = arguments[3].shape[1]
    title = f"ms_deform_attn, {shape.name}: Q={queries} M={shape.heads} D={shape.channels}"
    contestants = {
        GRID_SAMPLE: attention_by_grid_sample,
        "mask2former_ops": ms_deform_attn,
        "mask2former_ops.reference": reference.ms_deform_attn,
    }
    forward = {name: lambda f=f: f(*arguments) for name, f in contestants.items()}
    print(table(f"{title}, forward", race(forward, rounds), GRID_SAMPLE), flush=True)

    leaves = [arguments[i].requires_grad_() for i in (0, 3, 4)]
    grad = torch.ones_like(ms_deform_attn(*arguments))
    del contestants["mask2former_ops.reference"]  # the function alone has no autograd
    both = {
        name: lambda f=f: torch.autograd.grad(f(*arguments), leaves, grad)
        for name, f in contestants.items()
    }
    print(table(f"{title}, forward + backward", race(both, rounds), GRID_SAMPLE), flush=True)


def points_by_grid_sample(input: Tensor, points: Tensor) -> Tensor:
    """What detectron2's point_sample does; shared points are repeated for every image."""
    grid = 2 * points[:, :, None].expand(len(input), -1, -1, -1) - 1
    return F.grid_sample(input.float(), grid, align_corners=False)[..., 0]


def point_races(shape: Points, rounds: int) -> None:
    """Forward, and forward with the gradient of the input where it has one."""
    g = torch.Generator().manual_seed(0)
    input = torch.randn(shape.images, shape.planes, *shape.size, generator=g)
    points = torch.rand(1 if shape.shared else shape.images, shape.points, 2, generator=g)
    if shape.masks:
        input = input > 0
    title = f"point_sample, {shape.name}: {tuple(input.shape)}, {shape.points} points"
    contestants = {GRID_SAMPLE: points_by_grid_sample, "mask2former_ops": point_sample}
    forward = {name: lambda f=f: f(input, points) for name, f in contestants.items()}
    print(table(f"{title}, forward", race(forward, rounds), GRID_SAMPLE), flush=True)
    if shape.masks:
        return
    input.requires_grad_()
    grad = torch.ones_like(point_sample(input, points))
    both = {
        name: lambda f=f: torch.autograd.grad(f(input, points), input, grad)
        for name, f in contestants.items()
    }
    print(table(f"{title}, forward + backward", race(both, rounds), GRID_SAMPLE), flush=True)
