"""A path -> the data set that is there, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask2former.data.dataset import SegmentationDataset
from mask2former.data.formats import (
    cityscapes,
    coco,
    coco_json,
    coco_panoptic,
    huggingface_datasets,
    label_folder,
    yolo,
)
from mask2former.data.task import as_task
from mask2former.io.errors import DataError

__all__ = ["as_task", "available_splits", "open_dataset"]

# In the order in which they are looked for.
_FORMATS = {
    "huggingface": huggingface_datasets,
    "cityscapes": cityscapes,
    "panoptic": coco_panoptic,
    "instances": coco,
    "yolo": yolo,
    "label_folder": label_folder,
}
_KNOWN = (
    "COCO instances or panoptic JSON files, YOLO's data.yaml, a folder of images beside a folder "
    "of label maps as PNG (images/ and annotations/), Cityscapes' leftImg8bit/ and gtFine/, or a "
    "folder saved by Hugging Face datasets"
)


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
        skip_bad: leave out records that are found bad at opening and list them in `skipped`. One
            that is found bad when its sample is read raises DataError all the same, for the caller
            to pass over.

    Raises:
        DataError: there is no such path or split, nothing known is there, a file of annotations is
            damaged, or a record is bad and `skip_bad` is off.
        ValueError: `images` or `reduce_labels` do not apply to the format.
    """
    path = Path(path)
    kind, splits = _recognise(path)
    split = _choose(split, splits, path, kind)
    if images is not None and kind not in ("instances", "panoptic"):
        raise ValueError(
            f"images (--images) is for COCO files, but {path} says itself where its images are; "
            "leave it out."
        )
    if reduce_labels and kind not in ("huggingface", "label_folder"):
        raise ValueError(
            f"reduce_labels (--reduce-labels) is for semantic label maps, and {path} has none; "
            "leave it out."
        )
    folder = None if images is None else _existing_folder(Path(images))
    with _clear_os_errors(path):
        if kind == "instances":
            dataset = coco.CocoInstances(splits[split], folder, skip_bad)
        elif kind == "panoptic":
            dataset = coco_panoptic.CocoPanoptic(splits[split], folder, skip_bad)
        elif kind == "cityscapes":
            dataset = cityscapes.Cityscapes(splits[split], skip_bad)
        elif kind == "yolo":
            dataset = yolo.Yolo(splits[split], split, skip_bad)
        elif kind == "label_folder":
            dataset = label_folder.open_split(path, split, reduce_labels, skip_bad)
        else:
            dataset = huggingface_datasets.open_split(path, split, reduce_labels, skip_bad)
    if len(dataset) == 0:
        bad = dataset.skipped
        why = f"; of {len(bad)} bad records the first: {bad[0]}" if bad else "; check the files."
        raise DataError(f"{path} has no image in {split!r} that could be used{why}")
    return dataset


def available_splits(path: str | os.PathLike[str]) -> list[str]:
    """The names of a data set's splits; ["all"] where there are none.

    Raises:
        DataError: there is no such path, or nothing known is there.
    """
    return list(_recognise(Path(path))[1])


def _recognise(path: Path) -> tuple[str, Any]:
    """The format of a data set, and its splits: their names, for most formats with their places."""
    with _clear_os_errors(path):
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path.")
        if path.is_file():
            return _recognise_file(path)
        for kind, form in _FORMATS.items():
            if splits := form.find_splits(path):
                if kind == "panoptic":
                    _require_no_instances(path, splits)
                return kind, splits
    raise DataError(f"{path} holds no data set of a known format: {_KNOWN}.")


@contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename or path} cannot be read ({reason}); check path and permissions."
        ) from error


def _require_no_instances(path: Path, panoptic: dict[str, Path]) -> None:
    if any(file.name.startswith("instances_") for file in coco.find_splits(path).values()):
        raise DataError(
            f"{path} has COCO's annotations for instances and for panoptic segmentation; give one "
            f"of the files, {next(iter(panoptic.values()))} for example."
        )


def _recognise_file(path: Path) -> tuple[str, dict[str, Path]]:
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo", yolo.find_splits(path)
    if path.suffix.lower() != ".json":
        raise DataError(f"{path} is no annotation file; give {_KNOWN}.")
    if coco_panoptic.looks_like_panoptic(path):
        return "panoptic", coco_panoptic.find_splits(path)
    if not coco.looks_like_instances(path):
        raise DataError(
            f"{path} is no COCO file: it has no images, annotations and categories; choose another."
        )
    return "instances", coco.find_splits(path)


def _choose(split: str | None, splits: Iterable[str], path: Path, kind: str) -> str:
    names = list(splits)
    if split is None and path.is_file() and kind != "yolo":
        return coco_json.split_of(path)
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
    raise DataError(f"{path} has no split {wanted!r}; {has}.")


def _existing_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images; check the path.")
    return folder
