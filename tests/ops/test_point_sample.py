"""The numbers of the operator, compiled where the library is built, against the reference in
float64. Autograd, torch.compile and the like are in test_point_sample_contract.py."""

import math

import pytest
import torch

from mask2former_ops import point_sample, reference
from tests.ops.samples import (
    channels_last,
    generator,
    lazy_zeros,
    on_the_grid,
    point_arguments,
    point_grad,
    spread,
)
from tests.ops.tolerances import assert_all_equal, assert_close

pytestmark = pytest.mark.usefixtures("any_kernels")
OP = torch.ops.mask2former_ops.point_sample.default
BACKWARD = torch.ops.mask2former_ops.point_sample_backward.default
# The operator runs the kernel where there is one; the reference must hold the same limits.
IMPLEMENTATIONS = [(OP, BACKWARD), (reference.point_sample, reference.point_sample_backward)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MASKS = [torch.bool, torch.uint8]
BOTH = [True, True]
POINTS = [(2, 11), (1, 11), (2, 3, 4), (1, 3, 4)]
CONTIGUOUS_AND_CHANNELS_LAST = pytest.mark.parametrize(
    "layout", [torch.clone, channels_last], ids=["contiguous", "channels_last"]
)


def check_against_float64(forward, backward, input, points, align_corners=False):
    grad = point_grad(input, points)
    dtype = grad.dtype
    exact = input.double(), points.double()
    output = forward(input, points, align_corners=align_corners)
    assert output.dtype == dtype
    assert_close(output, reference.point_sample(*exact, align_corners=align_corners), dtype)
    mask = [input.is_floating_point(), True]
    expected = reference.point_sample_backward(grad.double(), *exact, align_corners, mask)
    result = backward(grad, input, points, align_corners, mask)
    if mask[0]:
        assert result[0].dtype == input.dtype
        assert_close(result[0], expected[0], dtype)
    assert result[1].dtype == points.dtype
    assert_close(result[1], expected[1], dtype)


def results(input, points, grad, align_corners=False):
    """The output and both gradients."""
    gradients = BACKWARD(grad, input, points, align_corners, BOTH)
    return OP(input, points, align_corners=align_corners), *gradients


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dtype", DTYPES + MASKS)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_output_and_gradients_are_within_the_limits(
    forward, backward, dtype, points, align_corners
):
    arguments = point_arguments(dtype, points=points, c=5, seed=len(points))
    check_against_float64(forward, backward, *arguments, align_corners)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_may_come_with_float32_points(dtype):
    check_against_float64(OP, BACKWARD, *point_arguments(dtype, point_dtype=torch.float32))


@CONTIGUOUS_AND_CHANNELS_LAST
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", DTYPES + MASKS)
@pytest.mark.parametrize(("forward", "backward"), IMPLEMENTATIONS, ids=["operator", "reference"])
def test_points_may_lie_exactly_on_the_pixel_grid(forward, backward, dtype, align_corners, layout):
    """Centres and edges, where another rounding would take the slope of the next cell."""
    sizes = [(9, 17), (1, 5), (129, 2)] if align_corners else [(8, 16), (1, 4), (128, 2)]
    if dtype != torch.float64:  # between the roundings of these sizes either slope is right
        sizes += [(5, 6), (7, 100), (11, 13)]
    for size in sizes:
        input, points = point_arguments(dtype, size=size, points=(1, 300))
        points[0] = on_the_grid(size, 300, align_corners=align_corners)
        check_against_float64(forward, backward, layout(input), points, align_corners)


@CONTIGUOUS_AND_CHANNELS_LAST
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (300, 501)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_maps_of_any_size(dtype, size, layout):
    input, points = point_arguments(dtype, size=size, points=(1, 40))
    check_against_float64(OP, BACKWARD, layout(input), points)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("points", [(2, 70), (1, 70), (2, 3, 24)])
@pytest.mark.parametrize("c", [2, 3, 9, 40, 131])
@pytest.mark.parametrize("dtype", DTYPES + MASKS)
def test_channels_may_lie_side_by_side(dtype, c, points, align_corners):
    input, points = point_arguments(dtype, c=c, points=points)
    last = channels_last(input)
    assert last.stride(1) == 1
    check_against_float64(OP, BACKWARD, last, points, align_corners)


@pytest.mark.compares_bits
@pytest.mark.parametrize("dtype", DTYPES + MASKS)
def test_channels_side_by_side_may_be_some_of_many(dtype):
    input, points = point_arguments(dtype, c=40)
    last, some = channels_last(input[:, 5:25]), channels_last(input)[:, 5:25]
    assert last.stride() != some.stride()
    grad, mask = point_grad(some, points), [dtype.is_floating_point, True]
    assert torch.equal(OP(some, points), OP(last, points))
    assert_all_equal(
        BACKWARD(grad, some, points, False, mask), BACKWARD(grad, last, points, False, mask)
    )


