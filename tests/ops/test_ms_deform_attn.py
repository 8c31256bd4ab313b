"""The operator, compiled where the library is built, against the reference in float64."""

import math

import pytest
import torch

from mask2former_ops import ms_deform_attn, reference
from tests.ops.samples import generator, msda_arguments
from tests.ops.tolerances import assert_close

OP = torch.ops.mask2former_ops.ms_deform_attn.default
BACKWARD = torch.ops.mask2former_ops.ms_deform_attn_backward.default
# The operator runs the kernel where there is one; the reference must hold the same limits.
IMPLEMENTATIONS = [(OP, BACKWARD), (reference.ms_deform_attn, reference.ms_deform_attn_backward)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ALL = [True, True, True]


def in_float64(arguments):
    return [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]


def grad_like_output(arguments, seed=1):
    value, locations = arguments[0], arguments[3]
    shape = value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]
    grad = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return grad.to(value.dtype)


def check_against_float64(forward, backward, arguments):
    dtype = arguments[0].dtype
    exact = in_float64(arguments)
    output = forward(*arguments)
    assert output.dtype == dtype
    assert_close(output, reference.ms_deform_attn(*exact), dtype)
    grad = grad_like_output(arguments)
    expected = reference.ms_deform_attn_backward(grad.double(), *exact, ALL)
    for result, wanted, of in zip(
        backward(grad, *arguments, ALL), expected, (0, 3, 4), strict=True
    ):
        assert result.dtype == arguments[of].dtype
        assert_close(result, wanted, dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("d", [1, 5, 8, 30, 32, 64, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_output_and_gradients_are_within_the_limits(forward, backward, dtype, d):
    check_against_float64(forward, backward, msda_arguments(dtype, d=d, seed=d))


@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_may_come_with_float32_locations(forward, backward, dtype):
    check_against_float64(forward, backward, msda_arguments(dtype, location_dtype=torch.float32))


@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_coordinates_are_exact_on_large_maps(forward, backward):
    arguments = msda_arguments(torch.float32, levels=[(400, 601), (53, 1)], n=1, q=50, m=1, d=2)
    check_against_float64(forward, backward, arguments)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("num_points", [[3, 0, 2], [0, 0, 0], [4, 4, 4]])
def test_levels_may_have_different_numbers_of_points(num_points):
    arguments = msda_arguments(torch.float32, num_points=num_points)
    check_against_float64(OP, BACKWARD, arguments)
    assert torch.equal(ms_deform_attn(*arguments), OP(*arguments))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("empty", ["n", "q", "m", "d", "p", "levels", "one level"])
def test_every_size_may_be_zero(empty):
    sizes = {"levels": ()} if empty == "levels" else {empty: 0}
    arguments = msda_arguments(
        torch.float32, **({"levels": [(0, 3), (2, 2)]} if empty == "one level" else sizes)
    )
    check_against_float64(OP, BACKWARD, arguments)


def test_gradients_are_the_derivatives():
    value, shapes, starts, locations, weights, _ = msda_arguments(q=3, m=2, d=2, p=2)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w), inputs, atol=1e-7
    )


# opcheck itself reads .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_points", [None, [1, 2, 0]])
def test_the_operator_passes_opcheck(dtype, num_points):
    *tensors, _ = msda_arguments(dtype, num_points=num_points, q=3)
    for i in (0, 3, 4):
        tensors[i].requires_grad_()
    torch.library.opcheck(OP, (*tensors, num_points))
    tensors = [x.detach() for x in tensors]
    grad = grad_like_output(tensors)
    torch.library.opcheck(BACKWARD, (grad, *tensors, num_points, [True, False, True]))


def test_it_compiles_into_one_graph_for_any_size():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(*arguments):
        return ms_deform_attn(*arguments).sin()

    for q in (3, 5):
        *tensors, _ = msda_arguments(q=q, seed=q)
        leaves = [tensors[i].requires_grad_() for i in (0, 3, 4)]
        expected = ms_deform_attn(*tensors).sin()
        result = compiled(*tensors)
        assert_close(result, expected, torch.float64)
        for ours, wanted in zip(
            torch.autograd.grad(result.sum(), leaves),
            torch.autograd.grad(expected.sum(), leaves),
            strict=True,
        ):
            assert_close(ours, wanted, torch.float64)


@pytest.mark.parametrize("wanted", [(0,), (3,), (4,), (0, 4)])
def test_only_the_gradients_asked_for_are_computed(wanted):
    *tensors, _ = msda_arguments()
    for i in wanted:
        tensors[i].requires_grad_()
    output = ms_deform_attn(*tensors)
    gradients = torch.autograd.grad(output.sum(), [tensors[i] for i in wanted])
    mask = [i in wanted for i in (0, 3, 4)]
    tensors = [x.detach() for x in tensors]
    expected = reference.ms_deform_attn_backward(torch.ones_like(output), *tensors, None, ALL)
    direct = BACKWARD(torch.ones_like(output), *tensors, None, mask)
    assert [x.numel() > 0 for x in direct] == mask
    for result, exact in zip(
        gradients, [x for x, asked in zip(expected, mask, strict=True) if asked], strict=True
    ):
        assert_close(result, exact, torch.float64)


def test_a_second_derivative_is_refused():
    *tensors, _ = msda_arguments()
    tensors[0].requires_grad_()
    output = ms_deform_attn(*tensors)
    (grad,) = torch.autograd.grad((output**2).sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="once, not twice"):
        grad.sum().backward()


def test_inputs_need_not_be_contiguous():
    arguments = msda_arguments(torch.float32)
    grad = grad_like_output(arguments)

    def strided(x):
        if not torch.is_tensor(x):
            return x
        return torch.stack((x, torch.full_like(x, 77)), -1).select(-1, 0)

    apart = [strided(x) for x in arguments]
    assert not any(x.is_contiguous() for x in apart[:5])
    assert torch.equal(OP(*apart), OP(*arguments))
    for result, expected in zip(
        BACKWARD(strided(grad), *apart, ALL), BACKWARD(grad, *arguments, ALL), strict=True
    ):
        assert torch.equal(result, expected)
    expanded = torch.ones((), dtype=torch.float32).expand_as(grad)
    for result, expected in zip(
        BACKWARD(expanded, *arguments, ALL),
        BACKWARD(expanded.contiguous(), *arguments, ALL),
        strict=True,
    ):
        assert torch.equal(result, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    arguments = msda_arguments(torch.float32, n=3, q=401, m=5, d=16)
    grad = grad_like_output(arguments)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append((OP(*arguments), *BACKWARD(grad, *arguments, ALL)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 6e4, -6e4, -0.5, 1.5])
def test_a_location_off_the_map_adds_nothing_and_gets_no_gradient(dtype, bad):
    value, shapes, starts, locations, weights, _ = msda_arguments(dtype, levels=[(2, 2)], p=1)
    where = torch.rand(locations.shape[:-1], generator=generator(3)) < 0.5
    locations[where] = bad
    weights[where] = math.nan  # must not matter there
    calm = torch.where(where[..., None], torch.full_like(locations, -0.5), locations)
    zeroed = torch.where(where, torch.zeros_like(weights), weights)
    expected = OP(value, shapes, starts, calm, zeroed)
    assert torch.equal(OP(value, shapes, starts, locations, weights), expected)
    grad = torch.ones_like(expected)
    result = BACKWARD(grad, value, shapes, starts, locations, weights, None, ALL)
    wanted = BACKWARD(grad, value, shapes, starts, calm, zeroed, None, ALL)
    for ours, theirs in zip(result, wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert not result[1][where].any()
    assert not result[2][where].any()


def test_autocast_takes_half_values_and_float32_locations():
    *tensors, _ = msda_arguments(torch.float32)
    tensors[0].requires_grad_()
    tensors[4] = tensors[4].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ms_deform_attn(*tensors)
    value, shapes, starts, locations, weights = tensors
    expected = ms_deform_attn(value.bfloat16(), shapes, starts, locations, weights.float())
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    output.sum().backward()
    assert value.grad.dtype == torch.float32


# Argument changed, what it is changed to, and what the message must say.
WRONG = [
    (0, lambda x: x[0], r"value must have 4 dimensions \(N, S, M, D\), but has shape \(55, 3, 5\)"),
    (0, lambda x: x.long(), "value must be float64 or .* but is int64"),
    (1, lambda x: x.int(), "spatial_shapes must be int64, but is int32"),
    (1, lambda x: x[:, :1], r"spatial_shapes must have shape \(L, 2\) = \(any, 2\), but has"),
    (2, lambda x: x[:2], r"level_start_index must have shape \(L\) = \(3\), but has \(2\)"),
    (3, lambda x: x.float(), "sampling_locations must be float64, but is float32"),
    (3, lambda x: x[..., :1], r"sampling_locations must have shape .* = \(2, any, 3, 3, any, 2\)"),
    (3, lambda x: x[:1], "sampling_locations must have shape"),
    (4, lambda x: x[:, 1:], r"attention_weights must have shape .* = \(2, 7, 3, 3, 4\)"),
    (5, lambda x: [1, 2], r"num_points must be 3 counts, .*, but is \[1, 2\]"),
    (5, lambda x: [1, 2, -1], r"num_points must be 3 counts, .*, but is \[1, 2, -1\]"),
    (5, lambda x: [1, 2, 3], r"sampling_locations must have 5 dimensions .* sum\(num_points\)"),
]  # fmt: skip


@pytest.mark.parametrize(("index", "change", "message"), WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_wrong_argument_is_named(device, index, change, message):
    arguments = list(msda_arguments())
    arguments[index] = change(arguments[index])
    arguments = [x.to(device) if torch.is_tensor(x) else x for x in arguments]
    with pytest.raises(RuntimeError, match="ms_deform_attn: " + message):
        ms_deform_attn(*arguments)


@pytest.mark.parametrize(
    ("shapes", "starts", "message"),
    [
        ([(6, 5), (1, 1), (3, 9)], [0, 30, 31], "one is 3 x 9 and starts at 31"),
        ([(6, 5), (1, 1), (3, 8)], [0, 30, 32], "one is 3 x 8 and starts at 32"),
        ([(6, 5), (1, 1), (3, 8)], [-1, 30, 31], "one is 6 x 5 and starts at -1"),
        ([(6, 5), (-1, -1), (3, 8)], [0, 30, 31], "one is -1 x -1 and starts at 30"),
        ([(2**40, 2**40), (1, 1), (3, 8)], [0, 30, 31], f"one is {2**40} x {2**40}"),
        ([(6, 5), (1, 1), (3, 7)], [0, 30, 31], "must cover value's S = 55, .* have 52 pixels"),
    ],
)
def test_levels_must_fit_the_value(shapes, starts, message):
    arguments = list(msda_arguments())
    arguments[1:3] = torch.tensor(shapes), torch.tensor(starts)
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn(*arguments)
    grad = grad_like_output(arguments)
    with pytest.raises(RuntimeError, match=message):
        BACKWARD(grad, *arguments, ALL)


def test_a_gradient_of_the_wrong_shape_is_named():
    arguments = msda_arguments()
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 7, 15\)"):
        BACKWARD(grad_like_output(arguments)[:, :3], *arguments, ALL)
    with pytest.raises(RuntimeError, match="grad_output must be float64, but is float32"):
        BACKWARD(grad_like_output(arguments).float(), *arguments, ALL)


def test_tensors_on_two_devices_are_refused():
    arguments = list(msda_arguments())
    arguments[3] = arguments[3].to("meta")
    with pytest.raises(RuntimeError, match="on cpu like value|device"):
        ms_deform_attn(*arguments)
