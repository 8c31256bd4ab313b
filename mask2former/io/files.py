"""Files read with clear errors and written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask2former.io.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; DataError if it is not one."""
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The object in the content of the JSON file `path`; DataError if it is not one."""
    try:
        # Some tools begin a file with a byte order mark.
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); download or write it again."
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object, but it holds a {type(values).__name__}.")
    return values


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end, so that it is written whole or not.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