@pytest.mark.compares_bits
@pytest.mark.parametrize("points", [(3, 1000), (1, 1000)])
def test_channels_side_by_side_give_bit_identical_gradients_of_the_input(points):
    """They do not read it."""
    input, points = point_arguments(torch.float32, n=3, c=20, points=points)
    grad = point_grad(input, points)
    assert torch.equal(
        results(channels_last(input), points, grad)[1], results(input, points, grad)[1]
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("n", "c", "points"), [(40, 1, (40, 5000)), (2, 37, (1, 5000))])
def test_many_maps_and_many_points(n, c, points):
    """More planes and points than a kernel takes at a time."""
    check_against_float64(
        OP, BACKWARD, *point_arguments(torch.float32, n=n, c=c, size=(20, 30), points=points)
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("count", [400, 20000])
def test_a_half_map_may_be_too_large_for_one_buffer(count):
    """Its gradient is summed up in float32, a few rows at a time."""
    check_against_float64(
        OP, BACKWARD, *point_arguments(torch.float16, c=2, size=(1100, 1900), points=(1, count))
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "sizes",
    [
        {"n": 0, "points": (1, 11)},
        {"n": 0, "points": (0, 11)},
        {"c": 0},
        {"points": (2, 0)},
        {"points": (1, 3, 0)},
        {"size": (0, 7)},
        {"size": (6, 0)},
    ],
)
def test_every_size_may_be_zero(sizes):
    check_against_float64(OP, BACKWARD, *point_arguments(torch.float32, **sizes))


@pytest.mark.compares_bits
def test_shared_points_equal_points_repeated_for_every_image():
    input, points = point_arguments(torch.float32, n=3, points=(1, 11))
    repeated = points.repeat(3, 1, 1)
    assert torch.equal(point_sample(input, points), point_sample(input, repeated))
    grad = point_grad(input, points)
    shared = BACKWARD(grad, input, points, False, BOTH)
    single = BACKWARD(grad, input, repeated, False, BOTH)
    assert torch.equal(shared[0], single[0])
    assert_close(shared[1], single[1].double().sum(0, keepdim=True), torch.float32)


def test_masks_are_sampled_like_the_numbers_they_stand_for():
    for dtype in MASKS:
        input, points = point_arguments(dtype)
        assert torch.equal(point_sample(input, points), point_sample(input.float(), points))


@pytest.mark.compares_bits
def test_inputs_need_not_be_contiguous():
    arguments = [*point_arguments(torch.float32), point_grad(*point_arguments(torch.float32))]
    scattered = [spread(x) for x in arguments]
    assert not any(x.is_contiguous() for x in scattered)
    assert_all_equal(results(*scattered), results(*arguments))


@pytest.mark.compares_bits
def test_inputs_may_be_transposed_or_expanded():
    """Rows and columns swapped, and strides of zero."""
    input, points = point_arguments(torch.float32)
    grad = point_grad(input, points)
    turned = input.mT.contiguous().mT
    assert not turned.is_contiguous()
    assert_all_equal(results(turned, points, grad), results(input, points, grad))
    one = input[:1, :1].expand_as(input), points[:1].expand_as(points), grad[0, 0].expand_as(grad)
    assert_all_equal(results(*one), results(*(x.contiguous() for x in one)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
def test_a_map_may_have_more_than_2_to_the_31_pixels(dtype):
    side = 46500
    input = lazy_zeros(1, 1, side, side, dtype=dtype)
    assert input.numel() > 2**31
    # Only the last 3x3 pixels are not zero, so they alone give the same samples.
    small, where = point_arguments(dtype, point_dtype=torch.float32, n=1, c=1, size=(3, 3))
    input[..., -3:, -3:] = small
    points = ((where[:1].double() * 3 + side - 3) / side).float()
    in_corner = (points.double() * side - (side - 3)) / 3
    expected = reference.point_sample(small.double(), in_corner)
    output = point_sample(input, points)
    assert_close(output, expected, output.dtype)
    grad, mask = point_grad(input, points), [False, True]
    _, result = BACKWARD(grad, input, points, False, mask)
    _, expected = reference.point_sample_backward(
        grad.double(), small.double(), in_corner, False, mask
    )
    assert_close(result, expected * side / 3, output.dtype)


def test_a_batch_may_have_more_than_2_to_the_31_pixels():
    input = lazy_zeros(3, 683, 1024, 1024, dtype=torch.uint8)
    assert input.numel() > 2**31
    input[-1, -1] = 7
    output = point_sample(input, torch.full((1, 2, 2), 0.99))
    assert torch.equal(output[-1, -1], torch.tensor([7.0, 7.0]))
    assert output.sum() == 14


@pytest.mark.parametrize("strides", [(2**31, 42, 7, 1), (2**31, 1, 21, 3)])
def test_a_stride_may_pass_2_to_the_31(strides):
    input, points = point_arguments(torch.uint8)
    scattered = lazy_zeros(2**31 + 1000, dtype=torch.uint8)
    scattered = scattered.as_strided(input.shape, strides).copy_(input)
    expected = point_sample(input, points).double()
    assert_close(point_sample(scattered, points), expected, torch.float32)


@pytest.mark.compares_bits
@CONTIGUOUS_AND_CHANNELS_LAST
@pytest.mark.parametrize("points", [(3, 3000), (1, 9000)])
def test_results_do_not_depend_on_the_number_of_threads(points, layout):
    input, points = point_arguments(torch.float32, n=3, c=20, size=(31, 17), points=points)
    grad = point_grad(input, points)
    input = layout(input)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(input, points, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_all_equal(other, found[0])


@pytest.mark.compares_bits
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("coordinates", [[0], [1], [0, 1]], ids=["x", "y", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 6e4, -1, 2])
@CONTIGUOUS_AND_CHANNELS_LAST
def test_a_point_off_the_map_samples_zero_and_gets_no_gradient(
    layout, dtype, bad, coordinates, align_corners
):
    input, points = point_arguments(dtype, size=(2, 2), points=(1, 40))
    input = layout(input)
    where = torch.rand(points.shape[:-1], generator=generator(3)) < 0.5
    calm = torch.where(where[..., None], torch.full_like(points, -2), points)
    for coordinate in coordinates:
        points[..., coordinate][where] = torch.tensor(bad, dtype=torch.float64).to(dtype)
    grad = point_grad(input, points)
    grad[:, :, where[0]] = math.nan  # must not matter there
    found = results(input, points, grad, align_corners)
    assert_all_equal(found, results(input, calm, grad.nan_to_num(0), align_corners))
    assert not found[2][where].any()


BAD = [math.nan, math.inf, -math.inf]
FOUR_KINDS_OF_POINTS = pytest.mark.parametrize("points", POINTS)


def pixels_read(input, points, grad):
    """Which numbers of input take part in the products with grad that are not zero."""
    gradients = reference.point_sample_backward(
        grad.double(), input.double(), points.double(), False, [True, False]
    )
    return gradients[0] != 0


@pytest.mark.compares_bits
@FOUR_KINDS_OF_POINTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
@CONTIGUOUS_AND_CHANNELS_LAST
def test_pixels_that_no_point_reads_may_be_anything(layout, bad, dtype, points):
    input, points = point_arguments(dtype, points=points)
    input = layout(input)
    grad = point_grad(input, points)
    read = pixels_read(input, points, torch.ones_like(grad))
    assert 0.2 < read.double().mean() < 0.8
    poisoned = layout(torch.where(read, input, bad))
    assert_all_equal(results(poisoned, points, grad), results(input, points, grad))


@FOUR_KINDS_OF_POINTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
@CONTIGUOUS_AND_CHANNELS_LAST
def test_a_bad_channel_reaches_only_its_own_output(layout, bad, dtype, points):
    input, points = point_arguments(dtype, points=points, c=20)
    input = layout(input)
    poisoned = input.clone()
    poisoned[1, 17] = bad
    output, expected = point_sample(poisoned, points), point_sample(input, points)
    on_the_map = expected[1, 17] != 0
    assert not output[1, 17][on_the_map].isfinite().any()
    assert not output[1, 17][~on_the_map].any()
    output[1, 17] = expected[1, 17]
    assert torch.equal(output, expected)


@pytest.mark.compares_bits
@FOUR_KINDS_OF_POINTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
@CONTIGUOUS_AND_CHANNELS_LAST
def test_a_bad_gradient_reaches_only_what_its_point_sampled(layout, bad, dtype, points):
    input, points = point_arguments(dtype, points=points)
    input = layout(input)
    grad = point_grad(input, points)
    one = (1, 2) + (1,) * (points.dim() - 2)
    at = (-1,) + (1,) * (points.dim() - 2)  # that point, also where the batch shares it
    points[at] = 0.47  # on the map
    expected_input, expected_points = results(input, points, grad)[1:]
    alone = torch.zeros_like(grad)
    alone[one] = 1
    read = pixels_read(input, points, alone)
    assert read.sum() == 4
    grad[one] = bad
    by_input, by_points = results(input, points, grad)[1:]
    assert not by_input[read].isfinite().any()
    assert torch.equal(by_input[~read], expected_input[~read])
    by_points[at] = expected_points[at]
    assert torch.equal(by_points, expected_points)
