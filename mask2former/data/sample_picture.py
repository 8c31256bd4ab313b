"""A sample as a map of segment ids, and what drawing one needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mask2former.data.dataset import Sample


def panoptic_map(sample: Sample) -> tuple[Tensor, list[dict[str, Any]]]:
    """What `Sample.id_map` returns, and the segments that have a pixel in it, a dict each of "id",
    "label_id" and "iscrowd", 0 or 1."""
    ids = sample.id_map()
    segments = [
        {
            "id": segment,
            "label_id": int(sample.labels[segment - 1]),
            "iscrowd": int(sample.crowd[segment - 1]),
        }
        for segment in ids.unique().tolist()
        if segment > 0
    ]
    return ids, segments


def shrunk(image: Tensor, ids: Tensor, side: int) -> tuple[Image.Image, np.ndarray]:
    """An image, uint8 (3, H, W), and its segment ids, (H, W), at most `side` pixels long."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = Image.fromarray(ids.to(torch.int32).numpy())
    scale = side / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(scale * edge)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        small = small.resize((width, height), Image.Resampling.NEAREST)
    return picture, np.asarray(small)


def named(
    segments: Sequence[Mapping[str, Any]], id2label: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The segments with the names of their classes as "label", which crowds add to."""
    return [
        {
            **segment,
            "label": id2label[segment["label_id"]] + (" (crowd)" if segment.get("iscrowd") else ""),
        }
        for segment in segments
    ]
