"""Loads the compiled kernels and keeps the reason when it cannot."""

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

NEVER_BUILT = "it was never built here: run pip install --editable . in the source tree"


class FallbackWarning(UserWarning):
    """The slower PyTorch reference runs where there could have been a compiled kernel."""


def build_info() -> dict[str, Any]:
    """What setup.py noted when it built this package; empty for a source tree never built."""
    path = Path(__file__).with_name("_build_info.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load() -> str | None:
    """Loads the library, which registers its kernels; returns None, or why there is no library.

    Raises:
        ValueError: the environment variable MASK2FORMER_CPU names an instruction set that this
            machine or this build has no kernels for.
    """
    try:
        library = importlib.import_module("mask2former_ops._C")
    except ModuleNotFoundError as error:
        if error.name != "mask2former_ops._C":
            raise
        return build_info().get("missing", NEVER_BUILT)
    except ImportError as error:  # it is there, but the dynamic linker refuses it
        return f"the library could not be loaded: {error}"
    wanted = os.environ.get("MASK2FORMER_CPU")
    if wanted:
        try:
            library.use_instruction_set(wanted)
        except ValueError as error:
            raise ValueError(f"MASK2FORMER_CPU={wanted}: {error}") from None
    return None


MISSING = load()


def why_no_kernel(op: str, device_type: str) -> str | None:
    """None where a compiled kernel runs, else one clause that says why it does not."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(
        f"mask2former_ops::{op}", device_type.upper()
    ):
        return None
    if device_type in ("cpu", "cuda") and MISSING:
        return MISSING
    if device_type == "cuda":
        reason = build_info().get("no_cuda", "the reason was not noted")
        return f"the library was built without CUDA kernels: {reason}"
    return f"this version has no kernels for {device_type}"


_warned: set[str] = set()


def warn_of_fallback(op: str, device_type: str) -> None:
    """Warns once for each type of device that could have had a kernel."""
    if device_type in _warned or device_type not in ("cpu", "cuda"):
        return
    _warned.add(device_type)
    warnings.warn(
        f"mask2former_ops has no compiled kernel for {device_type} tensors and runs the slower "
        f"PyTorch reference: {why_no_kernel(op, device_type)}",
        FallbackWarning,
        stacklevel=2,
    )
