"""What is in a data set: counts, sizes, and every file that cannot be read."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mask2former.data.dataset import Sample, SegmentationDataset, Task
from mask2former.data.inspection.suspicions import suspicions
from mask2former.io.errors import DataError

SMALL_AREA = 32 * 32  # pixels; what COCO's evaluation calls small

# Of more classes than the first, a report shows the most and the least frequent ones.
_MAX_ROWS, _FREQUENT_ROWS, _RARE_ROWS = 30, 20, 8
_MAX_GAPS = 6


@dataclass
class ClassCount:
    """What there is of a class.

    Attributes:
        category_id: its number in the annotation files.
        images: that show it.
        segments: of it, crowds and those without a pixel included.
        crowds: those of them that are regions of many things not told apart.
        pixels: of all of them together.
        full: those of them that cover their whole image.
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
    """Of some numbers the smallest, the median and the largest."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; images that cannot be read are in `errors` only.

    Attributes:
        task: of the data set.
        images: the number of images.
        errors: one sentence for each bad record that was left out when the data set was opened,
            and for each image that cannot be read.
        classes: counts of every class, by label.
        pixels: of all images.
        unlabelled_pixels: those in no segment: void.
        unlabelled_images: names of images without any segment.
        empty_masks: "image: class" of every segment without a pixel.
        wrong_areas: "image: class" of every segment that is not nearly as large as the annotation
            file says.
        duplicate_names: of images that the data set has more than once.
        category_gaps: (first, last) of the numbers between those of two classes, in the annotation
            files, that belong to none.
        heights, widths: of the images, in pixels; None if there are none.
        areas: of the segments that have any, in pixels; None if there are none.
        small_segments: those of them smaller than `SMALL_AREA`.
        notes: warnings that were given when the data set was opened.
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
    notes: list[str]

    @property
    def segments(self) -> int:
        """The number of segments of all classes."""
        return sum(count.segments for count in self.classes)

    @property
    def warnings(self) -> list[str]:
        """What looks wrong, each in one sentence with its remedy."""
        return [*self.notes, *suspicions(self)]

    def as_json(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return asdict(self) | {"warnings": self.warnings}


@dataclass(frozen=True)
class _Counts:
    """What is kept of one sample: for every segment its label, its pixels, whether it is a crowd,
    and its pixels by the annotation file, if that has them.
    """

    name: str
    size: tuple[int, int]
    labels: list[int]
    areas: list[int]
    crowd: list[bool]
    unlabelled: int
    stated_areas: list[float] | None


class _CountingReader(Dataset):
    """The counts of every sample, or the sentence that says why it cannot be read."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Counts | str:
        try:
            return _counts(self.dataset[index])
        except DataError as error:
            return str(error)


def _counts(sample: Sample) -> _Counts:
    if sample.masks.dim() == 3:
        areas = [int(mask.count_nonzero()) for mask in sample.masks]
        unlabelled = sample.size[0] * sample.size[1] - int(sample.masks.any(0).count_nonzero())
    else:
        places = sample.masks.clamp(min=-1).flatten() + 1  # from 1; 0 is no segment
        unlabelled, *areas = places.bincount(minlength=len(sample.labels) + 1).tolist()
    return _Counts(
        sample.name,
        sample.size,
        sample.labels.tolist(),
        areas,
        sample.crowd.tolist(),
        unlabelled,
        None if sample.areas is None else sample.areas.tolist(),
    )


def inspect(
    dataset: SegmentationDataset,
    workers: int = 0,
    notes: Sequence[str] = (),
    progress: bool = False,
) -> Inspection:
    """Read every image and annotation once, and count; bad files are listed, not raised.

    Args:
        dataset: opened with `skip_bad`, so that bad records are listed too.
        workers: processes that read; 0 is this process.
        notes: warnings that were given when the data set was opened.
        progress: whether to show a progress bar on stderr.
    """
    classes = [
        ClassCount(dataset.id2label[label], category, label in dataset.thing_label_ids)
        for label, category in enumerate(dataset.category_ids)
    ]
    errors = list(dataset.skipped)
    unlabelled_images: list[str] = []
    empty_masks: list[str] = []
    wrong_areas: list[str] = []
    heights: list[int] = []
    widths: list[int] = []
    areas: list[int] = []
    unlabelled_pixels = 0
    for counts in _read(dataset, workers, progress):
        if isinstance(counts, str):
            errors.append(counts)
            continue
        heights.append(counts.size[0])
        widths.append(counts.size[1])
        areas.extend(area for area in counts.areas if area)
        unlabelled_pixels += counts.unlabelled
        if not counts.labels:
            unlabelled_images.append(counts.name)
        empty_masks.extend(_add(counts, classes))
        wrong_areas.extend(_wrong_areas(counts, classes))
    names = Counter(dataset.name(index) for index in range(len(dataset)))
    numbers = sorted(dataset.category_ids)
    return Inspection(
        task=dataset.task,
        images=len(heights),
        errors=errors,
        classes=classes,
        pixels=sum(height * width for height, width in zip(heights, widths, strict=True)),
        unlabelled_pixels=unlabelled_pixels,
        unlabelled_images=unlabelled_images,
        empty_masks=empty_masks,
        wrong_areas=wrong_areas,
        duplicate_names=[name for name, times in names.items() if times > 1],
        category_gaps=[(a + 1, b - 1) for a, b in pairwise(numbers) if b - a > 1],
        heights=_spread(heights),
        widths=_spread(widths),
        areas=_spread(areas),
        small_segments=sum(area < SMALL_AREA for area in areas),
        notes=list(notes),
    )


