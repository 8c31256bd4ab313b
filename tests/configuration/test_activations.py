import pytest
import torch

from mask2former.configuration.activations import ACTIVATIONS
from tests.reference import relative_error


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_equals_transformers(name):
    theirs = pytest.importorskip("transformers").activations.ACT2FN[name]
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    # gelu_fast has its constants written out to eight digits there.
    limit = 1e-7 if name == "gelu_fast" else 1e-14
    assert relative_error(ACTIVATIONS[name](x), theirs(x)) < limit
