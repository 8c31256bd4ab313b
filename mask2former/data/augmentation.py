"""Random changes of samples for training: Sample -> Sample.

The compositions `coco_lsj` and `semantic_crop` are the paper's; `few_images` is for fine-tuning.
Each step draws from the generator it is given and from nothing else. Steps are frozen dataclasses,
so that they travel to worker processes. Index maps and bool masks are resized by nearest, by
picking only the pixels that the crop keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from mask2former.data.dataset import Sample
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.resize import (
    Size,
    center_cropped,
    nearest_index,
    resized_image,
    shortest_edge_size,
)
from mask2former.losses.annotations import IGNORED, VOID

Step = Callable[[Sample, Generator], Sample]
Void = Literal["background", "ignore"]
Offset = tuple[int, int]

CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Steps in order, and then segments made ready for the loss by `training_targets`.

    Attributes:
        steps: each takes a sample and a numpy generator and returns a sample.
        canvas: (height, width) that every image is padded to in a batch, or None for the largest
            of the batch. No image that comes out of the steps is larger.
        void: what becomes of void and of crowd pixels; see `training_targets`.
        ignore_value: the model's, with which masks are marked where `void` is "ignore".
    """

    steps: tuple[Step, ...]
    canvas: Size | None = None
    void: Void = "background"
    ignore_value: int = 255

    def __post_init__(self) -> None:
        if self.void not in ("background", "ignore"):
            raise ValueError(f"void must be 'background' or 'ignore', not {self.void!r}.")
        if self.void == "ignore" and not 2 <= self.ignore_value <= 255:
            raise ValueError(
                f"ignore_value is {self.ignore_value}, but masks hold 0 to 255, of which 0 and 1 "
                "are taken; give the model's configuration an ignore_value from 2 to 255."
            )

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return training_targets(sample, self.void, self.ignore_value)


# ---- compositions -------------------------------------------------------------------------------


def coco_lsj(
    size: int = 1024,
    *,
    scales: tuple[float, float] = (0.1, 2.0),
    flip: float = 0.5,
    void: Void = "background",
    ignore_value: int = 255,
) -> Augmentation:
    """The paper's recipe for COCO: large-scale jitter to a square of `size` pixels, and a flip."""
    canvas = (size, size)
    return Augmentation((LargeScaleJitter(canvas, scales), Flip(flip)), canvas, void, ignore_value)


