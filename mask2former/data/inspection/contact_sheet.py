"""A picture of some samples of a data set with their masks, to look at before training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.data.sample_picture import named, panoptic_map, shrunk
from mask2former.images.visualization import draw_segments, pillow_font
from mask2former.io.errors import DataError

TILE = 448  # longer side of a picture, in pixels
_SHAPE = 1.5  # about the width of a sheet over its height
_GAP, _SEAM = 16, 2  # pixels between samples, and between a sample's two pictures
_DARKNESS = 0.25  # of void: what is left of the light
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(dataset: SegmentationDataset, samples: int = 12, seed: int = 0) -> Image.Image:
    """Samples spread over the data set: picture, picture with masks, and the name under them.

    Of overlapping masks the smaller lies on top. Void is dark in panoptic and semantic samples.
    In samples of instances, pixels of no instance stay as they are. One sample at a time is held in
    full size.

    Args:
        samples: how many to show, at most; those that cannot be read are passed over.
        seed: other seeds show other samples.

    Raises:
        ValueError: samples is not positive.
        DataError: no sample can be read.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; ask for at least one.")
    tiles = list(_tiles(dataset, samples, seed))
    if not tiles:
        raise DataError("No sample of the data set can be read, so there is no sheet to make.")
    width = max(tile.width for tile in tiles)
    height = max(tile.height for tile in tiles)
    columns = max(1, round(math.sqrt(len(tiles) * _SHAPE * height / width)))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    size = columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP
    sheet = Image.new("RGB", size, _PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def _tiles(dataset: SegmentationDataset, samples: int, seed: int) -> Iterator[Image.Image]:
    """One sample from each of `samples` equal parts of the data set, as far as it can be read."""
    shuffled = random.Random(seed)
    parts = min(samples, len(dataset))
    for part in range(parts):
        first, last = (k * len(dataset) // parts for k in (part, part + 1))
        for index in shuffled.sample(range(first, last), last - first):
            try:
                sample = dataset[index]
            except DataError:
                continue  # inspection lists it
            yield _tile(sample, dataset)
            break


def _tile(sample: Sample, dataset: SegmentationDataset) -> Image.Image:
    """Picture and masks side by side, with the name under them."""
    ids, segments = panoptic_map(sample)
    picture, ids = shrunk(sample.image, ids, TILE)
    drawn = _darkened(picture, ids == 0) if sample.masks.dim() == 2 else picture
    drawn = draw_segments(drawn, ids, named(segments, dataset.id2label))
    scale = TILE / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    font = pillow_font(15)
    tile = Image.new("RGB", (2 * width + _SEAM, height + 24), _PAPER)
    for column, panel in enumerate((picture, drawn)):
        panel = panel.resize((width, height), Image.Resampling.BICUBIC)
        tile.paste(panel, (column * (width + _SEAM), 0))
    middle = tile.width / 2, height + 3
    text = _shortened(sample.name, font, tile.width)
    ImageDraw.Draw(tile).text(middle, text, fill=_INK, font=font, anchor="ma")
    return tile


def _darkened(picture: Image.Image, where: np.ndarray) -> Image.Image:
    """A picture that is dark in the pixels `where` (H, W) is True."""
    factor = np.where(where, np.float32(_DARKNESS), np.float32(1))
    return Image.fromarray((np.asarray(picture) * factor[..., None]).astype(np.uint8))


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of the end of a text as fits. Ends differ more than beginnings."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
