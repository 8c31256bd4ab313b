"""The records of a data set: the bad ones left out, the others kept in little memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.images.read import read_image
from mask2former.io.errors import DataError


class BadRecords:
    """Stops at the first bad record, or leaves bad ones out: `with bad: check one record`.

    Args:
        skip: whether to go on when the body raises a DataError.

    Attributes:
        reasons: one sentence for each record that was left out, naming file, record and reason.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.reasons: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, DataError):
            return False
        if not self.skip:
            raise DataError(
                f"{error} Mend it, or leave bad records out with --skip-bad (skip_bad=True)."
            ) from error
        self.reasons.append(str(error))
        return True


class PackedRecords(Sequence[Any]):
    """Python objects in one block of bytes, which worker processes share.

    A list of many small objects would be copied into every forked worker process of a loader,
    because reading an object changes its reference count and so the memory that it lies in
    (https://github.com/pytorch/pytorch/issues/13246). Spawned ones are sent a copy of everything
    but the memory of tensors.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        packed = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._edges = np.cumsum([0, *map(len, packed)])
        block = bytearray().join(packed)
        self._block = torch.from_numpy(np.frombuffer(block, np.uint8))

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Record {index} of {len(self)} was asked for.")
        index %= len(self)
        return pickle.loads(self._block.numpy()[self._edges[index] : self._edges[index + 1]].data)


class Listing:
    """Tells whether files exist with one listing for each folder, not one look for each file."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def has(self, path: str | os.PathLike[str]) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            is_folder = os.path.isdir(folder)
            self._names[folder] = set(os.listdir(folder)) if is_folder else set()
        return name in self._names[folder]


def files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """The files with such suffixes, in letters of any case, in a folder and in those below it.

    Links to folders are followed; hidden files are left out, of which macOS puts one beside each.
    """
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(parent, name)


def read_pixels(path: Path, size: tuple[int, int] | None = None, by: str = "") -> Tensor:
    """An image file as uint8 (3, H, W).

    Args:
        path: of the file.
        size: height and width that it must have; None for any.
        by: the file that says so, for the message.

    Raises:
        DataError: the file is missing, damaged, or of another size.
    """
    image = read_image(path)
    if size is not None and (image.height, image.width) != tuple(size):
        raise DataError(
            f"{path} is {image.height}x{image.width} (height x width) but {by} is for "
            f"{size[0]}x{size[1]}; was the image resized, or turned by its EXIF orientation?"
        )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
