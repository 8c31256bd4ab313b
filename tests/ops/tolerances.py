"""The largest relative L2 error against the float64 reference that the op tests allow."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Beside each limit the largest error measured over all op tests: CPU kernels, emulated CUDA kernels
# and reference alike.
RELATIVE_ERROR = {
    torch.float64: 1e-12,  # 1.9e-14, window attention of large scores; 3.4e-15 the others
    torch.float32: 1e-6,  # 3.7e-7, window attention; 3.1e-7 the others
    torch.float16: 1e-3,  # 2.7e-4, the rounding of the results themselves
    torch.bfloat16: 8e-3,  # 2.3e-3, likewise
}

# The largest absolute error of GELU and its slope in [-12, 12].
GELU_ERROR = {
    torch.float64: 1e-14,  # 1.8e-15
    torch.float32: 1e-6,  # 3.8e-7
}


def relative_error(result: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of `expected`, which is float64."""
    difference = (result.double() - expected).norm()
    return (difference / expected.norm()).item() if difference else 0.0


def assert_close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Asserts equal shapes and an error within the limit of the dtype that was computed in."""
    assert result.shape == expected.shape
    assert relative_error(result, expected) <= RELATIVE_ERROR[dtype]


def assert_all_equal(results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Asserts that every number is the same."""
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)
