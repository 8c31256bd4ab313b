"""Which of COCO's annotation files are in a folder, and what opens each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mask2former.data.dataset import Splits
from mask2former.data.formats.coco import CocoInstances
from mask2former.data.formats.coco_json import ROBOFLOW_NAME, CocoFile, split_of
from mask2former.data.formats.coco_panoptic import CocoPanoptic, png_folder
from mask2former.io.errors import DataError


def find_splits(root: Path) -> Splits:
    """The splits in a folder, or of a file and the files of its kind beside it.

    A file is known by its name, instances_SPLIT.json, panoptic_SPLIT.json beside PNG files, or
    Roboflow's, and only else by what is in it.

    Raises:
        DataError: a file is not one of COCO's, or a folder has both kinds.
    """
    return _file_splits(CocoFile(root)) if root.is_file() else _folder_splits(root)


def _file_splits(file: CocoFile) -> Splits:
    path, kind = file.path, file.kind
    if kind is None:
        raise DataError(
            f"{path} is no COCO file: it has no images, annotations and categories; choose another."
        )
    siblings = []
    if path.name.startswith(f"{kind}_"):
        siblings = [*path.parent.glob(f"{kind}_*.json")]
    elif path.name == ROBOFLOW_NAME:
        siblings = [*path.parent.parent.glob(f"*/{ROBOFLOW_NAME}")]
    if kind == "panoptic":
        siblings = [sibling for sibling in siblings if png_folder(sibling)]
    files = {sibling: CocoFile(sibling) for sibling in siblings} | {path: file}
    return _openers(kind, [*files.values()])


def _folder_splits(root: Path) -> Splits:
    patterns = ("annotations/*.json", "*.json", f"*/{ROBOFLOW_NAME}")
    files = [CocoFile(path) for pattern in patterns for path in root.glob(pattern)]
    named = [file for file in files if file.path.name.startswith("instances_")]
    panoptic = [
        file
        for file in files
        if png_folder(file.path)
        and (file.path.name.startswith("panoptic_") or file.kind == "panoptic")
    ]
    if panoptic and named:
        raise DataError(
            f"{root} has COCO's annotations for instances and for panoptic segmentation; give one "
            f"of the files, {min(file.path for file in panoptic)} for example."
        )
    if panoptic:
        return _openers("panoptic", panoptic)
    named += [file for file in files if file.path.name == ROBOFLOW_NAME]
    return _openers("instances", named or [file for file in files if file.kind == "instances"])


def _openers(kind: str, files: list[CocoFile]) -> Splits:
    dataset = CocoPanoptic if kind == "panoptic" else CocoInstances
    files = sorted(files, key=lambda file: file.path)
    return {split_of(file.path): partial(dataset, file) for file in files}
