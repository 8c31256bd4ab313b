"""COCO panoptic files: a JSON file of segments, and PNG files whose colours are segment ids.

Source of the format: https://cocodataset.org/#format-data, section 4 (panoptic segmentation).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset
from mask2former.data.formats.coco import check_crowd, check_measures
from mask2former.data.formats.coco_json import (
    CocoFile,
    ImageEntry,
    field,
    find_images,
    path_of,
    read_categories,
    read_images,
    values_of,
)
from mask2former.data.records import BadRecords, Listing, PackedRecords, read_pixels
from mask2former.images.read import open_image
from mask2former.images.visualization import rgb_to_id_map
from mask2former.io.errors import DataError

_VOID_ID = 0  # the colour of pixels that belong to no segment


def png_folder(file: Path) -> Path | None:
    """The folder of a panoptic file's PNG files, which has its name, if there is one."""
    folders = (file.parent / file.stem, file.parent.parent / file.stem)
    return next((folder for folder in folders if folder.is_dir()), None)


class CocoPanoptic(SegmentationDataset):
    """The segments of a COCO panoptic file.

    Args:
        file: the JSON file.
        images: the folder of images; looked for if None.
        skip_bad: leave out images whose record or annotation is bad.

    Raises:
        DataError: the file is not what it should be; or a record is not, unless `skip_bad`.
    """

    task = "panoptic"

    def __init__(self, file: CocoFile, images: Path | None = None, skip_bad: bool = False) -> None:
        image_list, annotations, categories = file.lists()
        self.file = path = file.path
        maps = png_folder(path)
        if maps is None:
            raise DataError(f"{path} has no folder {path.stem} beside it; put its PNG files there.")
        categories = read_categories(categories, _used(annotations), path)
        self.category_ids = [category["id"] for category in categories]
        self.id2label = {label: category["name"] for label, category in enumerate(categories)}
        self.thing_label_ids = [
            label for label, category in enumerate(categories) if _is_thing(category, path)
        ]
        bad = BadRecords(skip_bad)
        folder = images or find_images(image_list, path, not_here=maps)
        entries = read_images(image_list, folder, path, bad)
        listed = values_of(image_list, "id")
        records = self._read_annotations(annotations, entries, listed, maps, bad)
        self._require_all(entries, annotations, bad)
        self._records = PackedRecords(records)
        self._names = PackedRecords(record[0].name for record in records)
        self.skipped = bad.reasons

    def _read_annotations(
        self,
        annotations: list[Any],
        entries: dict[Any, ImageEntry],
        listed: set[Any],
        maps: Path,
        bad: BadRecords,
    ) -> list[tuple]:
        """(image, path of the PNG file, segments) of every annotation."""
        labels = {number: label for label, number in enumerate(self.category_ids)}
        listing, records, seen = Listing(), [], set()
        for annotation in annotations:
            with bad:
                image = field(annotation, "image_id", (int, str), f"{self.file}: an annotation")
                where = f"{self.file}: the annotation of image {image}"
                if image not in entries:
                    if image in listed:
                        continue  # of an image that was left out, which is counted
                    raise DataError(f"{where} is of an image that is not listed.")
                if image in seen:
                    raise DataError(f"{where} is not its only one.")
                name = field(annotation, "file_name", str, where)
                path = path_of(name, maps, listing.has)
                if path is None:
                    raise DataError(f"{where}: there is no file {os.path.normpath(maps / name)}.")
                segments = _segments(annotation, labels, where)
                seen.add(image)
                records.append((entries[image], Path(path), segments))
        return records

    def _require_all(
        self, entries: dict[Any, ImageEntry], annotations: list[Any], bad: BadRecords
    ) -> None:
        """Whether every image has an annotation, good or bad."""
        annotated = values_of(annotations, "image_id")
        for number, entry in entries.items():
            with bad:
                if number not in annotated:
                    raise DataError(
                        f"{self.file}: image {number} ({entry.name}) has no annotation."
                    )

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        entry, path, segments = self._records[index]
        image = read_pixels(entry.path, entry.size, f"its entry in {self.file}")
        ids = _read_ids(path, entry.size)
        numbers = [number for number, *_ in segments]
        masks = index_map(ids, numbers, path, f"{self.file}: image {entry.name}")
        labels = torch.tensor([label for _, label, *_ in segments], dtype=torch.int64)
        crowd = torch.tensor([crowd for _, _, crowd, _ in segments], dtype=torch.bool)
        areas = [area for *_, area in segments]
        known = None if None in areas else torch.tensor(areas, dtype=torch.float64)
        return Sample(entry.name, image, masks, labels, crowd, known)


