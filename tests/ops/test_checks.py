"""The checks in Python; the op tests hold their messages to those of the kernels."""

import pytest
import torch

from mask2former_ops._checks import check_device, check_dtype, check_output_mask, check_shape


def test_a_fitting_tensor_passes():
    tensor = torch.zeros(2, 3)
    check_shape("op", "x", tensor, "(A, B)", (None, 3))
    check_dtype("op", "x", tensor, (torch.float64, torch.float32))
    check_device("op", "x", tensor, "y", torch.device("cpu"))
    check_output_mask("op", [True, False], 2)


def test_the_message_has_op_argument_expectation_and_what_came():
    tensor = torch.zeros(2, 3)
    with pytest.raises(RuntimeError) as caught:
        check_shape("op", "x", tensor, "(A, B)", (None, 4))
    assert str(caught.value) == "op: x must have shape (A, B) = (any, 4), but has (2, 3)"
    with pytest.raises(RuntimeError) as caught:
        check_shape("op", "x", tensor, "(A)", (None,))
    assert str(caught.value) == "op: x must have 1 dimensions (A), but has shape (2, 3)"
    with pytest.raises(RuntimeError) as caught:
        check_dtype("op", "x", tensor, (torch.float64, torch.float64))
    assert str(caught.value) == "op: x must be float64, but is float32"
    with pytest.raises(RuntimeError) as caught:
        check_device("op", "x", tensor, "y", torch.device("meta"))
    assert str(caught.value) == "op: x must be on meta like y, but is on cpu"
    with pytest.raises(RuntimeError) as caught:
        check_output_mask("op", [True], 2)
    assert str(caught.value) == "op: output_mask must have 2 values, but has 1"
