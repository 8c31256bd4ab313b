"""Pictures of segmentations: overlays with contours and tags, panels side by side, id-map files."""

import colorsys
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mask2former.io.files import replacing

Picture = Image.Image | np.ndarray
Map = np.ndarray | torch.Tensor
Colour = tuple[int, int, int]

# Overlays with a shorter side below MIN_SIDE are enlarged, so that tags are legible, as long as the
# longer side stays below MAX_ENLARGED_SIDE.
MIN_SIDE, MAX_ENLARGED_SIDE = 512, 2048

# The seven colours of Okabe and Ito (2008). Colour-blind readers can tell them from each other.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (0, 158, 115),
    (0, 114, 178),
)
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class _Box:
    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, width: int, height: int) -> "_Box":
        """The box, no larger than the picture, moved into it."""
        x = max(0, min(self.left, width - (self.right - self.left)))
        y = max(0, min(self.top, height - (self.bottom - self.top)))
        return _Box(x, y, x + self.right - self.left, y + self.bottom - self.top)


def label_colour(label_id: int, instance: int = 0) -> Colour:
    """The colour of the `instance`-th segment of a label: the same hue, more or less light.

    The first seven labels have the palette of Okabe and Ito. Hues of later ones differ by the
    golden section of the colour circle, so that neighbouring labels differ most.
    """
    if label_id < len(_PALETTE):
        red, green, blue = (channel / 255 for channel in _PALETTE[label_id])
        hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    else:
        hue = label_id * _GOLDEN % 1
        lightness, saturation = (0.42, 0.55, 0.68)[label_id % 3], (0.65, 0.9)[label_id % 2]
    # Both offsets are zero for instance 0 and spread evenly over [-1, 1] for the others.
    lightness += 0.2 * (2 * ((instance * _GOLDEN + 0.5) % 1) - 1)
    hue += 0.025 * (2 * ((instance * _GOLDEN**2 * 2 + 0.5) % 1) - 1)
    rgb = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0.22), 0.82), saturation)
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


def draw_segments(
    image: Picture,
    segmentation: Map,
    segments_info: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str] | None = None,
    opacity: float = 0.5,
) -> Image.Image:
    """A picture with its segments in colour, with contours and tags.

    Args:
        image: a PIL image, or an array (height, width, 3) of uint8 RGB.
        segmentation: (height, width) integers, array or tensor: segment ids; ids that
            `segments_info` does not list (0 for void, say) stay uncoloured.
        segments_info: one {"id", "label_id"} per segment; a "score" in [0, 1] is shown in the tag.
        id2label: names of the labels. For a label without a name the tag shows the segment's own
            "label", or else its "label_id".
        opacity: of the colours, from 0 to 1; contours and tags are always opaque.

    Returns:
        An RGB picture of the same size, or enlarged by a whole number if its shorter side was below
        `MIN_SIDE` pixels. The colours depend on the label ids and the order of segment ids only.

    Raises:
        ValueError: the image is no RGB picture, or the map has another size.
    """
    picture = _as_picture(image)
    ids = _as_array(segmentation)
    if ids.shape != (picture.height, picture.width):
        raise ValueError(
            f"segmentation is {ids.shape} but the image is {(picture.height, picture.width)}: "
            "give a segmentation of the image's height and width."
        )
    segments = sorted(segments_info, key=lambda segment: segment["id"])
    index = _segment_index(ids, segments)
    factor = min(math.ceil(MIN_SIDE / min(picture.size)), MAX_ENLARGED_SIDE // max(picture.size))
    if factor > 1:
        size = picture.width * factor, picture.height * factor
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        index = _enlarge(index, len(segments), size)
    colours = _segment_colours(segments)
    picture = _tint(picture, index, colours, opacity)
    _draw_tags(picture, index, segments, colours, id2label or {})
    return picture


def _as_picture(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}: give a PIL image or uint8 RGB "
            "of shape (height, width, 3)."
        )
    return Image.fromarray(image)


def _as_array(segmentation: Map) -> np.ndarray:
    if isinstance(segmentation, torch.Tensor):
        return segmentation.cpu().numpy()
    return np.asarray(segmentation)


