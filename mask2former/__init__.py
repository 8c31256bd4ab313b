"""Mask2Former: panoptic, instance and semantic segmentation with one model."""

from importlib.resources import files
from pathlib import Path

from mask2former.configuration import Mask2FormerConfig, ResNetConfig, SwinConfig
from mask2former.errors import DataError
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.modeling import Mask2FormerForUniversalSegmentation, Mask2FormerModel
from mask2former.outputs import Mask2FormerForUniversalSegmentationOutput, Mask2FormerModelOutput
from mask2former_ops import __version__

# A small model trained on rendered scenes (mask2former.synthetic), shipped with the package.
BUNDLED_MODEL = Path(str(files("mask2former"))) / "bundled"

__all__ = [
    "BUNDLED_MODEL",
    "DataError",
    "Mask2FormerConfig",
    "Mask2FormerForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentationOutput",
    "Mask2FormerImageProcessor",
    "Mask2FormerModel",
    "Mask2FormerModelOutput",
    "ResNetConfig",
    "SwinConfig",
    "__version__",
]
