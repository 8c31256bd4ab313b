"""What backbones of other libraries have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from mask2former.model.backbones.feature_pyramid import FeaturePyramid
from mask2former.model.gradient_checkpointing import count_batches_once
from mask2former.model.padding import pad_to_multiple, valid_sizes


class LibraryBackbone(nn.Module):
    """A network of another library, behind the interface of this package's backbones.

    A network of several strides (ConvNeXt, ResNet, ...) gives its maps as they are; the equal maps
    of a plain vision transformer (DINOv2, DINOv3, ...) become those of `feature_strides` through a
    `FeaturePyramid`.

    Sizes. An image is padded with zeros, never stretched, to a multiple of the coarsest stride and
    of the patch size; maps are cropped to the positions that hold image. Position embeddings follow
    the size by the library's own means.

    Padding. Such a network cannot be told what is padding, so each image runs at its own
    size, together with those of the same size: it gives the same answer in any batch, at the price
    of smaller batches. Without a pixel mask all run together. While training, batch statistics
    cover the images that run together.

    Args:
        body: the network.
        channels: widths of its maps.
        strides: their strides in pixels.
        pyramid_strides: what a plain vision transformer's maps become; None for a network of
            several strides.

    Raises:
        ValueError: a plain vision transformer has neither one map nor one for each stride.
    """

    body: Any  # an nn.Module with the library's own methods

    def __init__(
        self,
        body: nn.Module,
        channels: list[int],
        strides: list[int],
        pyramid_strides: list[int] | None,
    ) -> None:
        super().__init__()
        self.body = body
        self._checkpointing = False
        self._counting_once: list[RemovableHandle] = []
        # In pixels: of a plain vision transformer the patch size, else the coarsest stride.
        self.body_stride = max(strides)
        self.pyramid = None
        if pyramid_strides is not None:
            if len(channels) not in (1, len(pyramid_strides)):
                raise ValueError(
                    f"The backbone returns {len(channels)} maps of stride {strides[0]}; name one, "
                    f"or one for each of feature_strides {pyramid_strides}."
                )
            channels = channels * (len(pyramid_strides) // len(channels))
            self.pyramid = FeaturePyramid(channels, strides[0], pyramid_strides)
            channels, strides = self.pyramid.channels, pyramid_strides
        self.channels, self.strides = list(channels), list(strides)
        self.stride = max(self.strides)

    def read(self, pixel_values: Tensor) -> list[Tensor]:
        """The network's maps (N, C_i, H_i, W_i) of images padded to its strides."""
        raise NotImplementedError

    def checkpoint_layers(self, value: bool) -> bool:
        """Turn the library's gradient checkpointing on or off; whether it is on now."""
        raise NotImplementedError

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers run again in the backward pass. It stays False if the network cannot.

        Batch norms that replace the network's own, as synchronised ones do, come before it is set.
        """
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self._checkpointing = self.checkpoint_layers(value)
        for handle in self._counting_once:
            handle.remove()
        self._counting_once = count_batches_once(self.body) if self._checkpointing else []

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """`pixel_mask` bool (N, H, W), True where there is image; outputs are zero elsewhere."""
        if pixel_mask is None:
            return self._maps(pixel_values)
        sizes, group = valid_sizes(pixel_mask).unique(dim=0, return_inverse=True)
        groups = []
        for index, (height, width) in enumerate(sizes.tolist()):
            maps = self._maps(pixel_values[group == index, :, :height, :width])
            groups.append(self._on_canvas(maps, *pixel_values.shape[-2:]))
        order = group.argsort(stable=True).argsort()
        return [torch.cat(level)[order] for level in zip(*groups, strict=True)]

    def _maps(self, pixel_values: Tensor) -> list[Tensor]:
        height, width = pixel_values.shape[-2:]
        maps = self.read(
            pad_to_multiple(pad_to_multiple(pixel_values, self.stride), self.body_stride)
        )
        if self.pyramid is not None:
            maps = self.pyramid(maps * (len(self.strides) // len(maps)))
        return [
            x[..., : -(-height // stride), : -(-width // stride)]
            for x, stride in zip(maps, self.strides, strict=True)
        ]

    def _on_canvas(self, maps: list[Tensor], height: int, width: int) -> list[Tensor]:
        """The maps with zeros at the bottom and right, up to the size of the whole canvas."""
        return [
            F.pad(x, (0, width // stride - x.shape[-1], 0, height // stride - x.shape[-2]))
            for x, stride in zip(maps, self.strides, strict=True)
        ]


def is_plain(strides: list[int]) -> bool:
    """Whether all maps that a network has are of one stride, as a plain vision transformer's."""
    return len(set(strides)) == 1


def last_map_per_stride(strides: list[int], wanted: list[int], name: str) -> list[int]:
    """Indices of the last map of each wanted stride, finest first.

    Args:
        strides: of all maps that the network has, in their order.
        wanted: the configuration's `feature_strides`.
        name: the backbone, for the message.

    Raises:
        ValueError: there is no map of a wanted stride.
    """
    last = {stride: index for index, stride in enumerate(strides)}
    missing = [stride for stride in wanted if stride not in last]
    if missing:
        raise ValueError(
            f"{name} has maps of the strides {sorted(last)} and none of {missing}; choose another "
            "backbone or other feature_strides."
        )
    return [last[stride] for stride in wanted]
