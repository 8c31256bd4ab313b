"""The largest relative L2 error against the float64 reference that the op tests allow."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Beside each limit the largest error measured over all op tests: CPU kernels, emulated CUDA kernels
# and reference alike.
RELATIVE_ERROR = {
    torch.float64: 1e-12,  # 3.4e-15
    torch.float32: 1e-6,  # 3.1e-7
    torch.float16: 1e-3,  # 2.7e-4, the rounding of the results themselves
    torch.bfloat16: 8e-3,  # 2.3e-3, likewise
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
