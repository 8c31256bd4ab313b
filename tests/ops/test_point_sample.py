"""The operator, compiled where the library is built, against the reference in float64."""

import math

import pytest
import torch

from mask2former_ops import point_sample, reference
from tests.ops.samples import generator, point_arguments
from tests.ops.tolerances import assert_close

OP = torch.ops.mask2former_ops.point_sample.default
BACKWARD = torch.ops.mask2former_ops.point_sample_backward.default
# The operator runs the kernel where there is one; the reference must hold the same limits.
IMPLEMENTATIONS = [(OP, BACKWARD), (reference.point_sample, reference.point_sample_backward)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MASKS = [torch.bool, torch.uint8]
POINTS = [(2, 11), (1, 11), (2, 3, 4), (1, 3, 4)]


def grad_like_output(input, points, seed=1):
    shape = *input.shape[:2], *points.shape[1:-1]
    grad = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return grad.to(input.dtype if input.is_floating_point() else torch.float32)


def check_against_float64(forward, backward, input, points, align_corners=False):
    grad = grad_like_output(input, points)
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


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (300, 501)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_maps_of_any_size(dtype, size):
    check_against_float64(OP, BACKWARD, *point_arguments(dtype, size=size, points=(1, 40)))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("n", "c", "points"), [(40, 1, (40, 5000)), (2, 37, (1, 5000))])
def test_many_maps_and_many_points(n, c, points):
    """More planes and points than a kernel takes at a time."""
    check_against_float64(
        OP, BACKWARD, *point_arguments(torch.float32, n=n, c=c, size=(20, 30), points=points)
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


def test_shared_points_equal_points_repeated_for_every_image():
    input, points = point_arguments(torch.float32, n=3, points=(1, 11))
    repeated = points.repeat(3, 1, 1)
    assert torch.equal(point_sample(input, points), point_sample(input, repeated))
    grad = grad_like_output(input, points)
    shared = BACKWARD(grad, input, points, False, [True, True])
    single = BACKWARD(grad, input, repeated, False, [True, True])
    assert torch.equal(shared[0], single[0])
    assert_close(shared[1], single[1].double().sum(0, keepdim=True), torch.float32)


def test_masks_are_sampled_like_the_numbers_they_stand_for():
    for dtype in MASKS:
        input, points = point_arguments(dtype)
        assert torch.equal(point_sample(input, points), point_sample(input.float(), points))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("points", [(2, 3), (1, 2, 2)])
def test_gradients_are_the_derivatives(points, align_corners):
    input, where = point_arguments(points=points, size=(3, 4))
    assert torch.autograd.gradcheck(
        lambda x, y: point_sample(x, y, align_corners),
        (input.requires_grad_(), where.requires_grad_()),
        atol=1e-7,
    )


# opcheck itself reads .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("points", [(1, 5), (2, 2, 3)])
def test_the_operator_passes_opcheck(dtype, points):
    input, where = point_arguments(dtype, points=points)
    grad = grad_like_output(input, where)
    mask = [False, True]
    torch.library.opcheck(BACKWARD, (grad, input, where, False, mask))
    if input.is_floating_point():
        input.requires_grad_()
    torch.library.opcheck(OP, (input, where.requires_grad_()), {"align_corners": True})


def test_it_compiles_into_one_graph_for_any_size():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(input, points):
        return point_sample(input, points).sin()

    for count in (11, 13):
        input, points = point_arguments(points=(1, count), seed=count)
        input.requires_grad_()
        expected = point_sample(input, points).sin()
        result = compiled(input, points)
        assert_close(result, expected, torch.float64)
        (ours,) = torch.autograd.grad(result.sum(), input)
        assert_close(ours, torch.autograd.grad(expected.sum(), input)[0], torch.float64)


@pytest.mark.parametrize("mask", [[True, False], [False, True]])
def test_only_the_gradients_asked_for_are_computed(mask):
    input, points = point_arguments()
    grad = grad_like_output(input, points)
    result = BACKWARD(grad, input, points, False, mask)
    assert [x.numel() > 0 for x in result] == mask
    leaf = (input, points)[mask.index(True)].requires_grad_()
    (gradient,) = torch.autograd.grad(point_sample(input, points), leaf, grad)
    assert torch.equal(gradient, result[mask.index(True)])


def test_a_second_derivative_is_refused():
    input, points = point_arguments()
    output = point_sample(input.requires_grad_(), points)
    (grad,) = torch.autograd.grad((output**2).sum(), input, create_graph=True)
    with pytest.raises(NotImplementedError, match="once, not twice"):
        grad.sum().backward()


def test_inputs_need_not_be_contiguous():
    input, points = point_arguments(torch.float32)
    grad = grad_like_output(input, points)
    apart = [torch.stack((x, torch.full_like(x, 77)), -1)[..., 0] for x in (input, points, grad)]
    assert not any(x.is_contiguous() for x in apart)
    assert torch.equal(point_sample(*apart[:2]), point_sample(input, points))
    both = [True, True]
    for result, expected in zip(
        BACKWARD(apart[2], *apart[:2], False, both),
        BACKWARD(grad, input, points, False, both),
        strict=True,
    ):
        assert torch.equal(result, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    input, points = point_arguments(torch.float32, n=3, c=20, size=(31, 17), points=(1, 9000))
    grad = grad_like_output(input, points)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            gradients = BACKWARD(grad, input, points, False, [True, True])
            results.append((OP(input, points), *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 6e4, -6e4, -0.5, 1.5])
def test_a_point_off_the_map_samples_zero_and_gets_no_gradient(dtype, bad):
    input, points = point_arguments(dtype, size=(2, 2), points=(1, 40))
    where = torch.rand(points.shape[:-1], generator=generator(3)) < 0.5
    calm = torch.where(where[..., None], torch.full_like(points, -0.5), points)
    points[where] = bad
    assert torch.equal(point_sample(input, points), point_sample(input, calm))
    grad = grad_like_output(input, points)
    grad[:, :, where[0]] = math.nan  # must not matter there
    result = BACKWARD(grad, input, points, False, [True, True])
    expected = BACKWARD(grad.nan_to_num(0), input, calm, False, [True, True])
    assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))
    assert not result[1][where].any()


