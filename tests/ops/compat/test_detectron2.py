"""detectron2's names against grid_sample and a plain selection of points."""

import math

import pytest
import torch
import torch.nn.functional as F

from mask2former_ops import point_sample as op
from mask2former_ops.compat.detectron2 import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from tests.ops.samples import generator, point_arguments
from tests.ops.tolerances import assert_close

POINTS = [(2, 11), (2, 3, 4)]
HALF = [torch.float16, torch.bfloat16]


def by_grid_sample(input, points, **options):
    grid = 2 * points.reshape(len(points), -1, 1, 2) - 1
    return F.grid_sample(input, grid, **options).view(*input.shape[:2], *points.shape[1:-1])


def uncertainty(logits):
    return -logits.abs()


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_every_option_of_grid_sample_gives_its_output_and_gradients(
    mode, padding_mode, align_corners, points
):
    input, where = point_arguments(points=points)
    leaves = (input.requires_grad_(), where.requires_grad_())
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    result = point_sample(input, where, **options)
    expected = by_grid_sample(input, where, **options)
    assert_close(result, expected, torch.float64)
    grad = torch.randn(expected.shape, generator=generator(1), dtype=torch.float64)
    for ours, wanted in zip(
        torch.autograd.grad(result, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert_close(ours, wanted, torch.float64)


def test_corners_are_not_aligned_unless_asked():
    input, where = point_arguments()
    expected = by_grid_sample(input, where, align_corners=False)
    assert_close(point_sample(input, where), expected, torch.float64)
    assert_close(point_sample(input, where, align_corners=None), expected, torch.float64)


def test_what_the_operator_can_do_it_does():
    input, where = point_arguments(torch.bool, points=(1, 11))
    where[0, 0] = math.nan
    assert torch.equal(point_sample(input, where), op(input, where))
    assert not point_sample(input, where)[..., 0].any()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_points_of_one_serve_the_whole_batch(mode):
    input, where = point_arguments(n=3, points=(1, 11))
    expected = by_grid_sample(input, where.repeat(3, 1, 1), mode=mode, align_corners=False)
    assert_close(point_sample(input, where, mode=mode), expected, torch.float64)


@pytest.mark.parametrize("dtype", HALF)
def test_half_inputs_give_half_outputs_also_at_float32_points(dtype):
    for point_dtype in (dtype, torch.float32):
        input, where = point_arguments(dtype, point_dtype=point_dtype)
        result = point_sample(input, where)
        assert result.dtype == dtype
        expected = by_grid_sample(input.double(), where.double(), align_corners=False)
        assert_close(result, expected, dtype)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_under_autocast_the_output_is_float32_as_with_grid_sample(dtype, mode):
    input, where = point_arguments(dtype, point_dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = point_sample(input, where, mode=mode)
        theirs = by_grid_sample(input, where, mode=mode, align_corners=False)
    assert result.dtype == theirs.dtype == torch.float32
    exact = by_grid_sample(input.double(), where.double(), mode=mode, align_corners=False)
    assert_close(result, exact, torch.float32)


def test_it_compiles_into_one_graph():
    compiled = torch.compile(point_sample, fullgraph=True, backend="aot_eager")
    input, where = point_arguments()
    assert torch.equal(compiled(input, where), point_sample(input, where))


def test_what_grid_sample_does_not_know_is_refused():
    input, where = point_arguments()
    with pytest.raises(ValueError, match="mode to be 'bilinear'"):
        point_sample(input, where, mode="trilinear")
    with pytest.raises(TypeError, match="interpolation"):
        point_sample(input, where, interpolation="nearest")
    with pytest.raises(RuntimeError, match=r"points must have a first size of 1 or input's N = 2"):
        point_sample(input, where.repeat(2, 1, 1))


def plainly_chosen(logits, seed, num_points, oversample, importance):
    """The same points from the logits of one class, (N, 1, H, W), in the order of their drawing."""
    torch.manual_seed(seed)
    candidates = torch.rand(len(logits), int(num_points * oversample), 2, dtype=logits.dtype)
    chosen = int(importance * num_points)
    uniform = torch.rand(len(logits), num_points - chosen, 2, dtype=logits.dtype)
    sampled = by_grid_sample(logits, candidates, align_corners=False)[:, 0]
    order = sampled.abs().argsort(1)[:, :chosen]
    points = [torch.cat([c[i], u]) for c, i, u in zip(candidates, order, uniform, strict=True)]
    return torch.stack(points)


@pytest.mark.parametrize(
    ("num_points", "oversample", "importance"),
    [(10, 3, 0.75), (7, 1.5, 0.5), (5, 1, 1.0), (6, 2, 0.0), (0, 3, 0.75)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_are_the_least_certain_candidates_and_then_uniform_ones(
    dtype, num_points, oversample, importance
):
    logits = torch.randn(3, 1, 8, 9, generator=generator(0), dtype=torch.float64).to(dtype)
    numbers = (num_points, oversample, importance)
    torch.manual_seed(4)
    points = get_uncertain_point_coords_with_randomness(logits, uncertainty, *numbers)
    assert torch.equal(points, plainly_chosen(logits, 4, *numbers))


def test_the_function_of_uncertainty_sees_the_logits_of_every_class():
    logits = torch.randn(2, 3, 8, 8, generator=generator(0), dtype=torch.float64)
    torch.manual_seed(5)
    points = get_uncertain_point_coords_with_randomness(
        logits, lambda sampled: uncertainty(sampled[:, 1:2]), 20, 4, 0.9
    )
    assert torch.equal(points, plainly_chosen(logits[:, 1:2], 5, 20, 4, 0.9))


def test_every_mask_gets_points_of_its_own():
    torch.manual_seed(0)
    left, right = torch.full((1, 1, 8, 8), 9.0), torch.full((1, 1, 8, 8), 9.0)
    left[..., :2], right[..., -2:] = 0, 0
    logits = torch.cat([left, right])
    points = get_uncertain_point_coords_with_randomness(logits, uncertainty, 40, 3.0, 0.5)
    assert points[0, :20, 0].max() < 0.5 < points[1, :20, 0].min()


@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("dtype", HALF)
def test_points_of_half_logits_are_float32_and_nothing_is_kept_for_a_gradient(dtype, n):
    def checking(sampled):
        assert not sampled.requires_grad
        return uncertainty(sampled)

    logits = torch.randn(n, 1, 4, 4, generator=generator(0)).to(dtype).requires_grad_()
    points = get_uncertain_point_coords_with_randomness(logits, checking, 5, 3, 0.75)
    assert points.shape == (n, 5, 2)
    assert points.dtype == torch.float32


def test_ratios_out_of_range_are_named():
    logits = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="oversample_ratio must be at least 1, but is 0.5"):
        get_uncertain_point_coords_with_randomness(logits, uncertainty, 5, 0.5, 0.75)
    for ratio in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"ratio must be from 0 to 1, but is {ratio}"):
            get_uncertain_point_coords_with_randomness(logits, uncertainty, 5, 3, ratio)
