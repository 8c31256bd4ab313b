"""Mask logits resized to an image, in bands of rows.

The paper's code resizes mask logits to the padded input, crops them to the image and resizes them
again. Bilinear resizes are linear and separable. So both together are a few weighted positions per
output row and per output column, and no row needs another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former.images.resize import Size

# Floats per working buffer, 16 MB in float32: small enough for caches, large enough for kernels.
BAND_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class _LinearMap:
    """A linear map along one axis: output i is the sum over k of weight[i, k] * input[index[i, k]].

    index: int64 (outputs, K). weight: float64 (outputs, K). Both on the CPU.
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def identity(cls, length: int) -> _LinearMap:
        return cls(torch.arange(length)[:, None], torch.ones(length, 1, dtype=torch.float64))

    @classmethod
    def bilinear(cls, source: int, target: int) -> _LinearMap:
        """F.interpolate(mode="bilinear", align_corners=False) along one axis."""
        position = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
        position = position.clamp(0, source - 1)
        low = position.floor().long()
        fraction = position - low
        index = torch.stack([low, (low + 1).clamp(max=source - 1)], dim=1)
        return cls(index, torch.stack([1 - fraction, fraction], dim=1))

    def after(self, first: _LinearMap) -> _LinearMap:
        """The one map that equals applying `first` and then this one."""
        weight = first.weight[self.index] * self.weight[:, :, None]
        return _LinearMap(first.index[self.index].flatten(1), weight.flatten(1))

    def trimmed(self) -> _LinearMap:
        """The same map without the k that have no weight in any output."""
        used = (self.weight != 0).any(0)
        return _LinearMap(self.index[:, used], self.weight[:, used])

    def apply(self, values: Tensor, dim: int) -> Tensor:
        """(queries, rows, columns) -> the same with `dim` resized, in the dtype of `values`."""
        # Multiplications and additions are separate, because they round alike in every band.
        view = (-1, 1) if dim == 1 else (-1,)
        terms = (
            _pick(values, dim, index.to(values.device)).mul_(weight.to(values).view(view))
            for index, weight in zip(self.index.unbind(1), self.weight.unbind(1), strict=True)
        )
        result = next(terms)
        for term in terms:
            result.add_(term)
        return result


def _pick(values: Tensor, dim: int, index: Tensor) -> Tensor:
    """index_select in its faster form. On the CPU gather is ten times faster for columns, and
    index_select for rows."""
    if dim == 1:
        return values.index_select(1, index)
    return values.gather(2, index.expand(*values.shape[:2], -1))


def _axis_map(logits: int, valid: int | None, padded: int | None, target: int | None) -> _LinearMap:
    """The map along one axis from `logits` mask logits to `target` pixels of the image.

    Along this axis the model's input had `padded` pixels, of which the first `valid` are the image
    (both None when unknown). Logits that lie wholly in the padding are never read, so an image
    gives the same masks whatever it was padded to. In the paper's code they blend into the last two
    pixels.
    """
    if valid is None or padded is None:
        if target is None:
            return _LinearMap.identity(logits)
        return _LinearMap.bilinear(logits, target).trimmed()
    valid_logits = math.ceil(valid * logits / padded)
    if target is None:
        return _LinearMap.identity(valid_logits)
    enlarged = _LinearMap.bilinear(logits, padded)
    index = enlarged.index[:valid].clamp(max=valid_logits - 1)
    cropped = _LinearMap(index, enlarged.weight[:valid])
    if valid != target:
        cropped = _LinearMap.bilinear(valid, target).after(cropped)
    return cropped.trimmed()


class MaskResizer:
    """Resizes mask logits (queries, height, width) to the target size, in any band of rows.

    Args:
        logits_size: (height, width) of the mask logits.
        image_size: (valid height, valid width, padded height, padded width) of the model's input in
            pixels, or None when unknown: then nothing is cropped.
        target_size: (height, width) in pixels, or None for the logits' own resolution, cropped to
            the logits that show the image.
    """

    def __init__(
        self,
        logits_size: Size,
        image_size: Sequence[int] | None,
        target_size: Sequence[int] | None,
    ) -> None:
        valid_height, valid_width, height, width = image_size or (None,) * 4
        rows, columns = target_size or (None, None)
        self.rows = _axis_map(logits_size[0], valid_height, height, rows)
        self.columns = _axis_map(logits_size[1], valid_width, width, columns)
        self.size: Size = (len(self.rows.index), len(self.columns.index))

    def __call__(self, logits: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of the result, (queries, rows, width): float64 for float64 logits,
        else float32. The values do not depend on the bands."""
        index, weight = self.rows.index[start:stop], self.rows.weight[start:stop]
        first, last = int(index.min()), int(index.max())
        source = logits[:, first : last + 1]
        source = source if source.dtype == torch.float64 else source.float()
        return _LinearMap(index - first, weight).apply(self.columns.apply(source, 2), 1)

    def bands(self, channels: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of bands that hold at most BAND_ELEMENTS values in `channels` planes, or
        one row if that is more."""
        height, width = self.size
        step = max(1, BAND_ELEMENTS // max(1, channels * width))
        for start in range(0, height, step):
            yield start, min(start + step, height)
