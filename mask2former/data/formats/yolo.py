"""YOLO segmentation labels: data.yaml, images/ and labels/, a text file of polygons for an image.

A line is the number of a class and then x1 y1 x2 y2 ..., in fractions of the image's width and
height. Source of the format: https://docs.ultralytics.com/datasets/segment/.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.data.dataset import Sample, SegmentationDataset, Splits
from mask2former.data.formats.coco_mask import check_polygon, decode, require_mask_api
from mask2former.data.records import BadRecords, Listing, PackedRecords, files_below, read_pixels
from mask2former.images.read import IMAGE_SUFFIXES
from mask2former.images.resize import size_of
from mask2former.io.errors import DataError

_SPLITS = ("train", "val", "test")
# Coordinates beyond the image by so much, in fractions of it, are rounding of the labelling tool.
_SLACK = 0.01


def find_splits(root: Path) -> Splits:
    """The splits that a YAML file has, given itself or in a folder."""
    files = [root] if root.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    for file in files:
        content = file.read_bytes()
        if root.is_file() or _looks_like_yolo(content):
            values = _parse_yaml(content, file)
            return {
                split: partial(Yolo, file, values, split) for split in _SPLITS if values.get(split)
            }
    return {}


def _looks_like_yolo(content: bytes) -> bool:
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    keys = {line.partition(":")[0].strip() for line in lines}
    return "names" in keys and not keys.isdisjoint(_SPLITS)


def _parse_yaml(content: bytes, file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid YAML ({error}); write it again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{file} must hold names, train and val, but it is no mapping.")
    return values


class Yolo(SegmentationDataset):
    """A split of a data set in YOLO's format; an image without a label file has no objects.

    Args:
        file: the YAML file.
        values: what is in it.
        split: "train", "val" or "test".
        skip_bad: leave out images that are listed but not there, and label files without an image.

    Raises:
        DataError: the YAML file or a folder it names is not what it should be; or there are such
            records, unless `skip_bad`. What is in label files is checked when a sample is read.
    """

    task = "instance"

    def __init__(
        self, file: Path, values: dict[str, Any], split: str, skip_bad: bool = False
    ) -> None:
        require_mask_api()
        names = _names(values, file)
        self.file = file
        self.id2label = dict(enumerate(names))
        self.category_ids = list(self.id2label)
        self.thing_label_ids = list(self.id2label)
        self._root, images = _images(values, split, file)
        listing, bad = Listing(), BadRecords(skip_bad)
        records = []
        for image in images:
            with bad:
                if not listing.has(image):
                    raise DataError(f"{file}: {split} lists {image}, but there is no such file.")
                labels = _label_file(image)
                records.append((image, labels if listing.has(labels) else None))
        self._records = PackedRecords(records)
        _find_orphans({image.parent: _label_file(image).parent for image in images}, bad)
        self.skipped = bad.reasons

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return Path(os.path.relpath(self._records[index][0], self._root)).as_posix()

    def __getitem__(self, index: int) -> Sample:
        path, label_file = self._records[index]
        image = read_pixels(path)
        size = size_of(image)
        objects = [] if label_file is None else read_polygons(label_file, len(self.id2label))
        masks = np.zeros((len(objects), *size), bool)
        for mask, (line, _, points) in zip(masks, objects, strict=True):
            where = f"{label_file}, line {line}"
            polygon = (points * (size[1], size[0])).ravel().tolist()
            check_polygon(polygon, size, where)
            mask[:] = decode([polygon], size, where)
        labels = torch.tensor([label for _, label, _ in objects], dtype=torch.int64)
        crowd = torch.zeros(len(objects), dtype=torch.bool)
        return Sample(self.name(index), image, torch.from_numpy(masks), labels, crowd)


def _names(values: dict[str, Any], file: Path) -> list[str]:
    """The names of the classes, which YAML may have as a list or by number."""
    names = values.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{file}: names must be numbered 0 to {len(names) - 1}, each once.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names must list the names of the classes.")
    names = [str(name) for name in names]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file} has the name {twice!r} twice; give every class its own.")
    return names


def _images(values: dict[str, Any], split: str, file: Path) -> tuple[Path, list[Path]]:
    """The folder that the paths in the YAML file are relative to, and the images of a split."""
    root = file.parent / _slashed(values.get("path") or ".")
    if not root.is_dir():  # a path on the machine that wrote it
        root = file.parent
    sources = values[split] if isinstance(values[split], list) else [values[split]]
    images: list[Path] = []
    for source in map(_slashed, sources):
        path = root / source
        if not path.exists() and source.startswith("../"):
            path = root / source[3:]  # Roboflow's are relative to a folder beside the file's
        if path.is_dir():
            images += files_below(path, IMAGE_SUFFIXES)
        elif path.is_file():
            lines = _lines(path)
            images += [path.parent / _slashed(line.strip()) for line in lines if line.strip()]
        else:
            raise DataError(
                f"{file}: {split} is {source}, but there is no {path}; correct the path."
            )
    if not images:
        raise DataError(f"{file}: there are no images in {split}, {values[split]}.")
    return root, sorted(Path(os.path.normpath(image)) for image in images)


def _slashed(path: Any) -> str:
    """A path that may have been written on Windows."""
    return str(path).replace("\\", "/")


def _label_file(image: Path) -> Path:
    """labels/ in place of the last images/ of the path."""
    parts = list(image.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _find_orphans(folders: dict[Path, Path], bad: BadRecords) -> None:
    """Whether every label file, in folders of images and of their labels, has an image."""
    for images, labels in folders.items():
        stems = {image.stem for image in images.iterdir()} if images.is_dir() else set()
        for file in sorted(labels.glob("*.txt")):
            with bad:
                # Labelling tools put the names of the classes beside the labels.
                if file.stem not in stems and file.name != "classes.txt":
                    raise DataError(f"{file} has no image.")


def read_polygons(file: Path, classes: int) -> list[tuple[int, int, np.ndarray]]:
    """(line from 1, class, points float64 (P, 2) as x, y in [0, 1]) of the objects of a label file.

    Raises:
        DataError: a line is not a class below `classes` and the points of a polygon.
    """
    objects = []
    for number, line in enumerate(_lines(file), start=1):
        fields = line.split()
        if fields:
            label, points = _read_line(fields, classes, f"{file}, line {number}")
            objects.append((number, label, points))
    return objects


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); write it again.") from error


def _read_line(fields: list[str], classes: int, where: str) -> tuple[int, np.ndarray]:
    try:
        label, points = float(fields[0]), np.array(fields[1:], np.float64)
    except ValueError as error:
        raise DataError(f"{where}: not numbers ({error}).") from error
    if label not in range(classes):
        raise DataError(
            f"{where}: class {fields[0]}, but the classes are 0 to {classes - 1}; are they "
            "numbered from 1?"
        )
    if len(points) == 4:
        raise DataError(f"{where}: a box, but a polygon of at least 3 points is needed.")
    if len(points) < 6 or len(points) % 2:
        raise DataError(
            f"{where}: {len(points)} coordinates; x and y of at least 3 points are needed."
        )
    if not ((points >= -_SLACK) & (points <= 1 + _SLACK)).all():  # false for nan, too
        raise DataError(f"{where}: coordinates must be fractions of the image, from 0 to 1.")
    return int(label), points.clip(0, 1).reshape(-1, 2)
