"""Proves that the sanitizers check the library; `make test-sanitize` runs this before the tests.

Each operator is given a tensor that breaks what torch promises, in a process of its own, which the
sanitizer must end. In an ordinary build nothing would be noticed, and these tests would fail.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import mask2former_ops

SHRUNK = """
import torch, mask2former_ops

def shrunk(*shape):
    tensor = torch.zeros(shape)
    memory = tensor.untyped_storage()
    memory.resize_(memory.nbytes() - 32)  # the last numbers lie outside
    return tensor

"""
POINT_SAMPLE = """
mask2former_ops.point_sample(shrunk(1, 1, 8, 8), torch.ones(1, 1, 2))
"""
MS_DEFORM_ATTN = """
shapes, starts = torch.tensor([[8, 8]]), torch.tensor([0])
locations, weights = torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
mask2former_ops.ms_deform_attn(shrunk(1, 64, 1, 8), shapes, starts, locations, weights)
"""
MISALIGNED = """
import torch, mask2former_ops

shapes = torch.frombuffer(bytearray(1 + 16), dtype=torch.int64, offset=1).view(1, 2)
shapes.copy_(torch.tensor([[2, 2]]))
starts = torch.tensor([0])
locations, weights = torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
mask2former_ops.ms_deform_attn(torch.ones(1, 4, 1, 8), shapes, starts, locations, weights)
"""


def sanitizer_message(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0, "the program ran to its end"
    return done.stderr


@pytest.mark.parametrize("op", [POINT_SAMPLE, MS_DEFORM_ATTN], ids=["point_sample", "attention"])
def test_the_address_sanitizer_stops_an_operator_that_reads_past_the_end(op):
    message = sanitizer_message(SHRUNK + op)
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in message
    assert "csrc/cpu/" in message  # where it happened


def test_the_undefined_behaviour_sanitizer_stops_an_operator():
    message = sanitizer_message(MISALIGNED)
    assert "runtime error: load of misaligned address" in message
    assert "csrc/cpu/" in message


def test_sums_are_checked_for_overflow():
    """The -fwrapv that Python's own flags bring would switch that off without a word."""
    (library,) = Path(mask2former_ops.__file__).parent.glob("_C.*")
    assert b"__ubsan_handle_add_overflow_abort" in library.read_bytes()
