"""A model small enough for every test of the command line, and pictures to give it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from mask2former.image_processing import Mask2FormerImageProcessor

ID2LABEL = {0: "cat", 1: "dog", 2: "sky"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder with random weights. It finds segments only at low thresholds."""
    folder = tmp_path_factory.mktemp("tiny-model")
    backbone = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    }
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=16,
        hidden_dim=32,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=6,
        id2label=ID2LABEL,
    )
    torch.manual_seed(0)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    processor = Mask2FormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 128}, thing_label_ids=[0, 1]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def picture() -> Image.Image:
    """Smooth random colours, 96 wide and 64 high."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)
