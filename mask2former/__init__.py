"""Mask2Former: panoptic, instance and semantic segmentation with one model."""

from importlib import import_module
from pathlib import Path
from typing import Any

# A small model trained on rendered scenes (mask2former.synthetic), shipped with the package.
BUNDLED_MODEL = Path(__file__).parent / "bundled"

# Where each public name lives. It is imported when first used, so that `mask2former --help` need
# not wait for torch.
_HOMES = {
    "AutoImageProcessor": "mask2former.image_processing",
    "DataError": "mask2former.errors",
    "Mask2FormerConfig": "mask2former.configuration",
    "Mask2FormerForUniversalSegmentation": "mask2former.modeling",
    "Mask2FormerForUniversalSegmentationOutput": "mask2former.outputs",
    "Mask2FormerImageProcessor": "mask2former.image_processing",
    "Mask2FormerImageProcessorFast": "mask2former.image_processing",
    "Mask2FormerImageProcessorPil": "mask2former.image_processing",
    "Mask2FormerModel": "mask2former.modeling",
    "Mask2FormerModelOutput": "mask2former.outputs",
    "ResNetConfig": "mask2former.backbone_configuration",
    "SwinConfig": "mask2former.backbone_configuration",
    "TimmBackboneConfig": "mask2former.backbone_configuration",
    "__version__": "mask2former_ops",
}

__all__ = ["BUNDLED_MODEL", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mask2former' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
