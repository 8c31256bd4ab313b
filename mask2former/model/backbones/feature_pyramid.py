"""The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527, section 3)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """Maps of several strides from the one stride of a plain vision transformer.

    Each doubling of the resolution is a 2x2 deconvolution that halves the channels, with a layer
    norm and a GELU between two; coarser maps are maxima. The paper's 1x1 and 3x3 convolutions
    behind each level are left to the pixel decoder, which projects every map.

    A patch size that is no power of two, such as 14, is not one of `strides` times a power of two:
    the map is first resampled bilinearly to the nearest one (16), each new position where
    it lies in the image.

    Args:
        channels: width of the transformer's map for each stride.
        patch: stride of the transformer's maps, in pixels.
        strides: wanted strides in pixels, powers of two, finest first.

    Raises:
        ValueError: a stride is no power of two.
    """

    def __init__(self, channels: list[int], patch: int, strides: list[int]) -> None:
        super().__init__()
        odd = [stride for stride in strides if not math.log2(stride).is_integer()]
        if odd:
            raise ValueError(
                f"feature_strides has {odd}, but a plain vision transformer takes powers of two."
            )
        base = 2 ** round(math.log2(patch))
        self.scale = patch / base
        self.levels = nn.ModuleList(
            [_level(c, base, s) for c, s in zip(channels, strides, strict=True)]
        )
        self.channels = [c * min(s, base) // base for c, s in zip(channels, strides, strict=True)]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map (N, C, H, W) for each level; (N, C_i, H_i, W_i), finest first."""
        if self.scale != 1.0:
            maps = [F.interpolate(x, scale_factor=self.scale, mode="bilinear") for x in maps]
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _level(channels: int, base: int, stride: int) -> nn.Module:
    if stride >= base:
        return nn.MaxPool2d(stride // base) if stride > base else nn.Identity()
    layers = []
    for doubling in range(int(math.log2(base // stride))):
        if doubling > 0:
            layers += [ChannelNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return nn.Sequential(*layers)