def _segment_index(ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """For every pixel the index of its segment in `segments`, from 1, or 0 for none; int32."""
    values, inverse = np.unique(ids, return_inverse=True)
    indices = {segment["id"]: i for i, segment in enumerate(segments, start=1)}
    lookup = np.array([indices.get(int(value), 0) for value in values], np.int32)
    return lookup[inverse].reshape(ids.shape)


def _segment_colours(segments: Sequence[Mapping[str, Any]]) -> list[Colour]:
    seen: dict[int, int] = {}
    colours = []
    for segment in segments:
        label_id = segment["label_id"]
        colours.append(label_colour(label_id, seen.get(label_id, 0)))
        seen[label_id] = seen.get(label_id, 0) + 1
    return colours


def _enlarge(index: np.ndarray, segments: int, size: tuple[int, int]) -> np.ndarray:
    """Segment numbers enlarged with smooth edges: masks are interpolated and the largest wins."""
    best = np.zeros((size[1], size[0]), np.uint8)
    enlarged = np.zeros(best.shape, np.int32)
    for segment in range(segments + 1):
        mask = Image.fromarray(np.where(index == segment, 255, 0).astype(np.uint8))
        weight = np.asarray(mask.resize(size, Image.Resampling.BICUBIC))
        enlarged[weight > best] = segment
        np.maximum(best, weight, out=best)
    return enlarged


def _tint(
    picture: Image.Image, index: np.ndarray, colours: Sequence[Colour], opacity: float
) -> Image.Image:
    """Colour every segment, with a contour of its full colour along its inner border."""
    pixels = np.asarray(picture)
    table = np.array([(0, 0, 0), *colours], np.uint8)
    width = max(1, round(min(index.shape) / 300))
    neighbours = 2 * width + 1
    border = ndimage.maximum_filter(index, neighbours) != ndimage.minimum_filter(index, neighbours)
    # A dark hairline between two segments separates similar colours.
    hairline = ndimage.maximum_filter(index, width + 1) != index
    strength = np.where(border, np.float32(1), np.float32(opacity))
    strength[index == 0] = 0
    colour = table[index] * np.where(hairline, np.float32(0.45), np.float32(1))[..., None]
    blended = pixels + strength[..., None] * (colour - pixels)
    return Image.fromarray((blended + 0.5).astype(np.uint8))


def _draw_tags(
    picture: Image.Image,
    index: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    colours: Sequence[Colour],
    id2label: Mapping[int, str],
) -> None:
    """Writes name and score of every segment. Small segments choose their positions first."""
    draw = ImageDraw.Draw(picture)
    font = pillow_font(max(11, round(min(picture.size) / 36)))
    ascent, descent = font.getmetrics()
    padding = max(2, round(font.size / 4))
    boxes = ndimage.find_objects(index, max_label=len(segments))
    areas = np.bincount(index.ravel(), minlength=len(segments) + 1)[1:]
    taken: list[_Box] = []
    for i in sorted(range(len(segments)), key=lambda i: areas[i]):
        if boxes[i] is None:  # listed, but without a pixel
            continue
        text = _tag_text(segments[i], id2label)
        while len(text) > 3 and font.getlength(text) + 2 * padding > picture.width:
            text = text[:-4] + "..."
        size = math.ceil(font.getlength(text)) + 2 * padding, ascent + descent + padding
        if size[0] > picture.width or size[1] > picture.height:
            continue
        mask = index[boxes[i]] == i + 1
        candidates = _tag_boxes(mask, boxes[i], size, picture.size)
        free = (box for box in candidates if not any(box.overlaps(other) for other in taken))
        box = next(free, candidates[0])
        taken.append(box)
        draw.rounded_rectangle(
            (box.left, box.top, box.right - 1, box.bottom - 1), padding, fill=colours[i]
        )
        draw.text(
            (box.left + padding, box.top + padding // 2),
            text,
            fill=_text_colour(colours[i]),
            font=font,
        )


def pillow_font(size: int) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings, `size` pixels high."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # always, with a size
    return font


def _tag_text(segment: Mapping[str, Any], id2label: Mapping[int, str]) -> str:
    name = id2label.get(segment["label_id"], str(segment.get("label", segment["label_id"])))
    score = segment.get("score")
    return name if score is None else f"{name} {score:.2f}"


def _tag_boxes(
    mask: np.ndarray,
    window: tuple[slice, slice],
    size: tuple[int, int],
    picture_size: tuple[int, int],
) -> list[_Box]:
    """Boxes for a tag, the best first: in the segment if it fits there, else beside it."""
    width, height = size
    own = _Box(window[1].start, window[0].start, window[1].stop, window[0].stop)
    # The middle of the points farthest from the outline. Distances are measured in widths
    # and heights of the tag, and a coarse grid is enough.
    step = max(1, min(mask.shape) // 128)
    coarse = np.pad(mask[::step, ::step], 1)
    spacing = step / height, step / width
    room = np.asarray(ndimage.distance_transform_edt(coarse, sampling=spacing))
    farthest = np.argwhere(room >= 0.95 * room.max())
    offsets = farthest - farthest.mean(axis=0)
    row, column = farthest[np.argmin((offsets**2).sum(axis=1))]
    x, y = own.left + (column - 1) * step, own.top + (row - 1) * step
    rows = (0, -1, 1, -2, 2, -3, 3)
    inside = [_box_around(x, y + row * (height + 2), size).within(*picture_size) for row in rows]
    middle_x, middle_y = (own.left + own.right) / 2, (own.top + own.bottom) / 2
    beside = [
        _box_around(middle_x, own.top - height / 2 - 2, size),
        _box_around(middle_x, own.bottom + height / 2 + 2, size),
        _box_around(own.left - width / 2 - 2, middle_y, size),
        _box_around(own.right + width / 2 + 2, middle_y, size),
    ]
    beside = [box.within(*picture_size) for box in beside]
    beside = [box for box in beside if not box.overlaps(own)]
    return [*inside, *beside] if room.max() > 0.55 else [*beside, *inside]


def _box_around(x: float, y: float, size: tuple[int, int]) -> _Box:
    left, top = round(x - size[0] / 2), round(y - size[1] / 2)
    return _Box(left, top, left + size[0], top + size[1])


def _text_colour(background: Colour) -> str:
    """Black or white, whichever has the higher contrast by WCAG 2.1 (relative luminance)."""
    linear = (np.array(background) / 255) ** 2.2
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def side_by_side(panels: Sequence[tuple[str, Picture]]) -> Image.Image:
    """Pictures in a row on white, each under its title, all enlarged to the height of the highest.

    Args:
        panels: (title, picture) pairs; pictures are PIL images or uint8 arrays (height, width, 3).

    Raises:
        ValueError: there is no panel, or a picture is no RGB picture.
    """
    if not panels:
        raise ValueError("There is no panel to show: give at least one (title, picture) pair.")
    pictures = [_as_picture(picture) for _, picture in panels]
    height = max(picture.height for picture in pictures)
    pictures = [
        picture.resize(
            (round(picture.width * height / picture.height), height), Image.Resampling.BICUBIC
        )
        if picture.height != height
        else picture
        for picture in pictures
    ]
    font = pillow_font(max(11, round(height / 24)))
    gap = max(4, round(height / 48))
    title_height = sum(font.getmetrics()) + gap
    columns = [
        max(picture.width, math.ceil(font.getlength(title)))
        for picture, (title, _) in zip(pictures, panels, strict=True)
    ]
    size = sum(columns) + gap * (len(columns) + 1), title_height + height + gap
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = gap
    for picture, (title, _), column in zip(pictures, panels, columns, strict=True):
        draw.text((left + column / 2, gap / 2), title, fill=(40, 40, 40), font=font, anchor="ma")
        sheet.paste(picture, (left + (column - picture.width) // 2, title_height))
        left += column + gap
    return sheet


def id_map_to_rgb(id_map: Map) -> np.ndarray:
    """Segment ids as colours, as in COCO's panoptic PNG files: id = R + 256 G + 65536 B.

    Args:
        id_map: (height, width) integers from 0 to 2**24 - 1, array or tensor.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: an id is out of range.
    """
    ids = _as_array(id_map)
    if ids.size and not (ids.min() >= 0 and ids.max() < 2**24):
        raise ValueError(
            f"id_map holds {ids.min()} to {ids.max()}: an RGB id map takes ids from 0 to "
            f"{2**24 - 1}."
        )
    ids = ids.astype(np.int32)
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def rgb_to_id_map(rgb: Picture) -> np.ndarray:
    """The inverse of `id_map_to_rgb`: a PIL image or (height, width, 3) uint8 to int32 ids."""
    channels = np.asarray(_as_picture(rgb)).astype(np.int32)
    return channels[..., 0] | channels[..., 1] << 8 | channels[..., 2] << 16


def save_png(image: Picture, path: str | os.PathLike[str]) -> None:
    """Writes a picture as PNG, under a temporary name first, so that no file is incomplete.

    Args:
        image: a PIL image, or an array (height, width, 3) of uint8 RGB.
        path: the file to write or replace; its folder must exist.

    Raises:
        OSError: the file cannot be written. An existing file is then unchanged.
    """
    with replacing(Path(path)) as temporary:
        _as_picture(image).save(temporary, format="PNG")