def _is_thing(category: dict[str, Any], file: Path) -> bool:
    value = category.get("isthing")
    if value not in (0, 1):
        raise DataError(
            f"{file}: category {category['id']} has {value!r} as 'isthing'; give 1 to things, "
            "whose objects are told apart, and 0 to stuff."
        )
    return bool(value)


def _used(annotations: list[Any]) -> set[int | str]:
    """Category ids that occur in the annotations."""
    segments = (a.get("segments_info") for a in annotations if isinstance(a, dict))
    segment_lists = (entry for entry in segments if isinstance(entry, list))
    return set().union(*(values_of(entry, "category_id") for entry in segment_lists))


def _segments(annotation: dict[str, Any], labels: dict[int, int], where: str) -> list[tuple]:
    """(id, label, crowd, area) of the segments of an annotation."""
    segments, seen = [], set()
    for segment in field(annotation, "segments_info", list, where):
        number = field(segment, "id", int, f"{where}: a segment")
        named = f"{where}: segment {number}"
        category = field(segment, "category_id", int, named)
        if category not in labels:
            raise DataError(f"{named} has category_id {category}, which is not listed.")
        if number in seen or not _VOID_ID < number < 2**24:
            what = "there twice" if number in seen else f"out of range, 1 to {2**24 - 1}"
            raise DataError(f"{named} is {what}.")
        seen.add(number)
        crowd, area = check_crowd(segment, named), check_measures(segment, named)
        segments.append((number, labels[category], crowd, area))
    return segments


def _read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The segment ids, int32 (height, width), of a PNG file."""
    colours = open_image(path)
    if colours.mode not in ("RGB", "RGBA"):
        raise DataError(
            f"{path} is an image of mode {colours.mode}, but a panoptic PNG file has RGB colours "
            "that are segment ids, id = R + 256 G + 65536 B; write it again."
        )
    if (colours.height, colours.width) != tuple(size):
        raise DataError(
            f"{path} is {colours.height}x{colours.width} (height x width) but its image is "
            f"{size[0]}x{size[1]}; write it again at that size, upright if the image is turned by "
            "an EXIF orientation."
        )
    return rgb_to_id_map(colours)


def index_map(ids: np.ndarray, listed: list[int], path: Path, where: str) -> torch.Tensor:
    """A map of segment ids as a map of their indices in `listed`, int32 (H, W).

    Raises:
        DataError: an id of the map other than 0 is not listed, or a listed one is not in the map.
    """
    ascending = np.array([_VOID_ID, *sorted(listed)], ids.dtype)
    # Five times as fast as `unique`, because there are few segments.
    index = np.searchsorted(ascending, ids).clip(max=len(listed))
    extra = ids[ascending[index] != ids]
    missing = ascending[1:][np.bincount(index.ravel(), minlength=len(ascending))[1:] == 0]
    if extra.size:
        raise DataError(
            f"{where}: segment {extra.min()} has pixels in {path} but is not listed; list it."
        )
    if missing.size:
        raise DataError(
            f"{where}: segment {missing.min()} is listed but has no pixel in {path}; remove it."
        )
    table = np.array([VOID, *np.argsort(listed)], np.int32)
    return torch.from_numpy(table[index])
