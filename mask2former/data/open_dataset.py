"""A path -> the data set that is there, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former.data.dataset import SegmentationDataset, Splits
from mask2former.data.formats import (
    cityscapes,
    coco_json,
    coco_splits,
    huggingface_datasets,
    label_folder,
    yolo,
)
from mask2former.data.task import as_task
from mask2former.io.errors import DataError

__all__ = ["as_task", "find_dataset", "open_dataset"]

_Option = Literal["images", "reduce_labels"]
# In the order in which they are looked for, each with the option that is its own.
_FORMATS: tuple[tuple[Any, _Option | None], ...] = (
    (huggingface_datasets, "reduce_labels"),
    (cityscapes, None),
    (coco_splits, "images"),
    (yolo, None),
    (label_folder, "reduce_labels"),
)
_KNOWN = (
    "COCO instances or panoptic JSON files, YOLO's data.yaml, a folder of images beside a folder "
    "of label maps as PNG (images/ and annotations/), Cityscapes' leftImg8bit/ and gtFine/, or a "
    "folder saved by Hugging Face datasets"
)


@dataclass(frozen=True)
class FoundDataset:
    """A data set whose format is known. A first opening reads nothing again that was read for this.

    Attributes:
        path: its folder or annotation file.
        splits: what opens each split, by name; "all" where there are none.
        option: the argument of `open` that only its format takes.
    """

    path: Path
    splits: Splits
    option: _Option | None

    def open(
        self,
        split: str | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        reduce_labels: bool = False,
        skip_bad: bool = False,
    ) -> SegmentationDataset:
        """Open a split; `open_dataset` says what the arguments are and what is raised."""
        path, split = self.path, self._choose(split)
        options: dict[str, Any] = {"skip_bad": skip_bad}
        if images is not None and self.option != "images":
            raise ValueError(
                f"images (--images) is for COCO files, but {path} says itself where its images "
                "are; leave it out."
            )
        if reduce_labels and self.option != "reduce_labels":
            raise ValueError(
                f"reduce_labels (--reduce-labels) is for semantic label maps, and {path} has none; "
                "leave it out."
            )
        if images is not None:
            options["images"] = _existing_folder(Path(images))
        if reduce_labels:
            options["reduce_labels"] = True
        with _clear_os_errors(path):
            dataset = self.splits[split](**options)
        if len(dataset) == 0:
            bad, why = dataset.skipped, "; check the files."
            if bad:
                why = f"; of {len(bad)} bad records the first: {bad[0]}"
            raise DataError(f"{path} has no image in {split!r} that could be used{why}")
        return dataset

    def _choose(self, split: str | None) -> str:
        names = list(self.splits)
        if split is None and self.path.suffix.lower() == ".json":
            return coco_json.split_of(self.path)
        if split is None and len(names) == 1:
            return names[0]
        wanted = split or "train"
        if wanted in names:
            return wanted
        # "val" is "val2017" in COCO, "valid" in Roboflow's exports, "validation" on the hub.
        alike = [name for name in names if name.startswith(wanted)]
        if len(alike) == 1:
            return alike[0]
        has = f"it has {', '.join(names)}" if names else "it names none"
        raise DataError(f"{self.path} has no split {wanted!r}; {has}.")


def open_dataset(
    path: str | os.PathLike[str],
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    reduce_labels: bool = False,
    skip_bad: bool = False,
) -> SegmentationDataset:
    """Open annotated images in any of the formats of `mask2former.data`.

    Args:
        path: the data set's folder, or its annotation file (JSON, YAML). A folder with COCO's files
            for instances and for panoptic segmentation needs the file; of "instances_train.json",
            "instances_val.json" beside it is another split.
        split: "train" for example, which also means "train2017" or "training" where there is no
            other. Default: the only one, or else the train one; of a file, its own.
        images: the folder of images, where a COCO file's is elsewhere than beside it.
        reduce_labels: 0 is void in semantic label maps and classes start at 1, as in ADE20K.
        skip_bad: leave out records that are found bad at opening and list them in `skipped`. A
            record that is found bad when its sample is read raises DataError all the same, for the
            caller to pass over.

    Raises:
        DataError: there is no such path or split, nothing known is there, a file of annotations is
            damaged, or a record is bad and `skip_bad` is off.
        ValueError: `images` or `reduce_labels` do not apply to the format.
    """
    found = find_dataset(path)
    return found.open(split, images=images, reduce_labels=reduce_labels, skip_bad=skip_bad)


def find_dataset(path: str | os.PathLike[str]) -> FoundDataset:
    """Recognise the data set in a folder or of an annotation file, to open several of its splits.

    Raises:
        DataError: there is no such path, or nothing known is there.
    """
    path = Path(path)
    with _clear_os_errors(path):
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path.")
        for form, option in [_file_format(path)] if path.is_file() else _FORMATS:
            splits = form.find_splits(path)
            if splits or path.is_file():
                return FoundDataset(path, splits, option)
    raise DataError(f"{path} holds no data set of a known format: {_KNOWN}.")


def _file_format(path: Path) -> tuple[Any, _Option | None]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise DataError(f"{path} is no annotation file; give {_KNOWN}.")
    return (coco_splits, "images") if suffix == ".json" else (yolo, None)


@contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename or path} cannot be read ({reason}); check path and permissions."
        ) from error


def _existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images; check the path.")
    return folder
