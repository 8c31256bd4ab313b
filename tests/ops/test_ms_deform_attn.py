"""The numbers of the operator, compiled where the library is built, against the reference in
float64. Autograd, torch.compile and the like are in test_ms_deform_attn_contract.py."""

import math

import pytest
import torch

from mask2former_ops import _extension, ms_deform_attn, reference
from tests.ops.samples import generator, lazy_zeros, msda_arguments, msda_grad, on_the_grid, spread
from tests.ops.tolerances import assert_all_equal, assert_close

pytestmark = pytest.mark.usefixtures("any_kernels")
OP = torch.ops.mask2former_ops.ms_deform_attn.default
BACKWARD = torch.ops.mask2former_ops.ms_deform_attn_backward.default
# The operator runs the kernel where there is one; the reference must hold the same limits.
IMPLEMENTATIONS = [(OP, BACKWARD), (reference.ms_deform_attn, reference.ms_deform_attn_backward)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALVES = [torch.float16, torch.bfloat16]
ALL = [True, True, True]


def in_float64(arguments):
    return [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]


def check_against_float64(forward, backward, arguments):
    dtype = arguments[0].dtype
    exact = in_float64(arguments)
    output = forward(*arguments)
    assert output.dtype == dtype
    assert_close(output, reference.ms_deform_attn(*exact), dtype)
    grad = msda_grad(arguments)
    expected = reference.ms_deform_attn_backward(grad.double(), *exact, ALL)
    for result, wanted, index in zip(
        backward(grad, *arguments, ALL), expected, (0, 3, 4), strict=True
    ):
        assert result.dtype == arguments[index].dtype
        assert_close(result, wanted, dtype)


def min_float32(dtype):
    """What detectors keep the locations in."""
    return dtype if dtype == torch.float64 else torch.float32


def results(arguments, grad):
    """The output and all gradients."""
    return OP(*arguments), *BACKWARD(grad, *arguments, ALL)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("d", [1, 5, 8, 30, 32, 64, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_output_and_gradients_are_within_the_limits(forward, backward, dtype, d):
    check_against_float64(forward, backward, msda_arguments(dtype, d=d, seed=d))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("p", [4, 8])
@pytest.mark.parametrize("levels", [1, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_that_detectors_use(dtype, levels, p):
    levels = [(6, 5), (3, 8), (4, 4), (2, 3), (1, 1)][:levels]
    for d in (16, 32, 64):
        arguments = msda_arguments(
            dtype, location_dtype=min_float32(dtype), levels=levels, d=d, p=p, q=5, m=8
        )
        check_against_float64(OP, BACKWARD, arguments)


@pytest.mark.parametrize("d", [1025, 2048, 3096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_may_be_large(dtype, d):
    check_against_float64(OP, BACKWARD, msda_arguments(dtype, d=d, n=1, q=3, m=2))


@pytest.mark.parametrize("weight_dtype", ["half", "float32"])
@pytest.mark.parametrize("location_dtype", ["half", "float32"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_half_values_may_come_with_float32_locations_or_weights(
    forward, backward, dtype, location_dtype, weight_dtype
):
    dtypes = {"half": dtype, "float32": torch.float32}
    arguments = msda_arguments(
        dtype, location_dtype=dtypes[location_dtype], weight_dtype=dtypes[weight_dtype]
    )
    check_against_float64(forward, backward, arguments)


@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_coordinates_are_exact_on_large_maps(forward, backward):
    arguments = msda_arguments(torch.float32, levels=[(400, 601), (53, 1)], n=1, q=50, m=1, d=2)
    check_against_float64(forward, backward, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_locations_may_lie_exactly_on_the_pixel_grid(forward, backward, dtype):
    """Centres and edges, where another rounding would take the slope of the next cell."""
    levels = [(8, 16), (1, 4), (2, 1), (128, 2), (5, 6), (7, 100), (1, 3)]
    if dtype == torch.float64:  # between the roundings of other sizes either slope is right
        levels = levels[:4]
    value, shapes, starts, locations, weights, _ = msda_arguments(dtype, levels=levels, q=40)
    for level, size in enumerate(levels):
        where = on_the_grid(size, locations[:, :, :, level, :, 0].numel(), seed=level)
        locations[:, :, :, level] = where.view(locations[:, :, :, level].shape)
    check_against_float64(forward, backward, (value, shapes, starts, locations, weights, None))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("num_points", [[3, 0, 2], [0, 0, 0], [4, 4, 4]])
def test_levels_may_have_different_numbers_of_points(num_points):
    arguments = msda_arguments(torch.float32, num_points=num_points)
    check_against_float64(OP, BACKWARD, arguments)
    assert torch.equal(ms_deform_attn(*arguments), OP(*arguments))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("d", [5, 32])
@pytest.mark.parametrize("num_points", [None, [4, 0, 8, 4] * 6])
def test_there_may_be_many_levels(num_points, d):
    levels = [(1 + i % 3, 1 + i % 5) for i in range(24)]
    check_against_float64(
        OP, BACKWARD, msda_arguments(torch.float32, levels=levels, num_points=num_points, d=d)
    )


def test_levels_may_lie_in_value_in_any_order():
    arguments = list(msda_arguments(torch.float32, levels=[(6, 5), (0, 4), (1, 1), (3, 8)]))
    arguments[2] = torch.tensor([25, 10, 24, 0])
    check_against_float64(OP, BACKWARD, arguments)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("empty", ["n", "q", "m", "d", "p", "levels", "one level", "all levels"])
def test_every_size_may_be_zero(empty, dtype):
    levels = {"levels": [], "one level": [(0, 3), (2, 2)], "all levels": [(0, 3), (2, 0)]}
    sizes = {"levels": levels[empty]} if empty in levels else {empty: 0}
    check_against_float64(OP, BACKWARD, msda_arguments(dtype, **sizes))


@pytest.mark.compares_bits
def test_inputs_need_not_be_contiguous():
    arguments = msda_arguments(torch.float32)
    grad = msda_grad(arguments)
    scattered = [spread(x) if torch.is_tensor(x) else x for x in arguments]
    assert not any(x.is_contiguous() for x in scattered[:5])
    assert_all_equal(results(scattered, spread(grad)), results(arguments, grad))


@pytest.mark.compares_bits
def test_inputs_may_be_transposed():
    value, shapes, starts, locations, weights, _ = arguments = msda_arguments(torch.float32)
    grad = msda_grad(arguments)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (value, locations, weights)]
    assert not any(x.is_contiguous() for x in views)
    transposed = views[0], shapes.T.contiguous().T, starts, *views[1:], None
    assert_all_equal(results(transposed, grad), results(arguments, grad))


@pytest.mark.compares_bits
def test_inputs_may_be_expanded():
    """With strides of zero: one number many times."""
    value, shapes, starts, locations, weights, _ = msda_arguments(torch.float32)
    value, locations, weights = (x[:1, :1].expand_as(x) for x in (value, locations, weights))
    grad = torch.ones(()).expand(2, 7, 15)
    arguments = value, shapes, starts, locations, weights, None
    repeated = [x.contiguous() if torch.is_tensor(x) else x for x in arguments]
    assert_all_equal(results(arguments, grad), results(repeated, grad.contiguous()))


needs_kernel = pytest.mark.skipif(
    _extension.MISSING is not None, reason="the reference would make a float32 copy of value"
)


@needs_kernel
def test_a_map_may_have_more_than_2_to_the_31_numbers():
    side, m, d = 11590, 2, 8
    value = lazy_zeros(1, side * side, m, d)
    assert value.numel() > 2**31
    # Only the last 3x3 pixels are not zero, so they alone give the same samples.
    corner = value.view(side, side, m, d)[-3:, -3:]
    small, _, start, where, weights, _ = msda_arguments(
        torch.float16, levels=[(3, 3)], n=1, m=m, d=d
    )
    corner.copy_(small.view(3, 3, m, d))
    where = ((where.double() * 3 + side - 3) / side).float()
    in_corner = (where.double() * side - (side - 3)) / 3
    arguments = value, torch.tensor([[side, side]]), start, where, weights, None
    exact = small.double(), torch.tensor([[3, 3]]), start, in_corner, weights.double(), None
    assert_close(OP(*arguments), reference.ms_deform_attn(*exact), torch.float16)
    grad, mask = msda_grad(arguments), [False, True, True]
    _, by_where, by_weights = BACKWARD(grad, *arguments, mask)
    _, expected, expected_weights = reference.ms_deform_attn_backward(grad.double(), *exact, mask)
    assert_close(by_where, expected * side / 3, torch.float16)
    assert_close(by_weights, expected_weights, torch.float16)


@needs_kernel
def test_a_batch_may_have_more_than_2_to_the_31_numbers():
    n, s = 2049, 1024 * 1024
    value = lazy_zeros(n, s, 1, 1)
    assert value.numel() > 2**31
    value[-1] = 1
    locations = torch.full((n, 1, 1, 1, 1, 2), 0.99)
    arguments = value, torch.tensor([[1024, 1024]]), torch.tensor([0]), locations
    output = OP(*arguments, torch.full((n, 1, 1, 1, 1), 0.5))
    assert torch.equal(output.flatten(), torch.tensor([0.0] * (n - 1) + [0.5]).half())


@pytest.mark.compares_bits
def test_a_stride_may_pass_2_to_the_31():
    arguments = list(msda_arguments(torch.float16))
    grad = msda_grad(arguments)
    expected = results(arguments, grad)
    scattered = lazy_zeros(2**31 + 1000).as_strided(arguments[0].shape, (2**31, 15, 5, 1))
    arguments[0] = scattered.copy_(arguments[0])
    assert_all_equal(results(arguments, grad), expected)


@pytest.mark.compares_bits
def test_results_do_not_depend_on_the_number_of_threads():
    arguments = msda_arguments(torch.float32, n=3, q=401, m=5, d=16)
    grad = msda_grad(arguments)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(arguments, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_all_equal(other, found[0])


@pytest.mark.compares_bits
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("coordinates", [[0], [1], [0, 1]], ids=["x", "y", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 6e4, -0.5, 1.5])
def test_a_location_off_the_map_adds_nothing_and_gets_no_gradient(dtype, bad, coordinates):
    value, shapes, starts, locations, weights, _ = msda_arguments(dtype, levels=[(2, 2)], p=1)
    where = torch.rand(locations.shape[:-1], generator=generator(3)) < 0.5
    calm = torch.where(where[..., None], torch.full_like(locations, -0.5), locations)
    zeroed = torch.where(where, torch.zeros_like(weights), weights)
    for coordinate in coordinates:
        locations[..., coordinate][where] = torch.tensor(bad, dtype=torch.float64).to(dtype)
    weights[where] = math.nan  # must not matter there
    grad = torch.ones(2, 7, 15, dtype=dtype)
    found = results((value, shapes, starts, locations, weights, None), grad)
    assert_all_equal(found, results((value, shapes, starts, calm, zeroed, None), grad))
    assert not found[2][where].any()
    assert not found[3][where].any()


BAD = [math.nan, math.inf, -math.inf]


def pixels_read(arguments, grad):
    """Which numbers of value take part in the products with grad that are not zero."""
    exact = in_float64(arguments)
    return reference.ms_deform_attn_backward(grad.double(), *exact, [True, False, False])[0] != 0


@pytest.mark.compares_bits
@pytest.mark.parametrize("d", [5, 16, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_pixels_that_no_sample_reads_may_be_anything(bad, dtype, d):
    value, *others = arguments = msda_arguments(dtype, d=d, q=2, p=2)
    grad = msda_grad(arguments)
    read = pixels_read(arguments, torch.ones_like(grad))
    assert 0.2 < read.double().mean() < 0.8
    poisoned = torch.where(read, value, bad)
    assert_all_equal(results((poisoned, *others), grad), results(arguments, grad))


@pytest.mark.compares_bits
@pytest.mark.parametrize("d", [5, 16, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_channel_reaches_only_its_own_output(bad, dtype, d):
    value, *others = arguments = msda_arguments(dtype, d=d)
    grad = msda_grad(arguments)
    poisoned = value.clone()
    poisoned[1, :, 2, 3] = bad
    output, by_value, *by_samples = results((poisoned, *others), grad)
    expected, expected_value, *expected_samples = results(arguments, grad)
    assert not output[1, :, 2 * d + 3].isfinite().any()
    output[1, :, 2 * d + 3] = expected[1, :, 2 * d + 3]
    for gradient, wanted in zip(by_samples, expected_samples, strict=True):
        gradient[1, :, 2] = wanted[1, :, 2]
    assert_all_equal((output, by_value, *by_samples), (expected, expected_value, *expected_samples))


@pytest.mark.compares_bits
@pytest.mark.parametrize("d", [5, 16, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_gradient_reaches_only_what_its_query_sampled(bad, dtype, d):
    arguments = msda_arguments(dtype, d=d)
    grad = msda_grad(arguments)
    head = (1, 4, slice(2 * d, 3 * d))  # the third head of a query
    alone = torch.zeros_like(grad)
    alone[head] = 1
    read = pixels_read(arguments, alone)
    _, expected_value, *expected_samples = results(arguments, grad)
    grad[head] = bad
    _, by_value, *by_samples = results(arguments, grad)
    assert not by_value[read].isfinite().any()
    assert torch.equal(by_value[~read], expected_value[~read])
    for gradient, wanted in zip(by_samples, expected_samples, strict=True):
        off_the_map = wanted[1, 4, 2] == 0
        assert off_the_map.any()
        assert not gradient[1, 4, 2][off_the_map].any()
        gradient[1, 4, 2] = wanted[1, 4, 2]
        assert torch.equal(gradient, wanted)
