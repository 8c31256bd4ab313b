"""What COCO's instances and panoptic files have in common: the file, categories, images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former.data.records import BadRecords, Listing
from mask2former.io.errors import DataError
from mask2former.io.files import parse_json

# So many of a file's images are looked for to find the folder that they are in.
_PROBES = 20

ROBOFLOW_NAME = "_annotations.coco.json"

_KINDS = {int: "a whole number", str: "text", list: "a list"}


class CocoFile:
    """A JSON file that may be one of COCO's. Telling its kind and opening it read it once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: bytes | None = None

    def _read(self) -> bytes:
        if self._content is None:
            self._content = self.path.read_bytes()
        return self._content

    @property
    def kind(self) -> Literal["panoptic", "instances"] | None:
        """What the file annotates, broken as it may be; None if it is no file of COCO's."""
        content = self._read()
        if b'"segments_info"' in content:
            return "panoptic"
        keys = (b'"images"', b'"annotations"', b'"categories"')
        return "instances" if all(key in content for key in keys) else None

    def lists(self) -> list[list[Any]]:
        """Images, annotations and categories; DataError if one is missing."""
        values = parse_json(self._read(), self.path)
        self._content = None  # as large as the file, and a file is opened once
        return [
            field(values, key, list, f"{self.path}, a COCO file,")
            for key in ("images", "annotations", "categories")
        ]


@dataclass
class ImageEntry:
    """An image of the file: its path and (height, width)."""

    name: str
    path: Path
    size: tuple[int, int]


def field(record: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """A value of a JSON object; DataError if it is missing or of another type."""
    if not isinstance(record, dict):
        raise DataError(f"{where} must be an object, not a {type(record).__name__}.")
    value = record.get(key)
    if not isinstance(value, kinds) or isinstance(value, bool):
        if key not in record:
            raise DataError(f"{where} lacks {key!r}.")
        wanted = " or ".join(_KINDS[kind] for kind in (kinds if type(kinds) is tuple else [kinds]))
        raise DataError(f"{where} has {value!r:.40} as {key!r}, not {wanted}.")
    return value


def values_of(records: list[Any], key: str) -> set[int | str]:
    """The numbers and texts that records, some damaged perhaps, have under a key."""
    values = (record.get(key) for record in records if isinstance(record, dict))
    return {value for value in values if isinstance(value, (int, str))}


def split_of(file: Path) -> str:
    """The name of the split that an annotation file is for."""
    if file.name == ROBOFLOW_NAME:  # one in the folder of each split
        return file.parent.name
    kind, _, split = file.stem.partition("_")
    return split if kind in ("instances", "panoptic") and split else file.stem


def read_categories(
    categories: list[Any], used: set[int | str], file: Path
) -> list[dict[str, Any]]:
    """The checked categories in the order of their ids, as the classes are.

    Args:
        categories: of the file.
        used: category ids of its annotations.
        file: for messages.

    Raises:
        DataError: an id or a name is missing, or there twice.
    """
    parents = values_of(categories, "supercategory")
    kept, names = {}, set()
    for category in categories:
        number = field(category, "id", int, f"{file}: a category")
        name = field(category, "name", str, f"{file}: category {number}")
        # Roboflow lists the name of the project as a category that nothing belongs to.
        if category.get("supercategory") == "none" and name in parents and number not in used:
            continue
        if number in kept or name in names:
            what = f"the id {number}" if number in kept else f"the name {name!r}"
            raise DataError(f"{file} has {what} for two categories; give each its own.")
        kept[number] = category
        names.add(name)
    if not kept:
        raise DataError(f"{file} has no categories; list the categories of its annotations.")
    return [kept[number] for number in sorted(kept)]


def read_images(
    images: list[Any], folder: Path, file: Path, bad: BadRecords
) -> dict[int | str, ImageEntry]:
    """The images of the file by id, in its order. Images that are not in `folder` are bad."""
    entries: dict[int | str, ImageEntry] = {}
    names: dict[str, str] = {}  # by path
    listing = Listing()
    for image in images:
        with bad:
            number = field(image, "id", (int, str), f"{file}: an image")
            where = f"{file}: image {number}"
            name = field(image, "file_name", str, where)
            size = field(image, "height", int, where), field(image, "width", int, where)
            if min(size) < 1:
                raise DataError(f"{where} is {size[0]} high and {size[1]} wide.")
            if number in entries:
                raise DataError(f"{where} ({name}) has the id of {entries[number].name}.")
            path = path_of(name, folder, listing.has)
            if path is None:
                raise DataError(f"{where}: there is no file {os.path.normpath(folder / name)}.")
            if path in names:
                raise DataError(f"{where} is {name}, as another image is ({names[path]}).")
            names[path] = name
            entries[number] = ImageEntry(name, Path(path), size)
    return entries


def path_of(name: str, folder: Path, exists: Callable[[str], bool]) -> str | None:
    """The path of an image of this name below a folder; None if there is none.

    A name may have the backslashes of Windows. Of one that leads out of the folder, as on the
    machine that wrote it (Label Studio's "../../media/upload/1/a.jpg"), the last part will do.
    """
    slashed = name.replace("\\", "/")
    names = {name: None, slashed: None}  # in this order
    if slashed.startswith(("/", "../")) or slashed[1:2] == ":":
        names[slashed.rpartition("/")[2]] = None
    paths = (os.path.normpath(folder / each) for each in names if each)
    return next((path for path in paths if exists(path)), None)


def find_images(images: list[Any], file: Path, not_here: Path | None = None) -> Path:
    """The folder that the images of an annotation file are in.

    It may be the file's own folder, or a folder beside the file called "images" or like the split.
    For a file in a folder called "annotations" these are beside that folder. Else it is any
    folder there that has the images.

    Raises:
        DataError: none has.
    """
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = split_of(file)
    likely = [root / split, root / "images" / split, root / split / "images", root / "images"]
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir()]
    candidates = [
        folder
        for folder in dict.fromkeys([*likely, file.parent, root, *folders])
        if folder != not_here and folder.is_dir()
    ]
    if not images:
        raise DataError(f"{file} lists no images; export it again.")
    names = [image["file_name"] for image in images if isinstance(image, dict)
             and isinstance(image.get("file_name"), str)]  # fmt: skip
    probes = names[:: max(1, math.ceil(len(names) / _PROBES))]
    found = {
        folder: sum(path_of(name, folder, os.path.isfile) is not None for name in probes)
        for folder in candidates
    }
    if not any(found.values()):
        example = f"none has {probes[0]}" if probes else f"{file} lists none"
        raise DataError(
            f"The images of {file} are in none of the folders beside it ({example}); give their "
            "folder with --images (images=)."
        )
    return max(found, key=lambda folder: found[folder])
