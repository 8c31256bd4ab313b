"""Both operators against the reference in float64, on random arguments from hypothesis.

MASK2FORMER_FUZZ=N tries N of each, different ones in every run. The default is a few hundred, the
same in every run.
"""

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former_ops import reference
from tests.ops.samples import (
    channels_last,
    generator,
    msda_arguments,
    msda_grad,
    on_the_grid,
    point_arguments,
    point_grad,
    spread,
)
from tests.ops.tolerances import RELATIVE_ERROR

pytestmark = pytest.mark.usefixtures("any_kernels")
OPS = torch.ops.mask2former_ops
EXAMPLES = os.environ.get("MASK2FORMER_FUZZ")
fuzz = settings(
    max_examples=int(EXAMPLES or 500),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    # The instruction set stays the same for all examples of a test.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# ---- what is drawn -------------------------------------------------------------------------------

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CHANNELS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 130]
ODD_NUMBERS = [
    *(math.nan, math.inf, -math.inf, 1e30, -1e30, 6e4),
    *(0, -0.0, 1e-40, 1, 1 - 1e-7, 1 + 1e-7),
]


def offset(tensor):
    """Begins in the middle of a cache line."""
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def backwards(tensor):
    """Has its dimensions in memory in the reverse order."""
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def expanded(tensor):
    """Is the same for the whole batch, with a stride of zero."""
    return tensor[:1].expand_as(tensor)


LAYOUTS = st.sampled_from([torch.clone, spread, offset, backwards, expanded, channels_last])
SEEDS = st.integers(0, 2**32)
KINDS = st.sets(st.sampled_from(["on the grid", "odd"]))
# Drawn from lists and not as integers, of which hypothesis makes far too many zeros.
FEW, SOME = st.sampled_from([0, 1, 1, 2, 2, 3, 4]), st.sampled_from([0, 1, 2, 3, 5, 7, 9, 40])

ATTENTION = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "float32_locations": st.booleans(),
        "float32_weights": st.booleans(),
        "n": FEW,
        "q": SOME,
        "m": FEW,
        "d": st.sampled_from(CHANNELS),
        "levels": st.lists(st.tuples(SOME, SOME, FEW), max_size=5),
        "even": st.booleans(),  # all levels have the points of the first one
        "kinds": KINDS,
        "layouts": st.tuples(*[LAYOUTS] * 4, *[st.sampled_from([torch.clone, spread])] * 2),
        "mask": st.tuples(*[st.booleans()] * 3),
        "seed": SEEDS,
    }
)
SAMPLING = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, torch.bool, torch.uint8]),
        "float32_points": st.booleans(),
        "n": FEW,
        "c": st.sampled_from(CHANNELS),
        "size": st.tuples(SOME, SOME),
        "points": st.tuples(SOME) | st.tuples(FEW, SOME),
        "shared": st.booleans(),
        "align_corners": st.booleans(),
        "kinds": KINDS,
        "layouts": st.tuples(*[LAYOUTS] * 3),
        "mask": st.tuples(*[st.booleans()] * 2),
        "seed": SEEDS,
    }
)


def move_some(locations, size, kinds, seed, align_corners=False):
    """Puts some locations on the pixel grid of a map (H, W), and makes some coordinates odd."""
    g = generator(seed)
    # Between the roundings of float64 locations on the grid the slopes of either cell are right.
    if "on the grid" in kinds and min(size) > 0 and locations.dtype != torch.float64:
        some = torch.rand(locations.shape[:-1], generator=g) < 0.4
        on_grid = on_the_grid(size, int(some.sum()), align_corners=align_corners, seed=seed)
        locations[some] = on_grid.to(locations.dtype)
    if "odd" in kinds:
        some = torch.rand(locations.shape, generator=g) < 0.2
        odd = torch.tensor(ODD_NUMBERS, dtype=torch.float64)
        odd = odd[torch.randint(len(odd), (int(some.sum()),), generator=g)]
        locations[some] = odd.to(locations.dtype)


# ---- what must hold ------------------------------------------------------------------------------


def largest(tensor):
    return tensor.abs().max() if tensor.numel() else tensor.new_zeros(())


def assert_near(result, expected, terms, dtype):
    """Asserts an error small beside `terms`, which the terms of the sums do not exceed."""
    assert result.shape == expected.shape
    assert result.isfinite().all()
    assert (result.double() - expected).norm() <= RELATIVE_ERROR[dtype] * terms.norm()


def check_gradients(gradients, expected, terms, mask, dtype):
    for i, asked in enumerate(mask):
        if asked:
            assert_near(gradients[i], expected[i], terms[i], dtype)
        else:
            assert gradients[i].shape == (0,)


