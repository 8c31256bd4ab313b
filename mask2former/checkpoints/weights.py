"""The weights of a checkpoint folder: safetensors or PyTorch's own files, whole or in shards.

Files of PyTorch are pickles, which can run code when they are read; here they are read with
`weights_only=True`, which refuses everything but tensors and plain containers.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mask2former.io.errors import DataError
from mask2former.io.files import read_json, replacing, write_text
from mask2former.io.hub import MissingFileError, resolve_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# In the order in which they are looked for, as in transformers.
WEIGHT_FILES = (WEIGHTS_NAME, INDEX_NAME, "pytorch_model.bin", "pytorch_model.bin.index.json")
# Everything that `save_weights` may have written.
_SAVED = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")

# What torch and pickle raise while they read a damaged file. None of these errors names it.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, ImportError, AssertionError, MemoryError, OverflowError, struct.error),
)


def read_weights(name_or_folder: str | Path, **hub_options: Any) -> tuple[Path, dict[str, Tensor]]:
    """The weights of a local folder or a hub repository, on the CPU.

    Args:
        name_or_folder: what holds one of `WEIGHT_FILES`; the first that is there is read.
        hub_options: as for `resolve_file`.

    Returns:
        The path of the file, or of the index of the shards, and the tensors by name.

    Raises:
        DataError: there are no weights, a shard is missing, or a file is damaged or holds something
            other than tensors.
    """
    missing = []
    for filename in WEIGHT_FILES:
        try:
            path = resolve_file(name_or_folder, filename, **hub_options)
        except MissingFileError as error:
            missing.append(error)
            continue
        if filename.endswith(".index.json"):
            return path, _read_shards(name_or_folder, path, hub_options)
        return path, read_tensors(path)
    raise missing[0]


def _read_shards(
    name_or_folder: str | Path, index: Path, hub_options: dict[str, Any]
) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise DataError(
            f"{index} has no weight_map from tensors to the files beside it; download it again."
        )
    weights: dict[str, Tensor] = {}
    for filename in sorted(set(weight_map.values())):
        try:
            path = resolve_file(name_or_folder, filename, **hub_options)
        except MissingFileError as error:
            raise DataError(
                f"{index} names {filename}, which is not there; download or copy it too."
            ) from error
        weights |= read_tensors(path)
    for name, filename in weight_map.items():
        if name not in weights:
            raise DataError(
                f"{index} looks for {name!r} in {filename}, which does not hold it; download or "
                "copy the whole folder again."
            )
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name; `.safetensors`, else a file of `torch.save`.

    Raises:
        DataError: the file is damaged, or holds something other than named tensors.
    """
    if path.suffix != ".safetensors":
        contents = load_torch_file(path)
        check_tensors(contents, path)
        return contents
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(
            f"{path} is not a whole safetensors file ({error}); download or copy it again."
        ) from error


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote into a file, on the CPU; tensors and plain containers only.

    Raises:
        DataError: the file is damaged, or holds other objects, which could run code.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UNPICKLING_ERRORS as error:
            raise _torch_error(path, str(error)) from error


def _torch_error(path: Path, text: str) -> DataError:
    # torch says what is wrong at the end of a page about settings that would run the code.
    refused = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", text)
    if refused:
        return refused_object(path, refused[1])
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    return damaged_file(path, reason[1] if reason else text)


def refused_object(path: Path, name: str) -> DataError:
    """The error for a pickle with an object that is neither array nor container."""
    return DataError(
        f"{path} holds the Python object {name}, which is not read because it could run code; give "
        "a file of weights only."
    )


def damaged_file(path: Path, reason: str) -> DataError:
    """The error for a file that cannot be unpickled; of the reason the first line is quoted."""
    quoted = "".join(reason.strip().splitlines()[:1]).rstrip(".")
    return DataError(
        f"{path} is cut off, damaged or no checkpoint ({quoted or 'it ends too early'}); download "
        "or copy it again."
    )


def check_tensors(contents: Any, path: Path) -> None:
    """DataError unless `contents` is a dict of tensors by name."""
    if not isinstance(contents, dict):
        raise DataError(
            f"The content of {path} is a {type(contents).__name__} instead of named tensors; give "
            "a file of weights."
        )
    for name, tensor in contents.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"{path} has an entry {name!r} of type {type(tensor).__name__} where tensors with "
                "names are expected; give a file of weights."
            )


def save_weights(
    folder: str | Path, weights: dict[str, Tensor], max_shard_size: int | str = "50GB"
) -> Path:
    """Write `model.safetensors`, or several such files and their index, into `folder`.

    Each file is written whole or not at all, the index last; older weights in the folder that would
    be found instead are then removed.

    Args:
        folder: made if need be.
        weights: contiguous tensors by name.
        max_shard_size: bytes of a file, or a text such as "5GB"; a larger tensor gets its own file.

    Returns:
        The path of the file, or of the index.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for filename, names in plan.filename_to_tensors.items():
        _save_file(folder / filename, {name: weights[name] for name in names})
    path = folder / (INDEX_NAME if plan.is_sharded else WEIGHTS_NAME)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(path, json.dumps(index, indent=2, sort_keys=True) + "\n")
    for old in folder.iterdir():
        if _SAVED.fullmatch(old.name) and old.name not in {path.name, *plan.filename_to_tensors}:
            old.unlink()
    return path


def _save_file(path: Path, weights: dict[str, Tensor]) -> None:
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(weights, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # save_file lets nobody but the owner read its files
