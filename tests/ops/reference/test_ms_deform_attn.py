"""The reference against two other formulations, both in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_ops import reference
from tests.ops.samples import generator, msda_arguments
from tests.ops.tolerances import assert_close


def by_grid_sample(value, shapes, starts, locations, weights) -> Tensor:
    n, _, m, d = value.shape
    q, p = locations.shape[1], locations.shape[4]
    total = value.new_zeros(n * m, d, q)
    for level, (height, width) in enumerate(shapes.tolist()):
        start = int(starts[level])
        image = value[:, start : start + height * width].permute(0, 2, 3, 1)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).reshape(n * m, q, p, 2) - 1
        sampled = F.grid_sample(image.reshape(n * m, d, height, width), grid, align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).reshape(n * m, 1, q, p)
        total = total + (sampled * weight).sum(-1)
    return total.view(n, m * d, q).transpose(1, 2)


def by_loops(value, shapes, starts, locations, weights, num_points) -> Tensor:
    n, _, m, d = value.shape
    q = locations.shape[1]
    output = torch.zeros(n, q, m, d, dtype=torch.float64)
    level_of = [level for level, count in enumerate(num_points) for _ in range(count)]
    for i, j, k in torch.cartesian_prod(torch.arange(n), torch.arange(q), torch.arange(m)):
        for sample, level in enumerate(level_of):
            height, width = shapes[level].tolist()
            x = float(locations[i, j, k, sample, 0]) * width - 0.5
            y = float(locations[i, j, k, sample, 1]) * height - 0.5
            for row in range(height):
                for column in range(width):
                    share = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                    pixel = value[i, int(starts[level]) + row * width + column, k]
                    output[i, j, k] += weights[i, j, k, sample] * share * pixel
    return output.view(n, q, m * d)


def test_output_and_gradients_equal_grid_sample():
    *tensors, _ = msda_arguments(q=19)
    inputs = [tensors[i].requires_grad_() for i in (0, 3, 4)]
    expected = by_grid_sample(*tensors)
    grad = torch.randn(expected.shape, generator=generator(1), dtype=torch.float64)
    assert_close(reference.ms_deform_attn(*tensors), expected, torch.float64)
    gradients = reference.ms_deform_attn_backward(grad, *tensors, None, [True] * 3)
    for result, wanted in zip(gradients, torch.autograd.grad(expected, inputs, grad), strict=True):
        assert_close(result, wanted, torch.float64)


def test_levels_with_different_numbers_of_points_equal_plain_loops():
    arguments = msda_arguments(n=2, q=3, m=2, num_points=[2, 0, 3])
    assert_close(reference.ms_deform_attn(*arguments), by_loops(*arguments), torch.float64)


def test_levels_may_lie_in_any_order():
    value, shapes, starts, locations, weights, _ = msda_arguments(levels=[(2, 3), (4, 5)])
    swapped = torch.cat((value[:, 6:], value[:, :6]), 1)
    assert torch.equal(
        reference.ms_deform_attn(swapped, shapes, torch.tensor([20, 0]), locations, weights),
        reference.ms_deform_attn(value, shapes, starts, locations, weights),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, -0.5, 1.5])
def test_a_location_off_the_map_adds_nothing_whatever_the_numbers(bad):
    value, shapes, starts, locations, weights, _ = msda_arguments(levels=[(2, 2)], p=1)
    locations[:] = bad
    value[:] = math.nan
    assert not reference.ms_deform_attn(value, shapes, starts, locations, weights).any()
    grad = torch.ones(2, 7, 15, dtype=torch.float64)
    for gradient in reference.ms_deform_attn_backward(
        grad, value, shapes, starts, locations, weights, None, [True] * 3
    ):
        assert not gradient.any()
