"""Fixtures of the op tests."""

import pytest
import torch
from torch.utils import deterministic


@pytest.fixture
def poisoned_memory():
    """Memory that an op allocates is NaN until it is written."""
    assert deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
