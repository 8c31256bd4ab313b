"""Configurations of the model and its backbones, in the Hugging Face `config.json` format."""

from mask2former.configuration.backbones import ResNetConfig, SwinConfig, TimmBackboneConfig
from mask2former.configuration.model import (
    NUM_LEVELS,
    NUM_POINTS,
    Mask2FormerConfig,
    labels_by_id,
)

__all__ = [
    "NUM_LEVELS",
    "NUM_POINTS",
    "Mask2FormerConfig",
    "ResNetConfig",
    "SwinConfig",
    "TimmBackboneConfig",
    "labels_by_id",
]
