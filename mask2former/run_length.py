"""COCO run-length encoding of masks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor


def mask_to_rle(mask: Tensor) -> dict[str, Any]:
    """COCO run-length encoding of a bool mask (height, width): {"size": [height, width], "counts":
    str}, runs counted down the columns and compressed, which pycocotools reads and JSON can hold.

    Source: the format of `rleEncode` and `rleToString` in the COCO API's maskApi.c.
    """
    pixels = mask.bool().T.flatten()
    changes = (pixels[1:] != pixels[:-1]).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), len(pixels)]
    counts = [stop - start for start, stop in pairwise(edges)]
    if bool(pixels[0]):
        counts.insert(0, 0)  # the first run is background by definition
    return {"size": list(mask.shape), "counts": _compressed(counts)}


def _compressed(counts: list[int]) -> str:
    """Each count less the one two before it, in groups of 5 bits, low first, a sixth for "more"."""
    characters = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            characters.append(chr(48 + group + (0x20 if more else 0)))
    return "".join(characters)
