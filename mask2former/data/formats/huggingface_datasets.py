"""Folders that `save_to_disk` of Hugging Face datasets wrote.

Rows of two kinds are taken:

- semantic: an image and a label map, both columns of images, the map with one channel, as in
  scene_parse_150 and most segmentation data on the hub;
- instances: an image and "objects", a list with "category" (or "category_id") and "segmentation"
  (polygons as in COCO), and perhaps "iscrowd" and "area".
"""

from __future__ import annotations

from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mask2former.data.dataset import Sample, SegmentationDataset, Splits
from mask2former.data.formats.class_numbers import ClassNumbers, find_class_numbers, read_names
from mask2former.data.formats.coco import check_crowd, check_measures, check_segmentation
from mask2former.data.formats.coco_mask import decode, require_mask_api
from mask2former.data.formats.label_folder import ONLY_SPLIT
from mask2former.data.label_maps import class_segments, label_array
from mask2former.data.records import BadRecords
from mask2former.images.read import DECODING_ERRORS
from mask2former.images.resize import size_of
from mask2former.images.tensors import rgb_image
from mask2former.io.errors import DataError
from mask2former.io.files import read_json
from mask2former.io.optional import require_package

IMAGE_COLUMNS = ("image", "pixel_values", "img")
MAP_COLUMNS = (
    *("label", "labels", "annotation", "annotations", "mask", "segmentation_mask"),
    *("segmentation", "segmentation_map", "semantic_segmentation", "label_map"),
)


def find_splits(root: Path) -> Splits:
    """The splits in a folder, "all" where it has none."""
    if (root / "dataset_dict.json").is_file():
        splits = list(read_json(root / "dataset_dict.json").get("splits", []))
    elif (root / "dataset_info.json").is_file() and (root / "state.json").is_file():
        splits = [ONLY_SPLIT]
    else:
        return {}
    folder = _Folder(root)
    return {split: partial(folder.open, split) for split in splits}


