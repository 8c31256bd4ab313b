"""Peak memory of a call."""

import pytest
import torch

from benchmarks import memory
from benchmarks.contestants import GRID_SAMPLE
from benchmarks.cpu import extra_memory
from benchmarks.ops import Row
from benchmarks.shapes import FORWARD, Points

MEBIBYTE = 2**20
pytestmark = pytest.mark.skipif(not memory.AVAILABLE, reason="this system has no mark to set")


def scratch_of(size: int, result: int):
    """A call that fills `size` bytes, frees them and returns `result` bytes."""

    def run():
        scratch = torch.ones(size, dtype=torch.uint8)
        return (scratch[:result].clone(),)

    run()  # must not hide what it needs again
    return run


def failing():
    raise ValueError("out of luck")


@pytest.mark.parametrize("size", [MEBIBYTE, 48 * MEBIBYTE])
def test_scratch_space_counts_and_results_do_not(size):
    extra = memory.peak_extra(scratch_of, size, size // 2)
    assert extra == pytest.approx(size, abs=MEBIBYTE / 2)


def test_all_that_a_process_holds_counts_with_its_libraries():
    small, large = (memory.peak(scratch_of, size, 1) for size in (MEBIBYTE, 48 * MEBIBYTE))
    assert large - small == pytest.approx(47 * MEBIBYTE, abs=4 * MEBIBYTE)
    assert small > 32 * MEBIBYTE  # torch alone


def test_a_failure_there_is_a_failure_here():
    with pytest.raises(RuntimeError, match="ended with status 1; it says above why"):
        memory.peak_extra(failing)


def test_detectors_widen_masks_before_they_sample_them():
    row = Row(Points("", 1, 8, (1024, 1024), 4, "shared", True, False), torch.float32, FORWARD)
    assert extra_memory(row, GRID_SAMPLE) == pytest.approx(32 * MEBIBYTE, abs=MEBIBYTE)
