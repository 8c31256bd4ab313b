"""An activation after a bias, in place, against torch's in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from mask2former_ops import _extension
from mask2former_ops.bias_activation import bias_activation_, bias_activation_backward_
from tests.ops.samples import generator
from tests.ops.tolerances import GELU_ERROR, assert_all_equal, assert_close

OPS = torch.ops.mask2former_ops
WHY_NO_KERNEL = _extension.why_no_kernel("bias_activation_", "cpu")
pytestmark = [
    pytest.mark.usefixtures("instruction_set", "poisoned_memory"),
    pytest.mark.skipif(WHY_NO_KERNEL is not None, reason=str(WHY_NO_KERNEL)),
]
DTYPES = [torch.float64, torch.float32]
SIZES = [
    *((1, 1), (3, 7), (5, 8), (2, 16), (63, 17), (64, 31), (65, 33), (129, 384), (1000, 100)),
    *((0, 5), (4, 0), (0, 0)),
]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
kinds = pytest.mark.parametrize("gelu", [False, True], ids=["ReLU", "GELU"])


def arguments(dtype=torch.float64, size=(65, 33), seed=0):
    """x, the gradient of the result, bias."""
    g = generator(seed)
    x, grad = (torch.randn(size, generator=g, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(size[1], generator=g, dtype=torch.float64)
    return (x * 3).to(dtype), grad.to(dtype), bias.to(dtype)


def results(x, grad, bias, gelu):
    """The result, that of the backward and the gradients of x and of the bias."""
    output, again, grad_x = x.clone(), x.clone(), grad.clone()
    assert bias_activation_(output, bias, gelu=gelu) is output
    grad_bias = bias_activation_backward_(again, grad_x, bias, gelu=gelu)
    return output, again, grad_x, grad_bias


def by_torch(x, grad, bias, gelu):
    leaves = [x.double().requires_grad_(), bias.double().requires_grad_()]
    output = (F.gelu if gelu else F.relu)(leaves[0] + leaves[1])
    gradients = torch.autograd.grad(output, leaves, grad.double())
    return output.detach(), output.detach(), *gradients


@kinds
@dtypes
@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients_are_within_the_limits(size, dtype, gelu):
    given = arguments(dtype, size)
    for result, expected in zip(results(*given, gelu), by_torch(*given, gelu), strict=True):
        assert result.dtype == dtype
        assert_close(result, expected, dtype)


def test_relu_rounds_nothing_but_the_sum():
    x, grad, bias = arguments(torch.float32)
    output, _, grad_x, _ = results(x, grad, bias, gelu=False)
    assert torch.equal(output, F.relu(x + bias))
    assert torch.equal(grad_x, grad * (x + bias > 0))


@dtypes
def test_relu_of_zero_is_zero_and_has_no_slope(dtype):
    for zero in (0.0, -0.0):
        x = torch.full((3, 17), zero, dtype=dtype)
        output, _, slope, sums = results(x, torch.ones_like(x), x[0], gelu=False)
        assert not output.any()
        assert not slope.any()
        assert not sums.any()


@pytest.mark.parametrize("column", [0, 5, 16])
@dtypes
def test_gelu_is_right_wherever_it_bends(dtype, column):
    """In a pack and beside it."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).to(dtype)
    wide = torch.zeros(len(x), 17, dtype=dtype)
    wide[:, column] = x
    grad = torch.ones_like(wide)
    output, _, slope, _ = results(wide, grad, torch.zeros(17, dtype=dtype), gelu=True)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    (slopes,) = torch.autograd.grad(expected.sum(), exact)
    limit = GELU_ERROR[dtype]
    assert (output[:, column] - expected).abs().max() <= limit
    assert (slope[:, column] - slopes).abs().max() <= limit


@dtypes
def test_far_from_zero_gelu_is_relu(dtype):
    x = torch.tensor([-1e30, -3e4, -200.0, -40.0, -0.0, 0.0, 40.0, 200.0, 3e4, 1e30], dtype=dtype)
    for row in (x[None], x[:, None], x.repeat(1, 4)):
        bias = torch.zeros(row.shape[1], dtype=dtype)
        output, _, slope, _ = results(row, torch.ones_like(row), bias, gelu=True)
        assert torch.equal(output, F.relu(row))
        assert torch.equal(slope[row != 0], (row[row != 0] > 0).to(dtype))
        assert (slope[row == 0] == 0.5).all()


