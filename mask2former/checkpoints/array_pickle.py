"""Pickles of numpy arrays, read without running anything that is in them.

A pickle is a program that may call any function of any module. Here the few names that arrays and
plain containers need lead to the stand-ins of this file, and any other name is refused. numpy's own
functions are not called with what a file says, since they trust it: a forged dtype makes them take
bytes for addresses.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask2former.checkpoints.weights import UNPICKLING_ERRORS, damaged_file, refused_object


class PickledArray:
    """A numpy array in a pickle; `array` is it, in the machine's byte order and writable."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None:  # numpy first makes an empty array, then sets its state
        self.array = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, data = state
        self.array = _array(data, dtype, shape, "F" if fortran_order else "C")


class _Dtype:
    """A dtype of plain numbers: a code such as "f4" and then, as state, its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = state[1]

    def dtype(self) -> np.dtype:
        text = f"{self.byte_order}{self.code}"
        if not re.fullmatch(r"[<>=|]([biuf][1248])", text):
            raise pickle.UnpicklingError(f"the array type {text!r} is not one of plain numbers")
        return np.dtype(text)


class _Dict(dict):
    """An OrderedDict; what state dicts carry as an attribute of it is left out."""

    def __setstate__(self, state: Any) -> None:
        pass


def _array(data: Any, dtype: _Dtype, shape: tuple, order: Any) -> np.ndarray:
    if isinstance(data, str):  # the bytes of Python 2
        data = data.encode("latin1")
    array = np.frombuffer(data, dtype.dtype()).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="))  # a copy: buffers of bytes are read-only


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple, order: Any) -> PickledArray:
    """What arrays become in protocol 5."""
    result = PickledArray()
    result.array = _array(data, dtype, shape, order)
    return result


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return _array(data, dtype, (), "C").item()


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in protocols before 3."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _Dtype,
}
for _builtins in ("__builtin__", "builtins"):  # the first in protocols before 3
    _NAMES[_builtins, "set"], _NAMES[_builtins, "frozenset"] = set, frozenset
    _NAMES[_builtins, "bytes"] = _bytes
for _core in ("numpy.core", "numpy._core"):  # the second since numpy 2
    _NAMES[_core + ".multiarray", "_reconstruct"] = PickledArray
    _NAMES[_core + ".multiarray", "scalar"] = _scalar
    _NAMES[_core + ".numeric", "_frombuffer"] = _from_buffer


class _RefusedError(pickle.UnpicklingError):
    pass


class _Callable:
    """What a name in a file leads to: it can be called, and that is all.

    Of a function or class itself a file could set attributes, its defaults for example, and so
    change what becomes of every later file.
    """

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable) -> None:
        self._name, self._call = name, call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise pickle.UnpicklingError(f"it gives attributes to {self._name}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _RefusedError(f"{module}.{name}")
        return _Callable(f"{module}.{name}", _NAMES[module, name])


# Codes of a registry that programs may fill, and ids that only the writing program understands.
# Objects of the registry can come from a cache, past `find_class`.
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}


def _check_opcodes(file: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _REFUSED_OPCODES:
            reference = "an object on the stack" if argument is None else repr(argument)
            raise pickle.UnpicklingError(f"it refers by {opcode.name} to {reference} outside of it")
    file.seek(0)


def numpy_stand_ins() -> list[Any]:
    """The stand-ins for numpy's names, for `torch.serialization.safe_globals`."""
    return [
        (ours, f"{module}.{name}") for (module, name), ours in _NAMES.items() if "numpy" in module
    ]


def load_array_pickle(path: Path) -> Any:
    """The contents of a pickle that holds nothing but arrays, numbers, texts and containers.

    Files of Python 2 are read too. Arrays are `PickledArray`s; numpy's scalars are Python's.

    Raises:
        DataError: the file is damaged, or names anything else.
    """
    with path.open("rb") as file:
        try:
            _check_opcodes(file)
            return _Unpickler(file, encoding="latin1").load()
        except _RefusedError as error:
            raise refused_object(path, str(error)) from error
        except UNPICKLING_ERRORS as error:
            raise damaged_file(path, str(error)) from error
