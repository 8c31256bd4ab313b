"""Backbones: Swin and ResNet of this package, and those of timm and transformers.

Each has `channels` (widths of its feature maps) and `stride` (of its coarsest map, in pixels), and
maps pixel values (N, 3, H, W), with or without a pixel mask, to a list of feature maps, finest
first.
"""

from mask2former.checkpoints.backbone import load_backbone_weights
from mask2former.configuration import Mask2FormerConfig
from mask2former.model.backbones.library import LibraryBackbone
from mask2former.model.backbones.resnet import ResNetBackbone
from mask2former.model.backbones.swin import SwinBackbone

Backbone = SwinBackbone | ResNetBackbone | LibraryBackbone
BACKBONES = {"swin": SwinBackbone, "resnet": ResNetBackbone}


def make_backbone(config: Mask2FormerConfig) -> Backbone:
    """The backbone that `config` describes.

    Its weights are random, or with `use_pretrained_backbone` the named model's.

    Raises:
        DataError: a library is not installed, or weights cannot be fetched or do not fit.
        ValueError: the library has no such model, or it has no maps of `feature_strides`.
    """
    backbone_config = config.backbone_config
    model_type = backbone_config.model_type
    pretrained = config.use_pretrained_backbone
    if model_type in BACKBONES:
        backbone = BACKBONES[model_type](backbone_config)
        if pretrained:
            load_backbone_weights(backbone, config)
        return backbone
    # Imported when asked for: the libraries are extras.
    if model_type == "timm_backbone":
        from mask2former.model.backbones.timm import TimmBackbone

        backbone = TimmBackbone(backbone_config, config.feature_strides, pretrained)
    else:
        from mask2former.model.backbones.transformers import TransformersBackbone

        name = config.backbone if pretrained else None
        backbone = TransformersBackbone(backbone_config, config.feature_strides, name)
    if backbone.strides != list(config.feature_strides):
        raise ValueError(
            f"The chosen maps of the backbone have strides {backbone.strides}, but feature_strides "
            f"is {config.feature_strides}; leave the choice of maps out, or change feature_strides."
        )
    return backbone