@fuzz
@given(ATTENTION)
def test_attention_agrees_with_the_reference(drawn):
    dtype, d, kinds, mask, seed = (drawn[key] for key in ("dtype", "d", "kinds", "mask", "seed"))
    levels = [level[:2] for level in drawn["levels"]]
    points = [level[2] for level in drawn["levels"]]
    other = torch.float64 if dtype == torch.float64 else torch.float32
    value, shapes, starts, locations, weights, points = msda_arguments(
        dtype,
        location_dtype=other if drawn["float32_locations"] else dtype,
        weight_dtype=other if drawn["float32_weights"] else dtype,
        **{key: drawn[key] for key in "nqmd"},
        levels=levels,
        p=points[0] if points else 0,
        num_points=None if drawn["even"] else points,
        seed=seed,
    )
    per_level = locations.unbind(3) if points is None else locations.split(points, 3)
    for level, where in enumerate(per_level if levels else []):
        move_some(where, levels[level], kinds, seed + level)
    order = torch.randperm(len(levels), generator=generator(seed))  # of the levels in value
    areas = shapes.prod(1)[order]
    starts[order] = areas.cumsum(0) - areas
    grad = msda_grad((value, shapes, starts, locations), seed)
    grad, value, locations, weights, shapes, starts = (
        layout(tensor)
        for layout, tensor in zip(
            drawn["layouts"], (grad, value, locations, weights, shapes, starts), strict=True
        )
    )

    arguments = value, shapes, starts, locations, weights, points
    output = OPS.ms_deform_attn(*arguments)
    gradients = OPS.ms_deform_attn_backward(grad, *arguments, mask)
    g, v, x, w = (tensor.double() for tensor in (grad, value, locations, weights))
    exact = v, shapes, starts, x, w, points
    expected = reference.ms_deform_attn(*exact)
    sum_of_weights = w.flatten(3).sum(-1)  # no weight is negative
    assert_near(output, expected, sum_of_weights.repeat_interleave(d, 2) * largest(v), dtype)
    sum_of_grads = g.abs().reshape(*w.shape[:3], d).sum(-1)
    weight_terms = sum_of_grads.view(*w.shape[:3], *[1] * (w.dim() - 3)).expand_as(w) * largest(v)
    location_terms = (weight_terms * w * largest(shapes)).unsqueeze(-1).expand_as(x)
    value_terms, *_ = reference.ms_deform_attn_backward(g.abs(), *exact, [True, False, False])
    expected = reference.ms_deform_attn_backward(g, *exact, mask)
    check_gradients(gradients, expected, (value_terms, location_terms, weight_terms), mask, dtype)


@fuzz
@given(SAMPLING)
def test_point_sampling_agrees_with_the_reference(drawn):
    dtype, n, size, align_corners = (drawn[key] for key in ("dtype", "n", "size", "align_corners"))
    wide = dtype if dtype == torch.float64 else torch.float32
    input, points = point_arguments(
        dtype,
        point_dtype=wide if drawn["float32_points"] or not dtype.is_floating_point else dtype,
        n=n,
        c=drawn["c"],
        size=size,
        points=(1 if drawn["shared"] else n, *drawn["points"]),
        seed=drawn["seed"],
    )
    move_some(points, size, drawn["kinds"], drawn["seed"], align_corners)
    grad = point_grad(input, points, drawn["seed"])
    grad, input, points = (
        layout(tensor)
        for layout, tensor in zip(drawn["layouts"], (grad, input, points), strict=True)
    )
    mask = drawn["mask"] if dtype.is_floating_point else (False, drawn["mask"][1])

    output = OPS.point_sample(input, points, align_corners=align_corners)
    gradients = OPS.point_sample_backward(grad, input, points, align_corners, mask)
    g, v, x = (tensor.double() for tensor in (grad, input, points))
    expected = reference.point_sample(v, x, align_corners=align_corners)
    assert_near(output, expected, largest(v).expand_as(expected), output.dtype)
    sum_of_grads = g.abs().sum((0, 1) if points.shape[0] == 1 else 1).reshape(x.shape[:-1])
    point_terms = (sum_of_grads * largest(v) * max(size)).unsqueeze(-1).expand_as(x)
    input_terms, _ = reference.point_sample_backward(g.abs(), v, x, align_corners, [True, False])
    expected = reference.point_sample_backward(g, v, x, align_corners, mask)
    check_gradients(gradients, expected, (input_terms, point_terms), mask, output.dtype)
