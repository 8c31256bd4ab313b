"""COCO instances files: images, categories, and objects as polygons or run lengths.

Source of the format: https://cocodataset.org/#format-data, and Roboflow's export of it, a file
_annotations.coco.json among the images of each split.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.data.formats.coco_json import (
    CocoFile,
    ImageEntry,
    field,
    find_images,
    read_categories,
    read_images,
    values_of,
)
from mask2former.data.formats.coco_mask import (
    MOST,
    Segmentation,
    check_polygon,
    check_run_lengths,
    decode,
    require_mask_api,
)
from mask2former.data.records import BadRecords, PackedRecords, read_pixels
from mask2former.io.errors import DataError


class CocoInstances(SegmentationDataset):
    """The objects of a COCO instances file; images without any are kept.

    Args:
        file: the JSON file.
        images: the folder of images; looked for if None.
        skip_bad: leave out bad images and annotations. An annotation with good polygons keeps
            these.

    Raises:
        DataError: the file is not what it should be; or a record is not, unless `skip_bad`.
    """

    task = "instance"

    def __init__(self, file: CocoFile, images: Path | None = None, skip_bad: bool = False) -> None:
        require_mask_api()
        image_list, annotations, categories = file.lists()
        self.file = path = file.path
        categories = read_categories(categories, values_of(annotations, "category_id"), path)
        self.category_ids = [category["id"] for category in categories]
        self.id2label = {label: category["name"] for label, category in enumerate(categories)}
        self.thing_label_ids = list(self.id2label)
        bad = BadRecords(skip_bad)
        folder = images or find_images(image_list, path)
        entries = read_images(image_list, folder, path, bad)
        listed = values_of(image_list, "id")
        objects = self._read_annotations(annotations, entries, listed, bad)
        self._records = PackedRecords(
            (entry, objects.get(number, [])) for number, entry in entries.items()
        )
        self._names = PackedRecords(entry.name for entry in entries.values())
        self.skipped = bad.reasons

    def _read_annotations(
        self, annotations: list[Any], entries: dict[Any, ImageEntry], listed: set, bad: BadRecords
    ) -> dict[Any, list[tuple]]:
        """(annotation id, label, crowd, area, segmentation) of the annotations of every image."""
        labels = {number: label for label, number in enumerate(self.category_ids)}
        objects = defaultdict(list)
        for index, annotation in enumerate(annotations):
            with bad:
                number = annotation.get("id") if isinstance(annotation, dict) else None
                where = f"{self.file}: annotation {f'number {index}' if number is None else number}"
                image = field(annotation, "image_id", (int, str), where)
                if image not in entries:
                    if image in listed:
                        continue  # of an image that was left out, which is counted
                    raise DataError(f"{where} is of image {image}, which is not listed.")
                entry = entries[image]
                where = f"{where} (image {image}, {entry.name})"
                category = field(annotation, "category_id", int, where)
                if category not in labels:
                    raise DataError(f"{where} has category_id {category}, which is not listed.")
                objects[image].append(
                    (
                        number,
                        labels[category],
                        check_crowd(annotation, where),
                        check_measures(annotation, where),
                        check_segmentation(annotation, entry.size, where, bad),
                    )
                )
        return objects

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        entry, objects = self._records[index]
        where = f"{self.file}: annotation"
        image = read_pixels(entry.path, entry.size, f"its entry in {self.file}")
        masks = np.zeros((len(objects), *entry.size), bool)
        for mask, (number, *_, segmentation) in zip(masks, objects, strict=True):
            mask[:] = decode(segmentation, entry.size, f"{where} {number} ({entry.name})")
        labels = torch.tensor([label for _, label, *_ in objects], dtype=torch.int64)
        crowd = torch.tensor([crowd for _, _, crowd, *_ in objects], dtype=torch.bool)
        areas = [area for _, _, _, area, _ in objects]
        known = None if None in areas else torch.tensor(areas, dtype=torch.float64)
        return Sample(entry.name, image, torch.from_numpy(masks), labels, crowd, known)


def check_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether an annotation is a crowd; DataError if its "iscrowd" is neither 0 nor 1."""
    value = annotation.get("iscrowd")
    if value not in (None, 0, 1):
        raise DataError(
            f"{where} has {value!r:.40} as 'iscrowd'; give 1 to a region of many objects that are "
            "not told apart, and 0 to one object."
        )
    return bool(value)


def check_measures(annotation: dict[str, Any], where: str) -> float | None:
    """The area of an annotation, if it has one; DataError if that or its box is negative."""
    area, box = annotation.get("area"), annotation.get("bbox")
    if area is not None and not (_is_finite(area) and area >= 0):
        raise DataError(f"{where} has the area {area!r:.40}.")
    if (
        box is not None
        and not (
            isinstance(box, list)
            and len(box) in (0, 4)  # [] where a tool knows none
            and all(map(_is_finite, box))
            and all(side >= 0 for side in box[2:])
        )
    ):
        raise DataError(f"{where} has the bbox {box!r:.60}, not x, y, width, height.")
    return area


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and -MOST < value < MOST


def check_segmentation(
    annotation: dict[str, Any], size: tuple[int, int], where: str, bad: BadRecords
) -> Segmentation:
    """The polygons or run lengths of an annotation.

    Args:
        annotation: that has them as "segmentation".
        size: height and width of its image in pixels.
        where: begins the messages.
        bad: whether bad polygons are left out where there are good ones, and which were.

    Raises:
        DataError: they are not what they should be.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        check_run_lengths(segmentation, size, where)
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where} has no segmentation; a box alone is not enough.")
    good, reasons = [], []
    for polygon in segmentation:
        try:
            check_polygon(polygon, size, where)
        except DataError as error:
            if not bad.skip:
                raise
            reasons.append(str(error))
        else:
            good.append(polygon)
    if not good:
        raise DataError(reasons[0])
    bad.reasons.extend(reasons)
    return good
