"""Arguments as models pass them."""

from dataclasses import replace

import pytest
import torch

from benchmarks.inputs import arguments, grad_output
from benchmarks.shapes import Attention, Points
from mask2former_ops import point_sample
from tests.benchmarks.samples import ENCODER, LOGITS, MASKS, ROWS, UNEVEN


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.shape.name)
def test_they_are_the_same_on_every_call_and_leave_the_global_generator_alone(row):
    state = torch.random.get_rng_state()
    first, second = (arguments(row.shape, row.dtype) for _ in range(2))
    assert torch.random.get_rng_state().equal(state)
    for one, other in zip(first, second, strict=True):
        assert one.equal(other) if isinstance(one, torch.Tensor) else one == other


def test_maps_are_stored_in_the_dtype_and_the_rest_in_float32():
    value, _, _, locations, weights = arguments(ENCODER, torch.bfloat16)
    assert value.dtype == torch.bfloat16
    assert (locations.dtype, weights.dtype) == (torch.float32, torch.float32)
    masks, points = arguments(MASKS, torch.float32)
    assert (masks.dtype, points.dtype) == (torch.bool, torch.float32)
    assert grad_output(ENCODER, torch.bfloat16).dtype == torch.bfloat16


def test_locations_and_weights_are_half_where_the_shape_says_so():
    shape = replace(ENCODER, half_locations=True)
    value, shapes, _, locations, weights = arguments(shape, torch.bfloat16)
    assert value.dtype == locations.dtype == weights.dtype == torch.bfloat16
    assert shapes.dtype == torch.int64
    exact = arguments(ENCODER, torch.bfloat16)[3]
    assert locations.equal(exact.bfloat16())


def test_weights_of_a_query_and_head_sum_to_1():
    for shape in (ENCODER, UNEVEN):
        weights = arguments(shape, torch.float32)[4]
        torch.testing.assert_close(weights.flatten(3).sum(-1), torch.ones(weights.shape[:3]))


def test_encoder_queries_lie_in_raster_order_around_their_own_pixels():
    shape = Attention("", ((12, 16), (6, 8)), points=64)
    locations = arguments(shape, torch.float32)[3]
    assert locations.shape == (1, 240, 8, 2, 64, 2)
    offsets = [
        (locations[..., level, :, :] - query_centres()) * torch.tensor(size)
        for level, size in enumerate(((16, 12), (8, 6)))
    ]
    for pixels in offsets:
        assert pixels.std().item() == pytest.approx(2, abs=0.02)
        assert pixels.mean((0, 2, 3)).abs().max() < 0.5


def query_centres() -> torch.Tensor:
    """Pixel centres of a 12x16 and then a 6x8 map, (240, 1, 1, 2) as (x, y)."""
    centres = [
        ((x + 0.5) / width, (y + 0.5) / height)
        for height, width in ((12, 16), (6, 8))
        for y in range(height)
        for x in range(width)
    ]
    return torch.tensor(centres)[:, None, None]


def test_a_decoder_query_samples_a_box_of_up_to_half_the_image():
    shape = replace(UNEVEN, queries=500)
    locations = arguments(shape, torch.float32)[3]
    assert locations.shape == (2, 500, 8, 4, 2)
    extent = locations.amax((2, 3)) - locations.amin((2, 3))
    assert extent.max() <= 0.5 and extent.min() < 0.05
    assert arguments(shape, torch.float32)[5] == [1, 3]


def test_uncertain_points_lie_where_logits_are_near_zero():
    uniform = replace(LOGITS, size=(64, 64), points=500, where="uniform")
    certainty = [
        point_sample(*arguments(shape, torch.float32))[:, 0].abs().mean()
        for shape in (replace(uniform, planes=1, where="uncertain"), replace(uniform, planes=1))
    ]
    assert certainty[0] < 0.6 * certainty[1]


def test_shared_points_are_passed_once():
    shape = Points("", 3, 2, (5, 6), 4, "shared")
    logits, points = arguments(shape, torch.float32)
    assert logits.shape == (3, 2, 5, 6) and points.shape == (1, 4, 2)
