"""Which class every number in semantic label maps stands for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.data.dataset import VOID
from mask2former.io.errors import DataError
from mask2former.io.files import read_json

# The number of void in label maps of up to 255 classes, and of more.
_VOID_NUMBER, _WIDE_VOID_NUMBER = 255, 65535
_ADE_NAMES = "objectInfo150.txt"


@dataclass(frozen=True)
class ClassNumbers:
    """The classes of semantic label maps.

    Attributes:
        names: of the classes.
        values: the number that each class has in the maps.
        void: numbers of pixels without a class.
        source: where the names are from, for messages.
    """

    names: list[str]
    values: list[int]
    void: tuple[int, ...]
    source: str

    def classes_of(self, numbers: np.ndarray, where: str) -> np.ndarray:
        """The class of every pixel or `VOID`, int32, for a map of integers.

        Raises:
            DataError: a number is neither a class nor void; `where` begins the message.
        """
        unknown = VOID - 1
        table = np.full(max(*self.values, *self.void) + 1, unknown, np.int32)
        table[list(self.void)] = VOID
        table[self.values] = np.arange(len(self.values))
        numbers = numbers.astype(np.int64)
        outside = (numbers < 0) | (numbers >= len(table))
        classes = table[np.where(outside, 0, numbers)]
        wrong = outside | (classes == unknown)
        if wrong.any():
            self._refuse(int(numbers[wrong].max()), where)
        return classes

    def _refuse(self, number: int, where: str) -> None:
        between = "to" if self.void else "and"  # without void there are 0 and 255 alone
        void = f", and void is {self.void[-1]}" if self.void else ""
        hint = ""
        if number == self.values[-1] + 1 and self.values[0] == 0:
            hint = " If the classes are numbered from 1 and 0 is void, use --reduce-labels."
        raise DataError(
            f"{where} has the number {number}, but the {len(self.names)} classes ({self.source}) "
            f"are {self.values[0]} {between} {self.values[-1]}{void}.{hint}"
        )


def find_class_numbers(
    folder: Path,
    maps: Iterable[Any],
    read: Callable[[Any], np.ndarray],
    reduce_labels: bool,
    skip_bad: bool,
) -> ClassNumbers:
    """The classes of all the label maps of a data set.

    Their names are in a file in `folder`: classes.txt or labels.txt with one per line,
    id2label.json with {"0": name, ...}, or ADE20K's objectInfo150.txt. Without one the classes are
    numbered up to the highest number in the maps, all of which are read for this.

    The first name belongs to number 0; with `reduce_labels` to number 1, and 0 is void. 255 is void
    (65535, where there are more classes than 8 bits can number). But where the maps hold nothing
    but 0 and 255 and there are two names or no file of names, 255 is foreground, class 1. As void
    it would leave one class and nothing to learn. That is said in a warning.

    Args:
        folder: of the data set.
        maps: all label maps of all splits, so that these have the same classes.
        read: from one of `maps` to its array of integers.
        reduce_labels: whether 0 is void and classes start at 1.
        skip_bad: pass over maps that cannot be read.

    Raises:
        DataError: names are missing, there twice or not text; a map cannot be read; or no pixel has
            a class.
    """
    names, source = read_names(folder)
    if source == _ADE_NAMES and not reduce_labels:
        raise DataError(
            f"{folder} has {source}, so 0 is void in its label maps and classes start at 1; open "
            "it with --reduce-labels (reduce_labels=True)."
        )
    found: set[int] = set()
    if names is None or (len(names) < 3 and not reduce_labels):
        found = _distinct_numbers(maps, read, skip_bad, may_stop=names is not None)
    binary = found == {0, _VOID_NUMBER} and not reduce_labels
    if binary and (names is None or len(names) == 2):
        warnings.warn(
            f"The label maps in {folder} hold nothing but 0 and 255, so 255 is taken as class 1, "
            "foreground, and not as void. If it is void, write the name of class 0 alone into "
            "classes.txt.",
            stacklevel=2,
        )
        return ClassNumbers(names or ["background", "foreground"], [0, 255], (), source or "0/255")
    if binary:
        warnings.warn(
            f"The label maps in {folder} hold nothing but 0 and 255, and {source} names one class, "
            "so 255 is taken as void. If it is foreground, name two classes, background first.",
            stacklevel=2,
        )
    if names is None:
        names, source = _numbered(found, reduce_labels, folder), "numbered, without names"
    values = list(range(reduce_labels, len(names) + reduce_labels))
    void = _VOID_NUMBER if values[-1] < _VOID_NUMBER else _WIDE_VOID_NUMBER
    return ClassNumbers(names, values, (0, void) if reduce_labels else (void,), source)


def _numbered(found: set[int], reduce_labels: bool, folder: Path) -> list[str]:
    """The numbers of the classes as their names, as they are in the maps."""
    highest = max(found - {_VOID_NUMBER}, default=-1)
    if highest < reduce_labels:
        raise DataError(
            f"No pixel of the label maps in {folder} has a class: they hold {sorted(found)}"
            + (", which are void with --reduce-labels." if reduce_labels else ", which is void.")
        )
    if highest > _VOID_NUMBER:
        raise DataError(
            f"The label maps in {folder} have numbers up to {highest}; write the names of the "
            "classes into classes.txt, one per line, to say how many there are."
        )
    names = [str(number) for number in range(reduce_labels, highest + 1)]
    occurring = len(found - {_VOID_NUMBER} - ({0} if reduce_labels else set()))
    if 4 * occurring < len(names):
        warnings.warn(
            f"Only {occurring} of the {len(names)} numbers up to {highest} occur in the label maps "
            f"in {folder}, and each of the {len(names)} is taken as a class. Are they shades of "
            "grey? Then number the classes 0, 1, 2, ...; else write their names into classes.txt.",
            stacklevel=3,
        )
    return names


def _distinct_numbers(
    maps: Iterable[Any], read: Callable[[Any], np.ndarray], skip_bad: bool, may_stop: bool
) -> set[int]:
    """The numbers in all maps; with `may_stop`, up to the first map that is not of 0 and 255."""

    def numbers_of(item: Any) -> set[int]:
        try:
            numbers = read(item)
        except DataError:
            if skip_bad:  # it is reported when its sample is read
                return set()
            raise
        return set(np.unique(numbers).tolist())

    found: set[int] = set()
    with ThreadPoolExecutor() as pool:
        for numbers in pool.map(numbers_of, maps):
            found |= numbers
            if may_stop and not found <= {0, _VOID_NUMBER}:
                pool.shutdown(cancel_futures=True)
                break
    return found


def read_names(folder: Path) -> tuple[list[str] | None, str]:
    """The names of the classes and the file that they are from; None and "" without one."""
    for name in ("classes.txt", "labels.txt"):
        if (folder / name).is_file():
            lines = _text(folder / name).rstrip().splitlines()
            return _checked([line.strip() for line in lines], folder / name), name
    if (folder / "id2label.json").is_file():
        file = folder / "id2label.json"
        entries = read_json(file)
        keys = [str(number) for number in range(len(entries))]
        if set(entries) != set(keys):
            raise DataError(f"{file} must have the keys 0 to {len(keys) - 1}, each once.")
        return _checked([entries[key] for key in keys], file), file.name
    if (folder / _ADE_NAMES).is_file():  # a table whose last column is the name
        lines = _text(folder / _ADE_NAMES).rstrip().splitlines()[1:]
        return _checked([line.split("\t")[-1].strip() for line in lines], folder / _ADE_NAMES), (
            _ADE_NAMES
        )
    return None, ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as such.") from error


def _checked(names: list[Any], file: Path) -> list[str]:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{file} has no name for class {number}; name every class.")
        if name in seen:
            raise DataError(f"{file} has the name {name!r} twice; give every class its own.")
        seen.add(name)
    if not names:
        raise DataError(f"{file} is empty; name every class, or delete it.")
    return names
