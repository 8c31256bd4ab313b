"""Data set -> what is in it: counts, sizes, and every file that cannot be read."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.data.inspection.findings import SMALL_AREA, ClassCount, Inspection, Spread
from mask2former.data.inspection.suspicions import suspicions
from mask2former.io.errors import DataError


@dataclass(frozen=True)
class _Counts:
    """What is kept of one sample: label, area and crowd flag of every segment, and its area as the
    annotation file states it, if it does.
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
        segments = sample.masks.clamp(min=-1).flatten() + 1  # from 1; 0 is no segment
        unlabelled, *areas = segments.bincount(minlength=len(sample.labels) + 1).tolist()
    return _Counts(
        sample.name,
        sample.size,
        sample.labels.tolist(),
        areas,
        sample.crowd.tolist(),
        unlabelled,
        None if sample.areas is None else sample.areas.tolist(),
    )


def inspect_dataset(
    dataset: SegmentationDataset,
    workers: int = 0,
    notes: Sequence[str] = (),
    progress: bool = False,
) -> Inspection:
    """Read every image and annotation once, and count; bad files are listed, not raised.

    Args:
        dataset: opened with `skip_bad`, so that bad records are listed too.
        workers: processes that read; with 0, this process does.
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
    found = Inspection(
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
        warnings=[],
    )
    return replace(found, warnings=[*notes, *suspicions(found)])


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
