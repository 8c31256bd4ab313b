"""Fixtures of the op tests."""

import importlib

import pytest
import torch
from torch.utils import deterministic

from mask2former_ops import _extension


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
    """Runs a test with the kernels of each instruction set."""
    if _extension.MISSING is not None:
        yield request.param
        return
    library = importlib.import_module("mask2former_ops._C")
    before = library.instruction_set()
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(before)
