"""Arguments of the operators as models pass them, random and the same on every run."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import Attention, Points
from mask2former_ops.compat.detectron2 import get_uncertain_point_coords_with_randomness


def arguments(shape: Attention | Points, dtype: torch.dtype) -> tuple:
    """Arguments of the operator `shape.op`; maps are stored in `dtype`, the rest in float32.

    That is what autocast hands to the operators. bool masks stay bool whatever the dtype.
    """
    make = attention_arguments if isinstance(shape, Attention) else point_arguments
    first, *rest = make(shape, torch.Generator().manual_seed(0))
    if isinstance(shape, Attention) and shape.half_locations:
        rest[2:4] = (x.to(dtype) for x in rest[2:4])
    return first.to(dtype) if first.is_floating_point() else first, *rest


def grad_output(shape: Attention | Points, dtype: torch.dtype) -> Tensor:
    """Normal numbers, for the gradients."""
    return torch.randn(shape.output, generator=torch.Generator().manual_seed(1)).to(dtype)


def attention_arguments(shape: Attention, g: torch.Generator) -> tuple:
    """Normal values, and weights that sum to 1 over all samples of a query and head."""
    shapes = torch.tensor(shape.levels)
    areas = shapes.prod(1)
    value = torch.randn(shape.images, shape.pixels, shape.heads, shape.channels, generator=g)
    locations = own_pixels(shape, g) if shape.queries is None else boxes(shape, g)
    weights = torch.rand(locations.shape[:-1], generator=g).softmax(-1)
    maps = value, shapes, areas.cumsum(0) - areas
    if isinstance(shape.points, int):
        per_level = len(shape.levels), shape.points
        return *maps, locations.unflatten(3, per_level), weights.unflatten(3, per_level)
    return *maps, locations, weights, list(shape.points)


def own_pixels(shape: Attention, g: torch.Generator) -> Tensor:
    """Locations of an encoder: queries in raster order, each around the centre of its own pixel.

    Offsets are normal with a deviation of two pixels of the level that is sampled.
    """
    centres = torch.cat([pixel_centres(*level) for level in shape.levels])
    sizes = torch.tensor(shape.levels).flip(1)  # (L, 2) as (width, height)
    sizes = sizes.repeat_interleave(torch.tensor(shape.samples_per_level), 0)
    offsets = torch.randn(shape.images, len(centres), shape.heads, len(sizes), 2, generator=g)
    return centres[:, None, None] + offsets * 2 / sizes


def pixel_centres(height: int, width: int) -> Tensor:
    """(H * W, 2) as (x, y) in [0, 1], row by row."""
    y, x = (torch.arange(size).add(0.5) / size for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)


def boxes(shape: Attention, g: torch.Generator) -> Tensor:
    """Locations of a decoder: a query is a box of any size up to half the image, sampled all over.

    Boxes lie anywhere, so that some stand out of the image.
    """
    queries, samples = (shape.images, shape.queries), sum(shape.samples_per_level)
    centre = torch.rand(*queries, 1, 1, 2, generator=g)
    size = torch.rand(*queries, 1, 1, 2, generator=g) / 2
    return centre + size * (torch.rand(*queries, shape.heads, samples, 2, generator=g) - 0.5)


def point_arguments(shape: Points, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits, or masks of them, in blobs a sixteenth of the image in size, and where to sample."""
    coarse = torch.randn(shape.images, shape.planes, 16, 16, generator=g)
    logits = F.interpolate(coarse, size=shape.size, mode="bilinear")
    if shape.channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    if shape.where == "uncertain":
        points = uncertain_points(logits, shape.points)
    else:
        images = 1 if shape.where == "shared" else shape.images
        points = torch.rand(images, shape.points, 2, generator=g)
    return logits > 0 if shape.masks else logits, points


def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Three quarters of the points where masks end, as the loss chooses them by default."""
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(0)
        return get_uncertain_point_coords_with_randomness(
            logits, lambda sampled: -sampled.abs(), count, 3, 0.75
        )
