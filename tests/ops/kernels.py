"""The CUDA kernels, emulated on the CPU or on a GPU, in place of the CPU kernels, so that every
test of the numbers runs on them unchanged."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from tests.ops.emulation import build

CSRC = Path(__file__).parents[2] / "csrc"
OPS = ("ms_deform_attn", "ms_deform_attn_backward", "point_sample", "point_sample_backward")
_SCHEMAS = torch.library.Library("emulated_cuda", "DEF")


def can_emulate() -> bool:
    """Whether the CUDA kernels' sources are here and something that compiles them."""
    return CSRC.exists() and build.is_available()


@functools.cache
def emulation() -> ModuleType:
    """The module of the emulated CUDA operators, with the emulator's controls.

    Its operators are torch.ops.emulated_cuda.ms_deform_attn and so on, and take CPU tensors.
    """
    for op in OPS:
        schema = str(getattr(torch.ops.mask2former_ops, op).default._schema)
        _SCHEMAS.define(schema.replace("mask2former_ops::", ""))
    path = build.build(
        "emulated_cuda",
        [Path(__file__).with_name("emulation") / "ops.cpp"],
        flags=[
            "-DUSE_CUDA",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            *(f"-isystem{path}" for path in include_paths()),
        ],
        link_flags=[*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"],
    )
    return build.load(path)


@contextlib.contextmanager
def replaced(run: Callable) -> Iterator[None]:
    """Lets `run(op, *arguments, **options)` do the work of all operators for CPU tensors."""
    library = torch.library.Library("mask2former_ops", "IMPL")
    with warnings.catch_warnings():  # torch 2.13 warns although it is allowed
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for op in OPS:
            library.impl(op, functools.partial(run, op), "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def in_mode(run: Callable, *, deterministic: bool) -> Callable:
    """The same, with every backward deterministic or none."""

    def run_in_mode(op, *arguments, **options):
        if op.endswith("backward"):
            options["deterministic"] = deterministic
        return run(op, *arguments, **options)

    return run_in_mode


def run_emulated(op: str, *arguments, **options):
    """Runs an operator's CUDA kernels on the CPU."""
    emulation()
    return getattr(torch.ops.emulated_cuda, op)(*arguments, **options)


def run_on_cuda(op: str, *arguments, **options):
    """Runs an operator on the GPU, on tensors of the same memory layout there."""
    arguments = [on_gpu(x) if isinstance(x, Tensor) else x for x in arguments]
    return _on_host(getattr(torch.ops.mask2former_ops, op)(*arguments, **options))


def run_on_cuda_with_levels_on_the_host(op: str, *arguments, **options):
    """The same, but integers, which are sizes and starts of levels, stay here."""
    arguments = [
        on_gpu(x) if isinstance(x, Tensor) and x.dtype != torch.int64 else x for x in arguments
    ]
    return _on_host(getattr(torch.ops.mask2former_ops, op)(*arguments, **options))


def on_gpu(tensor: Tensor) -> Tensor:
    """A copy with the same strides and the same offset."""
    whole = tensor.new_empty(0).set_(tensor.untyped_storage())
    return whole.cuda().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _on_host(results):
    return tuple(x.cpu() for x in results) if isinstance(results, tuple) else results.cpu()
