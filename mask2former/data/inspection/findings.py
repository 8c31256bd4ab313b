"""What an inspection of a data set finds."""

from __future__ import annotations

from dataclasses import dataclass

from mask2former.data.dataset import Task

SMALL_AREA = 32 * 32  # pixels; what COCO's evaluation calls small


@dataclass
class ClassCount:
    """How much of a class a data set has.

    Attributes:
        category_id: its number in the annotation files.
        images: images that show it.
        segments: its segments, crowds and those without a pixel included.
        crowds: segments that are regions of many things not told apart.
        pixels: the sum of the segments' areas.
        full: segments that cover their whole image.
    """

    name: str
    category_id: int
    is_thing: bool
    images: int = 0
    segments: int = 0
    crowds: int = 0
    pixels: int = 0
    full: int = 0


@dataclass(frozen=True)
class Spread:
    """The smallest number, the median and the largest."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_dataset` found; images that cannot be read are in `errors` only.

    Attributes:
        task: of the data set.
        images: the number of images.
        errors: one sentence for each bad record that was left out when the data set was opened,
            and for each image that cannot be read.
        classes: counts of every class, by label.
        pixels: of all images.
        unlabelled_pixels: pixels in no segment, which is void.
        unlabelled_images: names of images without any segment.
        empty_masks: "image: class" of every segment without a pixel.
        wrong_areas: "image: class" of every segment that is not nearly as large as the annotation
            file says.
        duplicate_names: names of images that the data set has more than once.
        category_gaps: (first, last) of each run of numbers that no class has in the annotation
            files, between numbers that classes have.
        heights, widths: of the images, in pixels; None if there are none.
        areas: of the segments that have a pixel, in pixels; None if there are none.
        small_segments: the number of these smaller than `SMALL_AREA`.
        warnings: what opening the data set warned of and what looks wrong, each in one sentence
            with its remedy.
    """

    task: Task
    images: int
    errors: list[str]
    classes: list[ClassCount]
    pixels: int
    unlabelled_pixels: int
    unlabelled_images: list[str]
    empty_masks: list[str]
    wrong_areas: list[str]
    duplicate_names: list[str]
    category_gaps: list[tuple[int, int]]
    heights: Spread | None
    widths: Spread | None
    areas: Spread | None
    small_segments: int
    warnings: list[str]

    @property
    def segments(self) -> int:
        """The number of segments of all classes."""
        return sum(count.segments for count in self.classes)
