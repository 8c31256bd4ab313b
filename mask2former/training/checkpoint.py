"""Checkpoints of a run: folders that are written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mask2former.checkpoints.weights import load_torch_file
from mask2former.io.errors import DataError
from mask2former.io.files import read_json

WEIGHTS, AVERAGE, OPTIMIZER = "model.safetensors", "average.safetensors", "optimizer.pt"
CONTENTS = "checkpoint.json"  # written last: sizes and SHA-256 of the others, and the progress
_NAME = re.compile(r"step-(\d{6,})")
_UNFINISHED = re.compile(r"\..+\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue.

    Random numbers are not in it, because they are a function of the recipe's seed and the step.

    Attributes:
        step: updates done; the next batch is this number times the batches of an update.
        weights: parameters and buffers by name.
        average: their moving averages, or None.
        optimizer: the states of optimiser, schedule and loss scaler, as plain containers and
            tensors.
        progress: how often the weights were averaged, as JSON values.
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    progress: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder`/step-NNNNNN whole or not at all, then remove all but the newest `keep`.

    Files are on the disk before the folder gets its name, so that a power failure leaves no
    incomplete checkpoint.

    Raises:
        OSError: the disk is full or the folder cannot be written to; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{checkpoint.step:06d}"
    temporary = _hidden(path)
    temporary.mkdir()
    try:
        files = {WEIGHTS: save(checkpoint.weights), OPTIMIZER: _pickled(checkpoint.optimizer)}
        if checkpoint.average is not None:
            files[AVERAGE] = save(checkpoint.average)
        contents = {
            "step": checkpoint.step,
            "progress": checkpoint.progress,
            "files": {name: _described(data) for name, data in files.items()},
        }
        files[CONTENTS] = json.dumps(contents, indent=2).encode()
        for name, data in files.items():
            _write(temporary / name, data)
        _sync_folder(temporary)
        _remove(path)  # if a damaged one is there
        os.replace(temporary, path)
        _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(folder)[keep:]:
        _remove(old)
    return path


def load_newest(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint in `folder`, or None where there is no checkpoint.

    Args:
        report: called with a sentence for every damaged checkpoint that is skipped.

    Raises:
        DataError: there are checkpoints, but all are damaged.
    """
    damaged: list[DataError] = []
    for path in _checkpoints(folder):
        try:
            checkpoint = load_checkpoint(path)
        except DataError as error:
            damaged.append(error)
            continue
        for error in damaged:
            report(f"{error} The run continues from {path.name}.")
        return checkpoint
    if damaged:
        raise DataError(f"{damaged[-1]} There is no older one; begin another run.")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: a file is missing or not as it was written.
    """
    try:
        contents = read_json(path / CONTENTS)
        files = contents["files"]
        damaged = [name for name in files if _described_file(path / name) != files[name]]
    except (OSError, DataError, KeyError, TypeError) as error:
        raise DataError(f"The checkpoint {path} is damaged ({error}).") from error
    if damaged:
        raise DataError(f"The checkpoint {path} is damaged: {damaged[0]} is not as it was written.")
    return Checkpoint(
        step=contents["step"],
        weights=load_file(path / WEIGHTS),
        average=load_file(path / AVERAGE) if AVERAGE in files else None,
        optimizer=load_torch_file(path / OPTIMIZER),
        progress=contents["progress"],
    )


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder has a checkpoint, damaged or not."""
    return bool(_checkpoints(folder))


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of a killed process from `folder`."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    named = [path for path in paths if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    """Remove a folder. If this is interrupted, the rest does not look like a checkpoint."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.replace(path, hidden)
        shutil.rmtree(hidden)


def _pickled(values: dict[str, Any]) -> bytes:
    # In memory, because torch hides the reason when the disk is full.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _described(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _described_file(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk, on systems that offer it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
