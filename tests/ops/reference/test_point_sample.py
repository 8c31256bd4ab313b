"""The reference against grid_sample and a plain formula, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from mask2former_ops import reference
from tests.ops.samples import generator, point_arguments
from tests.ops.tolerances import assert_close


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("points", [(2, 11), (2, 3, 4), (1, 11), (1, 3, 4)])
def test_output_and_gradients_equal_grid_sample(points, align_corners):
    input, where = point_arguments(points=points)
    input.requires_grad_()
    where.requires_grad_()
    grid = 2 * where.expand(2, *points[1:], 2).reshape(2, -1, 1, 2) - 1
    expected = F.grid_sample(input, grid, align_corners=align_corners).view(2, 3, *points[1:])
    result = reference.point_sample(input, where, align_corners=align_corners)
    assert_close(result, expected, torch.float64)
    grad = torch.randn(expected.shape, generator=generator(1), dtype=torch.float64)
    gradients = reference.point_sample_backward(grad, input, where, align_corners, [True, True])
    wanted = torch.autograd.grad(expected, (input, where), grad)
    for result, expected in zip(gradients, wanted, strict=True):
        assert_close(result, expected, torch.float64)


def test_a_pixel_centre_gives_its_pixel():
    input = torch.arange(12, dtype=torch.float64).view(1, 1, 3, 4)
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    rows, columns = rows.double(), columns.double()
    centres = torch.stack(((columns + 0.5) / 4, (rows + 0.5) / 3), -1)[None]
    assert_close(reference.point_sample(input, centres), input, torch.float64)
    corners = torch.stack((columns / 3, rows / 2), -1)[None]
    assert_close(reference.point_sample(input, corners, align_corners=True), input, torch.float64)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, -0.5, 1.5])
def test_a_point_off_the_map_samples_zero_whatever_the_numbers(bad):
    input, where = point_arguments(size=(2, 2))
    where[:] = bad
    input[:] = math.nan
    assert not reference.point_sample(input, where).any()
    for gradient in reference.point_sample_backward(
        torch.ones(2, 3, 11), input, where, False, [True, True]
    ):
        assert not gradient.any()
