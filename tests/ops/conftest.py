"""Fixtures of the op tests."""

import contextlib
import importlib

import pytest
import torch
from torch.utils import deterministic

from mask2former_ops import _extension
from tests.ops import kernels


@pytest.fixture
def poisoned_memory():
    """Memory that an op allocates is NaN until it is written."""
    assert deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def instruction_sets() -> tuple[str, ...]:
    """Those that this machine has kernels for; one name that means nothing without a library."""
    if _extension.MISSING is not None:
        return ("no library",)
    return importlib.import_module("mask2former_ops._C").instruction_sets()


@pytest.fixture(params=instruction_sets())
def instruction_set(request):
    """Runs a test with the CPU kernels of each instruction set."""
    with using(request.param):
        yield request.param


@contextlib.contextmanager
def using(instruction_set: str):
    """Lets the CPU kernels use an instruction set."""
    if _extension.MISSING is not None:
        yield
        return
    library = importlib.import_module("mask2former_ops._C")
    before = library.instruction_set()
    library.use_instruction_set(instruction_set)
    yield
    library.use_instruction_set(before)


ON_CUDA = {  # by device and mode
    "emulated CUDA": kernels.run_emulated,
    "emulated CUDA, deterministic": kernels.run_emulated,
    "CUDA": kernels.run_on_cuda,
    "CUDA, deterministic": kernels.run_on_cuda_with_levels_on_the_host,
}


def all_kernels() -> list[str]:
    """What there is to run an operator: as CPU kernels, and as CUDA kernels in both modes."""
    devices = []
    if kernels.can_emulate() and _extension.MISSING is None:
        devices.append("emulated CUDA")
    if torch.cuda.is_available() and _extension.why_no_kernel("ms_deform_attn", "cuda") is None:
        devices.append("CUDA")
    modes = [mode for device in devices for mode in (device, f"{device}, deterministic")]
    return [*instruction_sets(), *modes]


def pytest_generate_tests(metafunc):
    if "any_kernels" in metafunc.fixturenames:
        names = all_kernels()
        if metafunc.definition.get_closest_marker("compares_bits"):
            # Sums of these depend on the order of the threads.
            names = [name for name in names if name not in ("emulated CUDA", "CUDA")]
        metafunc.parametrize("any_kernels", names, indirect=True)


@pytest.fixture
def any_kernels(request):
    """Runs a test with the CPU kernels of each instruction set and with the CUDA kernels."""
    run = ON_CUDA.get(request.param)
    if run is None:
        with using(request.param):
            yield request.param
        return
    deterministic = request.param.endswith("deterministic")
    with kernels.replaced(kernels.in_mode(run, deterministic=deterministic)):
        yield request.param