def _read(dataset: SegmentationDataset, workers: int, progress: bool) -> Iterator[_Counts | str]:
    loader = DataLoader(_CountingReader(dataset), batch_size=None, num_workers=workers)
    return iter(tqdm(loader, "inspecting", len(dataset), unit="image", disable=not progress))


def _add(counts: _Counts, classes: list[ClassCount]) -> Iterator[str]:
    """Count the segments of an image under their classes; yields the empty ones."""
    height, width = counts.size
    for label in set(counts.labels):
        classes[label].images += 1
    for label, area, crowd in zip(counts.labels, counts.areas, counts.crowd, strict=True):
        count = classes[label]
        count.segments += 1
        count.crowds += crowd
        count.pixels += area
        count.full += area == height * width
        if not area:
            yield f"{counts.name}: {count.name}"


def _wrong_areas(counts: _Counts, classes: list[ClassCount]) -> Iterator[str]:
    for label, area, stated in zip(
        counts.labels, counts.areas, counts.stated_areas or counts.areas, strict=True
    ):
        larger = max(area, stated)
        # The area of a small polygon is not the number of pixels whose centres it covers.
        if larger > SMALL_AREA and abs(area - stated) > larger / 2:
            yield f"{counts.name}: {classes[label].name}"


def _spread(numbers: Sequence[int]) -> Spread | None:
    if not numbers:
        return None
    return Spread(min(numbers), statistics.median(numbers), max(numbers))


# The report.


def report(found: Inspection) -> str:
    """An inspection as text: every error, the classes, a summary, and every warning.

    What follows the errors fits on a screen, however many classes there are.
    """
    parts = [_class_table(found), _summary(found)]
    if found.errors:
        parts.insert(0, "\n".join(["errors:", *found.errors]))
    if found.warnings:
        parts.append("\n".join(["warnings:", *found.warnings]))
    return "\n\n".join(parts)


def _class_table(found: Inspection) -> str:
    """A line per class; of many classes those that occur the most and the least often."""
    rows = list(enumerate(found.classes))
    if len(rows) > _MAX_ROWS:
        rows = [row for row in rows if row[1].segments]
        rows.sort(key=lambda row: -row[1].segments)
    if len(rows) > _MAX_ROWS:
        rows = rows[:_FREQUENT_ROWS] + rows[-_RARE_ROWS:]
    width = max(5, *(len(count.name) for count in found.classes))
    lines = [
        f"{'label':>5}  {'id':>5}  {'class':<{width}}  kind   {'images':>8}  {'segments':>8}"
        f"  {'crowds':>6}  {'pixels':>7}"
    ]
    for label, count in rows:
        share = count.pixels / max(1, found.pixels)
        lines.append(
            f"{label:>5}  {count.category_id:>5}  {count.name:<{width}}"
            f"  {'thing' if count.is_thing else 'stuff'}  {count.images:>8}  {count.segments:>8}"
            f"  {count.crowds:>6}  {share:>7.2%}"
        )
    if left_out := len(found.classes) - len(rows):
        unseen = sum(not count.segments for count in found.classes)
        place = _FREQUENT_ROWS if unseen < left_out else len(rows)
        lines.insert(
            place + 1, f"  ... {left_out} more classes, {unseen} of them without a segment"
        )
    return "\n".join(lines)


def _summary(found: Inspection) -> str:
    segments = f"{found.segments}"
    if found.areas:
        segments += (
            f", area {_text(found.areas, ' pixels')}; {found.small_segments} smaller than 32x32, "
            f"{len(found.empty_masks)} without a pixel"
        )
    rows = [
        ("task", found.task),
        ("images", f"{found.images}"),
        ("errors", f"{len(found.errors)} (listed first)" if found.errors else "none"),
        ("classes", f"{len(found.classes)}, numbered {_numbers(found)}"),
        ("segments", segments),
        ("in no segment", f"{found.unlabelled_pixels / max(1, found.pixels):.2%} of all pixels"),
    ]
    if found.heights and found.widths:
        sizes = f"height {_text(found.heights)}, width {_text(found.widths)}"
        rows.insert(3, ("image size", sizes))
    return "\n".join(f"{name + ':':<15}{value}" for name, value in rows)


def _text(spread: Spread, unit: str = "") -> str:
    return f"{spread.min} to {spread.max}{unit} (median {spread.median:g})"


def _numbers(found: Inspection) -> str:
    """The numbers of the classes in the annotation files, and the first few gaps."""
    numbers = [count.category_id for count in found.classes]
    text = f"{min(numbers)} to {max(numbers)}"
    gaps = [str(a) if a == b else f"{a}-{b}" for a, b in found.category_gaps]
    if len(gaps) > _MAX_GAPS:
        gaps = [*gaps[:_MAX_GAPS], f"... ({len(gaps)} gaps)"]
    return f"{text} without {', '.join(gaps)}" if gaps else text
