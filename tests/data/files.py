"""Small data sets written to disk for the tests of their formats."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    """A noise image file; returns its pixels, (height, width, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def write_map(path: Path, numbers: np.ndarray) -> None:
    """A file of one number per pixel, 8 bits where they suffice, else 16."""
    numbers = np.asarray(numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)).save(path)


def write_json(path: Path, values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path
