"""The checks and that every call passes them; what each operator asks is in its contract tests."""

import pytest
import torch

from mask2former_ops import point_sample
from mask2former_ops._checks import (
    check_device,
    check_dtype,
    check_map_size,
    check_output_mask,
    check_shape,
)
from tests.ops.contract import without_kernel
from tests.ops.samples import point_arguments


def test_a_fitting_tensor_passes():
    tensor = torch.zeros(2, 3)
    check_shape("op", "x", tensor, "(A, B)", (None, 3))
    check_dtype("op", "x", tensor, (torch.float64, torch.float32))
    check_device("op", "x", tensor, "y", torch.device("cpu"))
    check_output_mask("op", [True, False], 2)
    check_map_size("op", "x", tensor)


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


OP = torch.ops.mask2former_ops.point_sample.default


def in_inference_mode(*arguments):
    with torch.inference_mode():
        return OP(*(x.clone() for x in arguments))


def under_autocast(*arguments):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return OP(*arguments)


def with_gradients(input, points):
    return OP(input.requires_grad_(), points.requires_grad_())


def mapped(input, points):
    return torch.vmap(OP, in_dims=(0, None))(input[None], points)


def on_no_device(*arguments):
    return OP(*(x.to("meta") for x in arguments))


def compiled(*arguments):
    return torch.compile(OP, fullgraph=True, backend="eager")(*arguments)


@pytest.mark.parametrize(
    "way",
    [
        point_sample,
        OP,
        in_inference_mode,
        under_autocast,
        with_gradients,
        mapped,
        on_no_device,
        compiled,
        lambda *arguments: without_kernel(OP, *arguments),
    ],
)
def test_no_way_in_avoids_the_checks(way):
    input, points = point_arguments(torch.float32)
    sentence = (
        r"point_sample: points must have shape \(N or 1, P, 2\) = \(any, any, 2\), but has "
        r"\(2, 11, 1\)"
    )
    with pytest.raises(RuntimeError, match=sentence):
        way(input, points[..., :1])