def test_pixels_outside_the_samples_may_be_anything():
    input = torch.full((1, 1, 4, 4), math.nan)
    input[0, 0, :2, :2] = 1
    points = torch.tensor([[[0.25, 0.25], [0.2, 0.3], [-0.02, 0.2], [5, 5]]])
    assert point_sample(input, points).isfinite().all()


def test_autocast_keeps_the_input_and_takes_float32_points():
    input, points = point_arguments(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = point_sample(input, points.bfloat16())
        half = point_sample(input.bfloat16(), points)
    assert torch.equal(output, point_sample(input, points.bfloat16().float()))
    assert torch.equal(half, point_sample(input.bfloat16(), points))


# Argument changed, what it is changed to, and what the message must say.
WRONG = [
    (0, lambda x: x[0], r"input must have 4 dimensions \(N, C, H, W\), but has shape \(3, 6, 7\)"),
    (0, lambda x: x.int(), "input must be float64 or .* but is int32"),
    (1, lambda x: x.float(), "points must be float64, but is float32"),
    (1, lambda x: x[0], r"points must have 3 dimensions \(N or 1, P, 2\)"),
    (1, lambda x: x[..., :1], r"points must have shape \(N or 1, P, 2\) = \(any, any, 2\)"),
    (1, lambda x: x.repeat(2, 1, 1), "points must have a first size of 1 or input's N = 2, but"),
]  # fmt: skip


@pytest.mark.parametrize(("index", "change", "message"), WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_wrong_argument_is_named(device, index, change, message):
    arguments = list(point_arguments())
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match="point_sample: " + message):
        point_sample(*(x.to(device) for x in arguments))


def test_a_gradient_of_the_wrong_shape_is_named():
    input, points = point_arguments()
    grad = grad_like_output(input, points)
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 3, 11\)"):
        BACKWARD(grad[:, :2], input, points, False, [True, True])
    with pytest.raises(RuntimeError, match="grad_output must be float64, but is float32"):
        BACKWARD(grad.float(), input, points, False, [True, True])
