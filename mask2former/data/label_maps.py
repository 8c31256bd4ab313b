"""Label maps, image files with one number per pixel, and their segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mask2former.data.dataset import VOID
from mask2former.images.read import open_image
from mask2former.images.segmentation_maps import id_array
from mask2former.io.errors import DataError


def read_label_map(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The numbers in an image file, (height, width) of an integer or bool dtype.

    Args:
        path: of the file; of a palette image, the numbers are the indices.
        size: its image's height and width, which it must have; None for any.

    Raises:
        DataError: the file is missing, damaged, has colours, or is of another size.
    """
    return label_array(open_image(path), str(path), size)


def label_array(image: Image.Image, name: str, size: tuple[int, int] | None) -> np.ndarray:
    """`read_label_map` of an image that was opened before; `name` begins the messages."""
    values = id_array(image, name)
    if size is not None and values.shape != tuple(size):
        raise DataError(
            f"{name} is {values.shape[0]}x{values.shape[1]} (height x width) but its image is "
            f"{size[0]}x{size[1]}; give every image a label map of its own size, upright if it is "
            "turned by an EXIF orientation."
        )
    return values


def class_segments(classes: np.ndarray) -> tuple[Tensor, Tensor]:
    """One segment for each class of a map.

    Args:
        classes: integers (height, width), the class of every pixel or `VOID`.

    Returns:
        The index map, int32 (H, W), and the class of each of its segments, int64 (T,), ascending.
    """
    counts = np.bincount((classes - VOID).ravel())  # void is counted at 0
    labels = np.flatnonzero(counts[1:])
    table = np.full(max(len(counts), 1), VOID, np.int32)
    table[labels + 1] = np.arange(len(labels))
    return torch.from_numpy(table[classes - VOID]), torch.from_numpy(labels.astype(np.int64))
