"""Sizes of images, and tensors resized and padded to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def size_of(values: Tensor) -> Size:
    """(height, width) of (..., H, W)."""
    return values.shape[-2], values.shape[-1]


def resized_image(image: Tensor, size: Size, resample: int) -> Tensor:
    """(3, H, W) resized with antialiasing as Pillow does, within 1/255; dtype kept on the CPU."""
    if size_of(image) == size:
        return image
    if resample == Image.Resampling.NEAREST:
        return resized_nearest(image, size)
    if resample != Image.Resampling.BILINEAR:  # torch's bicubic overshoots otherwise, or is missing
        return resized_by_pillow(image, size, resample)
    if image.dtype == torch.uint8 and size[1] == 1:  # torch returns wrong pixels, or fails
        return resized_by_pillow(image, size, resample)
    if image.dtype == torch.uint8 and image.device.type != "cpu":
        # only the CPU has a kernel for bytes; rounding keeps the values what they would be there
        return resized_image(image.float(), size, resample).round()
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def resized_by_pillow(image: Tensor, size: Size, resample: int) -> Tensor:
    """(3, H, W) of uint8 or float32 resized by Pillow, plane by plane; dtype and device kept."""
    planes = [
        np.array(Image.fromarray(plane.numpy()).resize((size[1], size[0]), resample))
        for plane in image.cpu()
    ]
    return torch.from_numpy(np.stack(planes)).to(image.device)


def center_cropped(values: Tensor, size: Size) -> Tensor:
    """(..., H, W) cut to at most `size` around its centre."""
    for dim, target in zip((-2, -1), size, strict=True):
        length = values.shape[dim]
        target = min(target, length)
        values = values.narrow(dim, (length - target) // 2, target)
    return values


def resized_nearest(values: Tensor, size: Size) -> Tensor:
    """(..., H, W) resized by picking the pixels that Pillow picks: never mixes ids, any dtype."""
    for dim, target in zip((-2, -1), size, strict=True):
        index = torch.from_numpy(nearest_index(values.shape[dim], target))
        values = values.index_select(dim, index.to(values.device))
    return values


def nearest_index(source: int, target: int) -> np.ndarray:
    """The pixels, int64 (target,), that Pillow's nearest resize picks of `source` pixels."""
    # Pillow adds up positions. Where two pixels are equally near, the rounding of the sum decides.
    steps = np.full(target, source / target)
    steps[0] /= 2
    return np.add.accumulate(steps).astype(np.int64).clip(max=source - 1)


def padded(values: Tensor, size: Size, fill: int = 0) -> Tensor:
    """(..., H, W) grown at the bottom and right to `size`."""
    height, width = size_of(values)
    return F.pad(values, (0, size[1] - width, 0, size[0] - height), value=fill)


def shortest_edge_size(size: Size, shortest_edge: int, longest_edge: int | None = None) -> Size:
    """(height, width) with the shortest edge of the given length, or, if that would make the other
    longer than `longest_edge`, with the longest of that length. Rounds half up; no edge gets
    shorter than 1.

    Source: ResizeShortestEdge of detectron2.
    """
    short, long = float(shortest_edge), max(size) * (shortest_edge / min(size))
    if longest_edge is not None and long > longest_edge:
        scale = longest_edge / long
        short, long = short * scale, long * scale
    new_short, new_long = (max(int(edge + 0.5), 1) for edge in (short, long))
    return (new_short, new_long) if size[0] < size[1] else (new_long, new_short)


def next_multiple(size: Size, divisor: int) -> Size:
    """(height, width) rounded up to multiples of `divisor`; 0 changes nothing."""
    if divisor == 0:
        return size
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def size_text(size: Sequence[int]) -> str:
    """(height, width) for a message."""
    return f"{size[0]} x {size[1]}"
