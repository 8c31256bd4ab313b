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


def leaving_holes(size: int):
    """A call that frees `size` bytes of a heap on top of which something is kept."""
    blocks = [torch.ones(2 * MEBIBYTE, dtype=torch.uint8) for _ in range(size // MEBIBYTE // 2)]
    kept = blocks[1::2]

    def run():
        blocks.clear()
        return torch.ones(size // 2, dtype=torch.uint8), kept

    return run


def test_freed_blocks_do_not_count_twice():
    small, large = (memory.peak(leaving_holes, size) for size in (4 * MEBIBYTE, 84 * MEBIBYTE))
    assert large - small == pytest.approx(80 * MEBIBYTE, abs=8 * MEBIBYTE)


def test_a_failure_there_is_a_failure_here():
    with pytest.raises(RuntimeError, match="ended with status 1; it says above why"):
        memory.peak_extra(failing)


def test_detectors_widen_masks_before_they_sample_them():
    row = Row(Points("", 1, 8, (1024, 1024), 4, "shared", True, False), torch.float32, FORWARD)
    assert extra_memory(row, GRID_SAMPLE) == pytest.approx(32 * MEBIBYTE, abs=MEBIBYTE)