@kinds
@dtypes
def test_nan_passes_through(dtype, gelu):
    x, grad, bias = arguments(dtype)
    x[3, ::2] = math.nan
    bias[7] = math.nan
    output, again, grad_x, grad_bias = results(x, grad, bias, gelu)
    bad = (x + bias).isnan()
    assert torch.equal(output.isnan(), bad)
    assert torch.equal(again.isnan(), bad)
    assert not grad_x[~bad].isnan().any()
    assert not grad_bias[~bad.any(0)].isnan().any()


@kinds
@dtypes
def test_infinities_give_what_they_give_in_torch(dtype, gelu):
    x, grad, bias = arguments(dtype)
    x[3, ::2], x[5, 1::2] = math.inf, -math.inf
    bias[[8, 32]] = math.inf
    for result, expected in zip(
        results(x, grad, bias, gelu), by_torch(x, grad, bias, gelu), strict=True
    ):
        assert torch.equal(result.isnan(), expected.isnan())
        for infinity in (math.inf, -math.inf):
            assert torch.equal(result == infinity, expected == infinity)


@kinds
@dtypes
def test_results_do_not_depend_on_the_number_of_threads(dtype, gelu):
    given = arguments(dtype, (777, 45))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(*given, gelu))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_all_equal(other, found[0])


@kinds
@dtypes
def test_only_its_own_rows_are_written(dtype, gelu):
    """Rows before and after, in the middle of a cache line."""
    x, grad, bias = arguments(dtype, (9, 13))
    wide_x, wide_grad = x.clone(), grad.clone()
    expected = results(x[2:7], grad[2:7], bias, gelu)
    bias_activation_backward_(wide_x[2:7], wide_grad[2:7], bias, gelu=gelu)
    assert_all_equal([wide_x[2:7], wide_grad[2:7]], expected[1:3])
    for wide, before in ((wide_x, x), (wide_grad, grad)):
        assert torch.equal(wide[:2], before[:2])
        assert torch.equal(wide[7:], before[7:])


WRONG = [
    ({"x": lambda t: t.half()}, "x must be float64 or float32, but is float16"),
    ({"x": lambda t: t[None]}, r"x must have 2 dimensions \(rows, C\), but has shape \(1, 65, 33"),
    ({"x": lambda t: t.mT.contiguous().mT}, "x and bias must be contiguous"),
    ({"bias": lambda t: t.float()}, "bias must be float64, but is float32"),
    ({"bias": lambda t: t[1:]}, r"bias must have shape \(C\) = \(33\), but has \(32\)"),
    ({"bias": lambda t: t[None]}, r"bias must have 1 dimensions \(C\), but has shape \(1, 33\)"),
    ({"bias": lambda t: t[:1].expand(33)}, "x and bias must be contiguous"),
]
WRONG_GRADIENTS = [
    (lambda t: t.float(), "grad must be float64, but is float32"),
    (lambda t: t[1:], r"grad must have shape \(rows, C\) = \(65, 33\), but has \(64, 33\)"),
    (lambda t: t.mT.contiguous().mT, "grad must be contiguous"),
]


@kinds
@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_written(changes, message, gelu):
    x, grad, bias = arguments()
    x, bias = (changes.get(name, lambda t: t)(t) for name, t in (("x", x), ("bias", bias)))
    before = x.clone(), grad.clone()
    with pytest.raises(RuntimeError, match="bias_activation: " + message):
        bias_activation_(x, bias, gelu=gelu)
    with pytest.raises(RuntimeError, match="bias_activation_backward: " + message):
        bias_activation_backward_(x, grad, bias, gelu=gelu)
    assert_all_equal((x, grad), before)


@kinds
@pytest.mark.parametrize(("change", "message"), WRONG_GRADIENTS)
def test_a_wrong_gradient_is_named_and_nothing_is_written(change, message, gelu):
    x, grad, bias = arguments()
    grad = change(grad)
    before = x.clone(), grad.clone()
    with pytest.raises(RuntimeError, match="bias_activation_backward: " + message):
        bias_activation_backward_(x, grad, bias, gelu=gelu)
    assert_all_equal((x, grad), before)


@pytest.mark.usefixtures("instruction_set")
def test_relu_takes_gradients_that_are_not_finite_as_torch_does():
    x = torch.tensor([[-1.0, 0.0, 2.0, math.nan] * 8])
    grad = torch.tensor([[math.inf, -math.inf, math.inf, 1.0] * 4 + [math.nan, 1.0, -1.0, 2.0] * 4])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.relu(leaf), leaf, grad)
    result = grad.clone()
    bias_activation_backward_(x, result, torch.zeros(32), gelu=False)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(7.0), expected.nan_to_num(7.0))
