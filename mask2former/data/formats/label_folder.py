"""A folder of images beside a folder of semantic label maps, one number for every pixel.

images/NAME.jpg          annotations/NAME.png
images/SPLIT/NAME.jpg    annotations/SPLIT/NAME.png    (ADEChallengeData2016)
SPLIT/images/NAME.jpg    SPLIT/masks/NAME.png
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from mask2former.data.dataset import Sample, SegmentationDataset, Splits
from mask2former.data.formats.class_numbers import ClassNumbers, find_class_numbers
from mask2former.data.label_maps import class_segments, read_label_map
from mask2former.data.records import BadRecords, PackedRecords, files_below, read_pixels
from mask2former.images.read import IMAGE_SUFFIXES
from mask2former.images.resize import size_of
from mask2former.io.errors import DataError

IMAGE_FOLDERS = ("images", "image", "imgs", "img_dir", "JPEGImages")
LABEL_FOLDERS = (
    *("annotations", "labels", "masks", "annotation", "label", "mask", "ann_dir"),
    "SegmentationClass",
)
# Formats that keep every number as it is.
LABEL_SUFFIXES = (".bmp", ".gif", ".pgm", ".png", ".tif", ".tiff")
# What a label map may be called beyond the name of its image.
_LABEL_ENDS = ("", "_mask", "_label")
ONLY_SPLIT = "all"


class Folders(NamedTuple):
    """Where the images of a split and their label maps are."""

    images: Path
    labels: Path


def find_splits(root: Path) -> Splits:
    """The splits in a folder, "all" where it has none. All have the same classes."""
    folders = _find_folders(root)

    @cache
    def numbers(reduce_labels: bool, skip_bad: bool) -> ClassNumbers:
        maps = [
            pair.labels / name
            for pair in folders.values()
            for names in _by_stem(pair.labels, LABEL_SUFFIXES).values()
            for name in names
        ]
        return find_class_numbers(root, maps, read_label_map, reduce_labels, skip_bad)

    def open_split(pair: Folders, *, reduce_labels: bool = False, skip_bad: bool = False):
        return LabelFolder(pair, numbers(reduce_labels, skip_bad), skip_bad)

    return {split: partial(open_split, pair) for split, pair in folders.items()}


def _find_folders(root: Path) -> dict[str, Folders]:
    """The pairs of folders below a folder by split."""
    pair = _pair(root)
    if pair is None:
        below = {folder.name: _pair(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
        return {split: pair for split, pair in below.items() if pair and _has_maps(pair.labels)}
    inside = sorted(pair.images.iterdir())
    splits = {
        folder.name: Folders(folder, pair.labels / folder.name)
        for folder in inside
        if folder.is_dir() and (pair.labels / folder.name).is_dir()
    }
    if not splits or any(_is_image(file) for file in inside):
        splits = {ONLY_SPLIT: pair}
    return {split: pair for split, pair in splits.items() if _has_maps(pair.labels)}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _pair(root: Path) -> Folders | None:
    images = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
    labels = [root / name for name in LABEL_FOLDERS if (root / name).is_dir()]
    if not images or not labels:
        return None
    # Beside label maps there may be labels of another kind, polygons in text files for example.
    return Folders(images[0], next((folder for folder in labels if _has_maps(folder)), labels[0]))


def _has_maps(folder: Path) -> bool:
    return any(True for _ in files_below(folder, LABEL_SUFFIXES))


class LabelFolder(SegmentationDataset):
    """Images and their semantic label maps.

    Args:
        folders: of both.
        numbers: what the maps hold.
        skip_bad: leave out images without a label map, and maps without an image.

    Raises:
        DataError: there are some, unless `skip_bad`.
    """

    task = "semantic"

    def __init__(self, folders: Folders, numbers: ClassNumbers, skip_bad: bool = False) -> None:
        self.folders, self.numbers = folders, numbers
        self.id2label = dict(enumerate(numbers.names))
        self.category_ids = list(numbers.values)
        self.thing_label_ids = []
        bad = BadRecords(skip_bad)
        self._records = PackedRecords(_pairs(folders, bad))
        self.skipped = bad.reasons

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return self._records[index][0]

    def __getitem__(self, index: int) -> Sample:
        name, label_name = self._records[index]
        image = read_pixels(self.folders.images / name)
        path = self.folders.labels / label_name
        values = read_label_map(path, size_of(image))
        masks, labels = class_segments(self.numbers.classes_of(values, str(path)))
        return Sample(name, image, masks, labels, torch.zeros(len(labels), dtype=torch.bool))


def _pairs(folders: Folders, bad: BadRecords) -> list[tuple[str, str]]:
    """Names of images and of their label maps, relative to their folders, sorted."""
    images = _by_stem(folders.images, IMAGE_SUFFIXES)
    maps = _by_stem(folders.labels, LABEL_SUFFIXES)
    pairs, taken = [], set()
    for stem, names in images.items():
        with bad:
            if len(names) > 1:
                raise DataError(
                    f"{folders.images} has {names[0]} and {names[1]}, which would share a label "
                    "map; rename one."
                )
            # A map with an image's whole name is that image's: 1_label.png is for 1_label.jpg.
            own = [stem + end for end in _LABEL_ENDS if stem + end in maps]
            own = [name for name in own if name == stem or name not in images]
            taken.update(own)
            found = [name for label_stem in own for name in maps[label_stem]]
            if len(found) != 1:
                what = f"more than one: {', '.join(found)}" if found else "none"
                raise DataError(
                    f"{folders.images / names[0]} must have one label map {stem}.png in "
                    f"{folders.labels}, but it has {what}."
                )
            pairs.append((names[0], found[0]))
    for stem, names in maps.items():
        with bad:
            if stem not in taken and stem not in images:
                raise DataError(f"{folders.labels / names[0]} has no image in {folders.images}.")
    return pairs


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of the files with such suffixes, relative to the folder, by name without suffix."""
    found: dict[str, list[str]] = {}
    for file in files_below(folder, suffixes):
        name = file.relative_to(folder)
        found.setdefault(name.with_suffix("").as_posix(), []).append(name.as_posix())
    return {stem: sorted(found[stem]) for stem in sorted(found)}
