"""Mask2Former: panoptic, instance and semantic segmentation with one model."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask2former.configuration import (
        Mask2FormerConfig,
        ResNetConfig,
        SwinConfig,
        TimmBackboneConfig,
    )
    from mask2former.images.processor import (
        AutoImageProcessor,
        Mask2FormerImageProcessor,
        Mask2FormerImageProcessorFast,
        Mask2FormerImageProcessorPil,
    )
    from mask2former.images.thresholds import Thresholds
    from mask2former.io.errors import DataError
    from mask2former.model.outputs import (
        Mask2FormerForUniversalSegmentationOutput,
        Mask2FormerModelOutput,
    )
    from mask2former.modeling import Mask2FormerForUniversalSegmentation, Mask2FormerModel
    from mask2former.predictor import Predictor
    from mask2former_ops import __version__

# A small model trained on rendered scenes (mask2former.scenes), shipped with the package.
BUNDLED_MODEL = Path(__file__).parent / "bundled"

__all__ = [
    "BUNDLED_MODEL",
    "AutoImageProcessor",
    "DataError",
    "Mask2FormerConfig",
    "Mask2FormerForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentationOutput",
    "Mask2FormerImageProcessor",
    "Mask2FormerImageProcessorFast",
    "Mask2FormerImageProcessorPil",
    "Mask2FormerModel",
    "Mask2FormerModelOutput",
    "Predictor",
    "ResNetConfig",
    "SwinConfig",
    "Thresholds",
    "TimmBackboneConfig",
    "__version__",
]

# The module of each public name. It is imported at first use, so that `mask2former --help` does not
# wait for torch.
_MODULES = {
    "mask2former.configuration": (
        "Mask2FormerConfig",
        "ResNetConfig",
        "SwinConfig",
        "TimmBackboneConfig",
    ),
    "mask2former.images.processor": (
        "AutoImageProcessor",
        "Mask2FormerImageProcessor",
        "Mask2FormerImageProcessorFast",
        "Mask2FormerImageProcessorPil",
    ),
    "mask2former.images.thresholds": ("Thresholds",),
    "mask2former.io.errors": ("DataError",),
    "mask2former.model.outputs": (
        "Mask2FormerForUniversalSegmentationOutput",
        "Mask2FormerModelOutput",
    ),
    "mask2former.modeling": ("Mask2FormerForUniversalSegmentation", "Mask2FormerModel"),
    "mask2former.predictor": ("Predictor",),
    "mask2former_ops": ("__version__",),
}
_MODULE_BY_NAME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'mask2former' has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)
