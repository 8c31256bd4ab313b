"""Backbones by the `model_type` of their configuration.

Each is built from its configuration, has `channels` (widths of its feature maps) and `stride` (of
its coarsest stage, in pixels), and maps pixel values (N, 3, H, W), with or without a pixel mask, to
a list of feature maps, finest first.
"""

from mask2former.backbones.resnet import ResNetBackbone
from mask2former.backbones.swin import SwinBackbone

BACKBONES = {"swin": SwinBackbone, "resnet": ResNetBackbone}
