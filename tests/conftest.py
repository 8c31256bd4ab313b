"""A model small enough for every test, and a picture to give it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former import Mask2FormerImageProcessor
from tests import reference

ID2LABEL = {0: "cat", 1: "dog", 2: "sky"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder with random weights. It finds segments only at low thresholds."""
    folder = tmp_path_factory.mktemp("tiny-model")
    reference.tiny_model(id2label=ID2LABEL).save_pretrained(folder)
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