class _Folder:
    """A folder in this format, loaded once for all its splits."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers = cache(self._find_numbers)

    @cached_property
    def splits(self) -> dict[str, Any]:
        require_package("datasets", f"Reading {self.root}", install="datasets")
        import datasets

        try:
            splits = datasets.load_from_disk(str(self.root))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.root} cannot be loaded ({error}); save it to disk again."
            ) from error
        if isinstance(splits, datasets.Dataset):
            return {ONLY_SPLIT: splits}
        return {str(name): rows for name, rows in splits.items()}

    def _find_numbers(self, label_map: str, reduce_labels: bool, skip_bad: bool) -> ClassNumbers:
        """The classes of all label maps, whose column is `label_map`."""
        columns = {split: rows.select_columns(label_map) for split, rows in self.splits.items()}
        maps = [(split, row) for split, rows in columns.items() for row in range(len(rows))]

        def read(index: tuple[str, int]) -> np.ndarray:
            split, row = index
            where = f"{self.root}, {split}, row {row}"
            return _label_array(_row(columns[split], row, where)[label_map], where, None)

        return find_class_numbers(self.root, maps, read, reduce_labels, skip_bad)

    def open(
        self, split: str, *, reduce_labels: bool = False, skip_bad: bool = False
    ) -> SegmentationDataset:
        """A split, as its columns tell."""
        import datasets

        root, rows = self.root, self.splits[split]
        features = rows.features
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        image = next((name for name in IMAGE_COLUMNS if name in images), None)
        label_map = next((name for name in MAP_COLUMNS if name in images), None)
        fields = _fields(features["objects"]) if "objects" in features else {}
        if image and "segments_info" not in features and label_map:
            numbers = self.numbers(label_map, reduce_labels, skip_bad)
            return SemanticRows(root, split, rows, (image, label_map), numbers)
        category = next((name for name in ("category", "category_id") if name in fields), None)
        if image and category and "segmentation" in fields:
            names = getattr(fields[category], "names", None) or read_names(root)[0]
            if names is None:
                raise DataError(
                    f"{root}: objects.{category} has no names; write them into "
                    f"{root / 'classes.txt'}, one per line."
                )
            return InstanceRows(root, split, rows, (image, category), names)
        raise DataError(
            f"{root} has the columns {', '.join(features)}; wanted are an image "
            f"({', '.join(images)} are) called {' or '.join(IMAGE_COLUMNS)}, and a label map "
            f"called {' or '.join(MAP_COLUMNS)}, or objects with category and segmentation. "
            "Rename columns, or save panoptic rows in COCO's format."
        )


def _fields(feature: Any) -> dict[str, Any]:
    """The fields of a column that is a list of records, or a record of lists."""
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, list) and inner:
        inner = inner[0]
    if not isinstance(inner, dict):
        return {}
    is_record = inner is feature
    return {k: getattr(v, "feature", v) if is_record else v for k, v in inner.items()}


def _records(lists: dict[str, list[Any] | None], where: str) -> list[dict[str, Any]]:
    """A record of lists as a list of records."""
    given = {key: values for key, values in lists.items() if values is not None}
    lengths = {key: len(values) for key, values in given.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{where} has objects whose fields differ in number ("
            + ", ".join(f"{number} of {key}" for key, number in lengths.items())
            + "); give every object each of them."
        )
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def _row(rows: Any, index: int, where: str) -> dict[str, Any]:
    try:
        return rows[index]
    except (OSError, Image.DecompressionBombError, *DECODING_ERRORS) as error:
        raise DataError(f"{where} cannot be decoded ({error}); save it again.") from error


def _pixels(image: Image.Image, where: str) -> Tensor:
    if image is None:
        raise DataError(f"{where} has no image; leave the row out.")
    return torch.from_numpy(np.array(rgb_image(image, where))).permute(2, 0, 1)


def _label_array(image: Any, where: str, size: tuple[int, int] | None) -> np.ndarray:
    if image is None:
        raise DataError(f"{where} has no label map; leave the row out.")
    return label_array(image, f"The label map of {where}", size)


class _Rows(SegmentationDataset):
    def __init__(self, root: Path, split: str, rows: Any) -> None:
        self.root, self.split, self.rows = root, split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.split} {index}"

    def _where(self, index: int) -> str:
        return f"{self.root}, {self.split}, row {index}"


class SemanticRows(_Rows):
    """Rows of an image and a label map.

    Args:
        root, split: for names and messages.
        rows: a `datasets.Dataset`.
        columns: names of the columns of images and of maps.
        numbers: what the maps hold.
    """

    task = "semantic"

    def __init__(
        self, root: Path, split: str, rows: Any, columns: tuple[str, str], numbers: ClassNumbers
    ) -> None:
        super().__init__(root, split, rows.select_columns(list(columns)))
        self.columns, self.numbers = columns, numbers
        self.id2label = dict(enumerate(numbers.names))
        self.category_ids = list(numbers.values)
        self.thing_label_ids = []

    def __getitem__(self, index: int) -> Sample:
        where = self._where(index)
        row = _row(self.rows, index, where)
        image = _pixels(row[self.columns[0]], where)
        values = _label_array(row[self.columns[1]], where, size_of(image))
        masks, labels = class_segments(self.numbers.classes_of(values, where))
        crowd = torch.zeros(len(labels), dtype=torch.bool)
        return Sample(self.name(index), image, masks, labels, crowd)


class InstanceRows(_Rows):
    """Rows of an image and its objects.

    Args:
        root, split: for names and messages.
        rows: a `datasets.Dataset`.
        columns: names of the column of images and of the objects' category.
        names: of the classes.
    """

    task = "instance"

    def __init__(
        self, root: Path, split: str, rows: Any, columns: tuple[str, str], names: list[str]
    ) -> None:
        require_mask_api()
        super().__init__(root, split, rows.select_columns([columns[0], "objects"]))
        self.columns = columns
        self.id2label = dict(enumerate(names))
        self.category_ids = list(self.id2label)
        self.thing_label_ids = list(self.id2label)

    def __getitem__(self, index: int) -> Sample:
        where = self._where(index)
        row = _row(self.rows, index, where)
        image = _pixels(row[self.columns[0]], where)
        objects = row["objects"] or []
        if isinstance(objects, dict):
            objects = _records(objects, where)
        masks = np.zeros((len(objects), *image.shape[-2:]), bool)
        read = [
            self._read(entry, mask, f"{where}, object {i}")
            for i, (entry, mask) in enumerate(zip(objects, masks, strict=True))
        ]
        labels = torch.tensor([label for label, _, _ in read], dtype=torch.int64)
        crowd = torch.tensor([crowd for _, crowd, _ in read], dtype=torch.bool)
        areas = [area for _, _, area in read]
        known = None if None in areas else torch.tensor(areas, dtype=torch.float64)
        return Sample(self.name(index), image, torch.from_numpy(masks), labels, crowd, known)

    def _read(
        self, entry: dict[str, Any], mask: np.ndarray, where: str
    ) -> tuple[int, bool, float | None]:
        """Label, crowd and area of an object, whose pixels are set in `mask`."""
        label = entry[self.columns[1]]
        if label not in self.id2label:
            raise DataError(
                f"{where} has the category {label}, but there are 0 to {len(self.id2label) - 1}."
            )
        segmentation = check_segmentation(entry, mask.shape, where, BadRecords(skip=False))
        mask[:] = decode(segmentation, mask.shape, where)
        return label, check_crowd(entry, where), check_measures(entry, where)
