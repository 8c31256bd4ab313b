"""Cityscapes as it is downloaded: leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/.

Source of the numbers: cityscapesScripts, helpers/labels.py, and of how *_gtFine_instanceIds.png
are read: preparation/createPanopticImgs.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset, Splits
from mask2former.data.label_maps import read_label_map
from mask2former.data.records import BadRecords, Listing, PackedRecords, read_pixels
from mask2former.images.resize import size_of
from mask2former.io.errors import DataError


class _Class(NamedTuple):
    id: int
    name: str
    is_thing: bool = False


# The 19 classes of the evaluation in the order of their trainIds.
CLASSES = (
    _Class(7, "road"),
    _Class(8, "sidewalk"),
    _Class(11, "building"),
    _Class(12, "wall"),
    _Class(13, "fence"),
    _Class(17, "pole"),
    _Class(19, "traffic light"),
    _Class(20, "traffic sign"),
    _Class(21, "vegetation"),
    _Class(22, "terrain"),
    _Class(23, "sky"),
    _Class(24, "person", True),
    _Class(25, "rider", True),
    _Class(26, "car", True),
    _Class(27, "truck", True),
    _Class(28, "bus", True),
    _Class(31, "train", True),
    _Class(32, "motorcycle", True),
    _Class(33, "bicycle", True),
)
_HIGHEST_ID = 33
# The number of an object is its class's times this, plus its index in the class. Smaller numbers
# are classes: stuff, or groups of things that were not told apart.
_OBJECTS = 1000

_IMAGE_END, _MAP_END = "_leftImg8bit.png", "_gtFine_instanceIds.png"


def find_splits(root: Path) -> Splits:
    """The splits in a folder that have images and annotations."""
    return {
        folder.name: partial(Cityscapes, folder)
        for folder in sorted(root.glob("leftImg8bit/*/"))
        if (root / "gtFine" / folder.name).is_dir()
    }


class Cityscapes(SegmentationDataset):
    """A split of Cityscapes, with the 19 classes of its evaluation; all else is void.

    Args:
        folder: leftImg8bit/SPLIT.
        skip_bad: leave out images without an annotation.

    Raises:
        DataError: there are no images, or one has no annotation, unless `skip_bad`.
    """

    task = "panoptic"

    def __init__(self, folder: Path, skip_bad: bool = False) -> None:
        self.folder = folder
        self.id2label = {label: entry.name for label, entry in enumerate(CLASSES)}
        self.category_ids = [entry.id for entry in CLASSES]
        self.thing_label_ids = [label for label, entry in enumerate(CLASSES) if entry.is_thing]
        bad, listing, records = BadRecords(skip_bad), Listing(), []
        for image in sorted(folder.glob(f"*/*{_IMAGE_END}")):
            with bad:
                truth = self._map_path(image)
                if not listing.has(truth):
                    raise DataError(f"{image} has no annotation {truth}.")
                records.append(image.relative_to(folder).as_posix())
        if not records:
            raise DataError(f"{folder} has no annotated images CITY/*{_IMAGE_END}; unpack them.")
        self._records = PackedRecords(records)
        self.skipped = bad.reasons

    def _map_path(self, image: Path) -> Path:
        truths = self.folder.parent.parent / "gtFine" / self.folder.name
        return truths / image.parent.name / (image.name.removesuffix(_IMAGE_END) + _MAP_END)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return self._records[index]

    def __getitem__(self, index: int) -> Sample:
        path = self.folder / self.name(index)
        image = read_pixels(path)
        truth = self._map_path(path)
        ids = read_label_map(truth, size_of(image))
        masks, labels, crowd = _segments(ids, truth)
        return Sample(self.name(index), image, masks, labels, crowd)


def _segments(ids: np.ndarray, path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index map, labels and crowd of the segments whose class is one of the 19, by id."""
    trained = {entry.id: label for label, entry in enumerate(CLASSES)}
    ids = ids.astype(np.int32, copy=False)
    if (lowest := int(ids.min())) < 0:
        raise _unknown(lowest, path)
    present = np.bincount(ids.ravel())
    table = np.full(len(present), VOID, np.int32)
    labels, crowd = [], []
    for number in np.flatnonzero(present).tolist():
        class_id = number // _OBJECTS if number >= _OBJECTS else number
        # The licence plate, class -1, appears as a large number where a tool wrote it as unsigned.
        if class_id > _HIGHEST_ID and number != 2**16 - 1:
            raise _unknown(number, path)
        if class_id in trained:
            table[number] = len(labels)
            labels.append(trained[class_id])
            crowd.append(number < _OBJECTS and CLASSES[trained[class_id]].is_thing)
    masks = torch.from_numpy(table[ids])
    return masks, torch.tensor(labels, dtype=torch.int64), torch.tensor(crowd, dtype=torch.bool)


def _unknown(number: int, path: Path) -> DataError:
    return DataError(
        f"{path} has the number {number}, but the classes of Cityscapes are 0 to {_HIGHEST_ID}; "
        "is it an instanceIds file?"
    )