def semantic_crop(
    crop: Size = (512, 512),
    *,
    short_sides: Sequence[int] | None = None,
    longest: int | None = None,
    max_ratio: float = 0.75,
    flip: float = 0.5,
    void: Void = "background",
    ignore_value: int = 255,
) -> Augmentation:
    """The paper's recipe for ADE20K, Cityscapes and Mapillary Vistas, whatever their task.

    Args:
        crop: height and width in pixels: 512 x 512 or 640 x 640 for ADE20K, 512 x 1024 for
            Cityscapes, 1024 x 1024 for Mapillary Vistas.
        short_sides: lengths of the shortest edge to draw from; by default 0.5 to 2.0 times the
            longer side of the crop in steps of 0.1 (in the paper twice that for Mapillary Vistas).
        longest: limit of the longest edge; by default four times the longer side of the crop.
        max_ratio: see `ResizedCrop`.
        flip: probability.
    """
    base = max(crop)
    if short_sides is None:
        short_sides = [tenths * base // 10 for tenths in range(5, 21)]
    resized_crop = ResizedCrop(crop, tuple(short_sides), longest or 4 * base, max_ratio)
    return Augmentation((resized_crop, ColourJitter(), Flip(flip)), crop, void, ignore_value)


def few_images(
    processor: Mask2FormerImageProcessor,
    *,
    flip: float = 0.5,
    void: Void = "background",
    ignore_value: int = 255,
) -> Augmentation:
    """For fine-tuning on a few hundred images: the size that the model will see, and a flip.

    Colours and scales are not changed: so few images cannot teach a model to disregard them.
    """
    return Augmentation((ProcessorResize(processor), Flip(flip)), None, void, ignore_value)


# ---- steps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize to fit a random multiple of `size`, then cut at random what is larger than `size`.

    Sources: detectron2's ResizeScale for the size. Its FixedSizeCrop draws one number for both
    axes, so that its crops lie on a diagonal; the code that it follows, `resize_and_crop_image` of
    tensorflow/tpu, draws one for each, and so does this. The padding to `size` is done in the
    batch.
    """

    size: Size
    scales: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be two numbers, 0 < low <= high, not {self.scales}.")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        scale = generator.uniform(*self.scales)
        ratio = min(scale * t / s for t, s in zip(self.size, sample.size, strict=True))
        height, width = (max(round(ratio * side), 1) for side in sample.size)
        crop = min(height, self.size[0]), min(width, self.size[1])
        offset = _random_offset((height, width), crop, generator)
        return resized_part(sample, (height, width), offset, crop)


@dataclass(frozen=True)
class ResizedCrop:
    """Resize the shortest edge to a random length, then cut at random to at most `crop`.

    Crops of an index map are drawn, at most `CROP_TRIES`, until the largest class of one covers at
    most `max_ratio` of its pixels that are neither void nor crowd. 1 takes any crop, as the
    paper's configurations do. For bool masks, most of whose pixels have no class, there is no such
    limit.

    Sources: ResizeShortestEdge and RandomCrop_CategoryAreaConstraint of detectron2.

    Attributes:
        crop: height and width in pixels.
        short_sides: lengths of the shortest edge, drawn from at even odds.
        longest: where the longest edge would be longer, the image is resized to that instead.
        max_ratio: above 0, up to 1.
    """

    crop: Size
    short_sides: tuple[int, ...]
    longest: int
    max_ratio: float = 0.75

    def __post_init__(self) -> None:
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides must be lengths above 0, not {self.short_sides}.")
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"max_ratio must be above 0 and at most 1, not {self.max_ratio}.")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        short = int(generator.choice(self.short_sides))
        size = shortest_edge_size(sample.size, short, self.longest)
        crop = min(size[0], self.crop[0]), min(size[1], self.crop[1])
        for _ in range(CROP_TRIES):
            offset = _random_offset(size, crop, generator)
            if self._varied(sample, size, offset, crop):
                break
        return resized_part(sample, size, offset, crop)

    def _varied(self, sample: Sample, size: Size, offset: Offset, crop: Size) -> bool:
        if self.max_ratio == 1 or sample.masks.dim() == 3:
            return True
        areas = _areas(_resized_masks(sample.masks, size, offset, crop), len(sample.labels))
        areas[sample.crowd.numpy()] = 0
        classes = np.bincount(sample.labels.numpy(), weights=areas)
        return 0 < classes.max(initial=0) <= self.max_ratio * classes.sum()


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with some probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"The probability of a flip is {self.probability}; give 0 to 1.")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        return flipped(sample) if generator.random() < self.probability else sample


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue, each changed with probability 0.5.

    Brightness comes first; contrast before the other two or, as often, after them. Source: the
    paper's ColorAugSSDTransform, after "SSD" (Liu et al. 2016).

    Attributes:
        brightness: most that is added to or taken from a value of 0 to 255.
        contrast, saturation: bounds of the factor.
        hue: most that hues turn, in degrees.
    """

    brightness: float = 32
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        changed = generator.random(4) < 0.5
        brightness = changed[0] * generator.uniform(-self.brightness, self.brightness)
        contrast, saturation = (
            generator.uniform(*bounds) if change else 1.0
            for bounds, change in zip((self.contrast, self.saturation), changed[1:3], strict=True)
        )
        hue = changed[3] * generator.uniform(-self.hue, self.hue)
        pixels = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        image = _linear(Image.fromarray(pixels), 1.0, brightness)
        if generator.random() < 0.5:
            image = _turned(_linear(image, contrast, 0.0), saturation, hue)
        else:
            image = _linear(_turned(image, saturation, hue), contrast, 0.0)
        return replace(sample, image=torch.from_numpy(np.array(image)).permute(2, 0, 1))


@dataclass(frozen=True)
class ProcessorResize:
    """What the processor does to the size of an image: resizing, and where it is set a crop."""

    processor: Mask2FormerImageProcessor

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        processor = self.processor
        if processor.do_resize:
            size = processor.resized_size(sample.size)
            sample = resized_part(sample, size, (0, 0), size, processor.resample)
        if (crop := processor.center_crop_size) is not None:
            image, masks = (center_cropped(x, crop) for x in (sample.image, sample.masks))
            sample = replace(sample, image=image, masks=masks, areas=None)
        return sample


# ---- what they do -------------------------------------------------------------------------------


def resized_part(
    sample: Sample,
    size: Size,
    offset: Offset,
    crop: Size,
    resample: int = Image.Resampling.BILINEAR,
) -> Sample:
    """The part at `offset` (top, left), `crop` (height, width), of a sample resized to `size`.

    The same as resizing it and cutting it then. Masks without pixels in that part are dropped, and
    `areas` with them, which are true of the whole image only.
    """
    # torch resizes bytes five times as fast with the channels last, and then so fast that cutting
    # the image first would gain nothing.
    image = sample.image[None].contiguous(memory_format=torch.channels_last)[0]
    image = resized_image(image, size, resample)
    (top, left), (height, width) = offset, crop
    image = image[:, top : top + height, left : left + width]
    if sample.masks.dim() == 3:
        sample = _without_segments_outside(sample, size, offset, crop)
    masks = _resized_masks(sample.masks, size, offset, crop)
    return replace(sample, image=image, masks=masks, areas=None)


def flipped(sample: Sample) -> Sample:
    """Mirrored left and right."""
    return replace(sample, image=sample.image.flip(-1), masks=sample.masks.flip(-1))


def training_targets(sample: Sample, void: Void = "background", ignore_value: int = 255) -> Sample:
    """The sample with only those segments that are no crowd and have a pixel, renumbered.

    Void and crowd pixels are background of every mask, as in the paper, or with `void="ignore"`
    count for nothing: `IGNORED` in an index map. In masks only the pixels of a crowd are
    unknown. If there is one, masks become uint8, with `ignore_value` in the pixels that belong to a
    crowd and to no mask.
    """
    if sample.masks.dim() == 2:
        return _training_map(sample, IGNORED if void == "ignore" else VOID)
    kept = _occupied(sample.masks) & ~sample.crowd
    if bool(kept.all()):
        return sample
    masks = sample.masks[kept]
    if void == "ignore":
        unknown = sample.masks[sample.crowd].any(0) & ~masks.any(0)
        if bool(unknown.any()):
            masks = masks.to(torch.uint8).masked_fill_(unknown, ignore_value)
    return _with_segments(sample, masks, kept)


def _training_map(sample: Sample, void: int) -> Sample:
    areas = _areas(sample.masks, len(sample.labels))
    kept = torch.from_numpy(areas > 0) & ~sample.crowd
    if bool(kept.all()) and void == VOID:
        return sample
    # VOID, -1, picks the last entry.
    table = np.full(len(kept) + 1, void, np.int32)
    table[:-1][kept.numpy()] = np.arange(int(kept.sum()))
    masks = torch.from_numpy(table.take(sample.masks.numpy(), mode="wrap"))
    return _with_segments(sample, masks, kept)


def _with_segments(sample: Sample, masks: Tensor, kept: Tensor) -> Sample:
    return replace(
        sample,
        masks=masks,
        labels=sample.labels[kept],
        crowd=sample.crowd[kept],
        areas=None if sample.areas is None else sample.areas[kept],
    )


def _without_segments_outside(sample: Sample, size: Size, offset: Offset, crop: Size) -> Sample:
    """Without the masks that have no pixel in the part. They need no resizing."""
    rows, columns = _source_pixels(sample.size, size, offset, crop)
    part = sample.masks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    kept = _occupied(part)
    return sample if bool(kept.all()) else _with_segments(sample, sample.masks[kept], kept)


def _resized_masks(masks: Tensor, size: Size, offset: Offset, crop: Size) -> Tensor:
    """The part of bool masks (T, H, W) or of an index map (H, W), as `resized_part` has it."""
    rows, columns = _source_pixels(masks.shape[-2:], size, offset, crop)
    # numpy takes bytes eight times as fast as torch. The smaller the intermediate result, the
    # better, and whole rows are cheap to take.
    pixels = masks.numpy()
    if len(rows) < pixels.shape[-2]:
        return torch.from_numpy(pixels.take(rows, -2).take(columns, -1))
    return torch.from_numpy(pixels.take(columns, -1).take(rows, -2))


def _source_pixels(
    source: Sequence[int], size: Size, offset: Offset, crop: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the source that nearest resizing picks for a part, in rising order."""
    rows, columns = (
        nearest_index(length, target)[first : first + count]
        for length, target, first, count in zip(source, size, offset, crop, strict=True)
    )
    return rows, columns


def _areas(index_map: Tensor, segments: int) -> np.ndarray:
    """Pixels of every segment of an index map, int64 (segments,)."""
    return np.bincount(index_map.numpy().ravel() - VOID, minlength=segments + 1)[1:]


def _occupied(masks: Tensor) -> Tensor:
    """Which of bool masks (T, H, W) have a pixel, bool (T,)."""
    # As bytes: twenty times as fast as `any`.
    return masks.view(torch.uint8).flatten(1).amax(1).bool()


def _random_offset(size: Size, crop: Size, generator: Generator) -> Offset:
    top, left = (int(generator.integers(s - c + 1)) for s, c in zip(size, crop, strict=True))
    return top, left


def _linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
    """Every value times `factor` plus `offset`, within 0 to 255."""
    if factor == 1 and offset == 0:
        return image
    return image.point(_table(factor, offset) * 3)


def _turned(image: Image.Image, saturation: float, hue: float) -> Image.Image:
    """Saturation multiplied, and hues turned by degrees."""
    if saturation == 1 and hue == 0:
        return image
    turn = round(hue / 360 * 256)
    hues = [(value + turn) % 256 for value in range(256)]
    table = hues + _table(saturation, 0.0) + list(range(256))
    return image.convert("HSV").point(table).convert("RGB")


def _table(factor: float, offset: float) -> list[int]:
    return [min(max(round(value * factor + offset), 0), 255) for value in range(256)]
