"""Keeping the padding of a batch out of the images.

The images of a batch lie in the top left corners of a common canvas. Without a pixel mask the whole
canvas is image. With one, every layer sees what it would see of the image alone: zeros beyond the
image where a convolution pads with zeros, the last row and column again where a resize repeats
them, and statistics of the image only. So an image gives the same result in any batch.

A position of a feature map belongs to the image if its top left pixel does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mask_at(pixel_mask: Tensor, height: int, width: int) -> Tensor:
    """The pixel mask at the resolution of a feature map: bool (N, H, W) -> (N, height, width).

    H and W must be multiples of the map's stride; see `pad_to_multiple`.
    """
    return pixel_mask[:, :: pixel_mask.shape[1] // height, :: pixel_mask.shape[2] // width]


def valid_sizes(valid: Tensor) -> Tensor:
    """Height and width of each image, int64 (N, 2), of a mask bool (N, H, W)."""
    return torch.stack((valid.any(2).sum(1), valid.any(1).sum(1)), 1)


def checked_mask(pixel_mask: Tensor | None) -> Tensor | None:
    """The pixel mask (N, H, W) as bool; None if it masks nothing, which spares the model the work.

    Raises:
        ValueError: an image is empty, or is no rectangle in the top left corner.
    """
    if pixel_mask is None:
        return None
    mask = pixel_mask.bool()
    if bool(mask.all()):
        return None
    rows, columns = mask.any(2), mask.any(1)
    whole = torch.equal(mask, rows[:, :, None] & columns[:, None, :])
    cornered = all(bool((side[:, :-1] >= side[:, 1:]).all()) for side in (rows, columns))
    if not (whole and cornered and bool(rows.any(1).all())):
        raise ValueError(
            "pixel_mask must be non-zero in one rectangle per image, in its top left corner."
        )
    return mask


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pixels or their mask (..., H, W) with zeros at the bottom and right up to a multiple."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def mask_padding(x: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(N, C, H, W) with zeros in the padding."""
    if pixel_mask is None:
        return x
    return x.masked_fill(~mask_at(pixel_mask, *x.shape[-2:])[:, None], 0.0)


def replicate_edges(x: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(N, C, H, W) with the last row and column of each image repeated into its padding."""
    if pixel_mask is None:
        return x
    sizes = valid_sizes(mask_at(pixel_mask, *x.shape[-2:]))
    for dim, length in zip((2, 3), sizes.unbind(1), strict=True):
        index = torch.arange(x.shape[dim], device=x.device)[None].minimum(length[:, None] - 1)
        shape = [x.shape[0], 1, 1, 1]
        shape[dim] = -1
        x = x.gather(dim, index.view(shape).expand_as(x))
    return x


def group_norm(x: Tensor, norm: nn.GroupNorm, pixel_mask: Tensor | None) -> Tensor:
    """`norm(x)` with the mean and variance of the image alone, and zeros in the padding."""
    if pixel_mask is None:
        return norm(x)
    # In half precision the sums over a map would overflow.
    dtype = torch.promote_types(x.dtype, torch.float32)
    mask = mask_at(pixel_mask, *x.shape[-2:])[:, None, None].to(dtype)
    groups = x.to(dtype).unflatten(1, (norm.num_groups, -1))
    count = mask.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * mask).sum((2, 3, 4), keepdim=True) / count
    centred = (groups - mean) * mask
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count
    normal = (centred * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    affine = normal * norm.weight[:, None, None] + norm.bias[:, None, None]
    return mask_padding(affine.to(x.dtype), pixel_mask)


def resize(x: Tensor, size: Sequence[int], pixel_mask: Tensor | None) -> Tensor:
    """Bilinear resize of (N, C, H, W) in which the padding is never seen."""
    x = replicate_edges(x, pixel_mask)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
