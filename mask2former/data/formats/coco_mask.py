"""Polygons and run lengths, as COCO's files have them, to masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mask2former.io.errors import DataError
from mask2former.io.optional import require_package

MOST = 1e300  # beyond it, a number of a JSON file counts as infinite

Polygon = list[float]
# Either polygons, whose union is the mask, or run lengths {"size": [height, width], "counts": ...}.
Segmentation = list[Polygon] | dict[str, Any]


def require_mask_api() -> None:
    """DataError with the remedy if the package that draws polygons is missing."""
    require_package(
        "faster_coco_eval", "Reading polygons and run lengths", install="mask2former[train]"
    )


def check_polygon(points: Any, size: tuple[int, int], where: str) -> None:
    """Whether a polygon is [x1, y1, x2, y2, ...] in pixels of an image of (height, width) `size`.

    Points may lie outside the image, where nothing is drawn, but not all of them on one side of
    it, nor farther away than the image is long. `where` begins the messages.

    Raises:
        DataError: it is not.
    """
    if not isinstance(points, list) or not set(map(type, points)) <= {int, float}:
        raise DataError(
            f"{where}: a polygon must be a list of numbers [x1, y1, x2, y2, ...], not "
            f"{points!r:.40}."
        )
    if len(points) < 6 or len(points) % 2:
        raise DataError(
            f"{where}: a polygon of {len(points)} numbers; x and y of at least 3 points are needed."
        )
    # The sum is nan if one of them is; the limits keep it from overflowing.
    if not (min(points) > -MOST and max(points) < MOST and math.isfinite(sum(points))):
        raise DataError(f"{where}: a polygon with a coordinate that is not finite.")
    height, width = size
    left, right, top, bottom = (
        *(min(points[::2]), max(points[::2])),
        *(min(points[1::2]), max(points[1::2])),
    )
    reach = max(size)
    outside = right <= 0 or bottom <= 0 or left >= width or top >= height
    far = min(left, top) < -reach or right > width + reach or bottom > height + reach
    if outside or far:
        raise DataError(
            f"{where}: a polygon from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) lies outside "
            f"its image, which is {width} wide and {height} high."
        )


def check_run_lengths(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> None:
    """Whether run lengths are for an image of (height, width) `size`; DataError if not."""
    counts, own_size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(counts, (str, list)) or not isinstance(own_size, list):
        raise DataError(f"{where}: a run-length encoded mask needs counts and size.")
    if own_size != list(size):
        raise DataError(
            f"{where}: its run lengths are for {own_size} but its image is {list(size)} "
            "([height, width])."
        )


def decode(segmentation: Segmentation, size: tuple[int, int], where: str) -> np.ndarray:
    """The mask, bool (height, width), of a segmentation that the checks above let pass.

    Raises:
        DataError: run lengths are damaged.
    """
    from faster_coco_eval.core import mask as mask_api

    try:
        if isinstance(segmentation, list):
            rles: Any = mask_api.frPyObjects(segmentation, *size)
            rle = mask_api.merge(rles)
        elif isinstance(segmentation["counts"], list):
            rle = _compressed(segmentation["counts"], size)
        else:
            rle = {"size": list(size), "counts": segmentation["counts"]}
        return mask_api.decode(rle).astype(bool)
    except (ValueError, TypeError, RuntimeError) as error:  # what the C++ code throws
        raise DataError(f"{where}: its mask cannot be decoded ({error}).") from error


def _compressed(counts: list[int], size: tuple[int, int]) -> Any:
    from faster_coco_eval.core import mask as mask_api

    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("run lengths must be integers from 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths sum up to {sum(counts)}, not to {size[0] * size[1]} pixels")
    return mask_api.frPyObjects({"size": list(size), "counts": counts}, *size)
