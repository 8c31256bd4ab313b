"""What the tests of the numbers, which also run on the emulated CUDA kernels, leave open."""

import itertools

import pytest
import torch

from mask2former_ops import ms_deform_attn, point_sample, reference
from tests.ops import kernels
from tests.ops.samples import msda_arguments, msda_grad, point_arguments, point_grad
from tests.ops.tolerances import RELATIVE_ERROR, assert_close, relative_error

pytestmark = pytest.mark.skipif(
    not kernels.can_emulate(), reason="needs csrc, a C++ compiler and pybind11"
)
ALL = [True, True, True]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def emulation():
    module = kernels.emulation()
    module.reset_statistics()
    yield module
    module.seed(0)


def gradients(op, arguments, *, deterministic):
    if op == "ms_deform_attn":
        arguments = msda_grad(arguments), *arguments, ALL
    else:
        arguments = point_grad(*arguments), *arguments, False, [True, True]
    return kernels.run_emulated(f"{op}_backward", *arguments, deterministic=deterministic)


def arguments_of(op, dtype):
    """Many samples read each pixel."""
    if op == "ms_deform_attn":
        return msda_arguments(dtype, levels=[(3, 2), (2, 2)], q=40, d=16)
    return point_arguments(dtype, size=(3, 2), points=(1, 400))


# ---- the order of the threads --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["ms_deform_attn", "point_sample"])
def test_deterministic_gradients_do_not_depend_on_the_order_of_the_threads(emulation, op, dtype):
    found = {True: [], False: []}
    for deterministic, seed in itertools.product(found, range(4)):
        emulation.seed(seed)
        found[deterministic].append(
            gradients(op, arguments_of(op, dtype), deterministic=deterministic)
        )
    for others in found[True][1:]:
        assert all(map(torch.equal, others, found[True][0]))
    if dtype in (torch.float64, torch.float32):  # halves hide it in their rounding
        assert any(not torch.equal(others[0], found[False][0][0]) for others in found[False])
    for others in found[False][1:]:  # only gradients of value and of input are sums of threads
        assert all(map(torch.equal, others[1:], found[False][0][1:]))


@pytest.mark.parametrize("size", [1, 1e-30, 1e30])
@pytest.mark.parametrize("op", ["ms_deform_attn", "point_sample"])
def test_deterministic_gradients_are_exact_whatever_their_size(emulation, op, size):
    """They are summed up in fixed point, whose unit the largest number decides."""
    arguments = list(arguments_of(op, torch.float32))
    grad = msda_grad(arguments) if op == "ms_deform_attn" else point_grad(*arguments)
    rest = [ALL] if op == "ms_deform_attn" else [False, [True, True]]
    backward = getattr(reference, f"{op}_backward")
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    grad *= size
    expected = backward(grad.double(), *exact, *rest)
    result = kernels.run_emulated(f"{op}_backward", grad, *arguments, *rest, deterministic=True)
    for ours, wanted in zip(result, expected, strict=True):
        assert_close(ours, wanted, torch.float32)


@pytest.mark.parametrize("size", [1e-290, 1e290])
def test_deterministic_gradients_use_the_whole_range_of_float64(emulation, size):
    """The largest gradient times the largest weight, which belong to no one sample, may be inf."""
    arguments = list(msda_arguments(torch.float64, n=1, q=2, m=1, d=3))
    grad = msda_grad(arguments)
    grad[:, 0] *= size
    arguments[4][:, 1] /= size
    expected = reference.ms_deform_attn_backward(grad, *arguments, ALL)
    result = kernels.run_emulated(
        "ms_deform_attn_backward", grad, *arguments, ALL, deterministic=True
    )
    largest = expected[0].abs().max()
    assert expected[0].isfinite().all()
    assert relative_error(result[0] / largest, expected[0] / largest) <= 1e-9


def test_a_small_image_beside_a_large_one_keeps_its_digits(emulation):
    """Heads of images have units of their own."""
    arguments = msda_arguments(torch.float32, d=16)
    grad = msda_grad(arguments)
    grad[0] *= 1e-12
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    expected = reference.ms_deform_attn_backward(grad.double(), *exact, ALL)
    result = kernels.run_emulated(
        "ms_deform_attn_backward", grad, *arguments, ALL, deterministic=True
    )
    assert relative_error(result[0][0], expected[0][0]) <= RELATIVE_ERROR[torch.float32]


@pytest.mark.parametrize("wanted", [True, False])
def test_torchs_own_switch_asks_for_deterministic_gradients(wanted):
    asked = []

    def run(op, *arguments, **options):
        if op.endswith("backward"):
            asked.append((op, options))
        return kernels.run_emulated(op, *arguments, **options)

    torch.use_deterministic_algorithms(wanted)
    try:
        with kernels.replaced(run):
            value, *others, _ = msda_arguments(torch.float32)
            ms_deform_attn(value.requires_grad_(), *others).sum().backward()
            input, points = point_arguments(torch.float32)
            point_sample(input.requires_grad_(), points).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    # An option that has its default is not passed on.
    options = {"deterministic": True} if wanted else {}
    assert asked == [("ms_deform_attn_backward", options), ("point_sample_backward", options)]


# ---- levels that the host cannot read ------------------------------------------------------------


def attend(emulation, arguments, shapes, starts, *, fast):
    """The output and all gradients, by kernels that read the levels for themselves."""
    value, _, _, locations, attention, _ = arguments
    (n, s, m, d), (q, p) = value.shape, (locations.shape[1], locations.shape[4])
    grad_output = msda_grad(arguments)
    tensors = {
        "value": value,
        "shapes": shapes,
        "starts": starts,
        "locations": locations,
        "attention": attention,
        "output": torch.full_like(grad_output, torch.nan),
        "grad_output": grad_output,
        "grad_value": torch.zeros_like(value),
        "grad_locations": torch.full_like(locations, torch.nan),
        "grad_attention": torch.full_like(attention, torch.nan),
    }
    run = emulation.attend_fast if fast else emulation.attend
    run({name: x.data_ptr() for name, x in tensors.items()}, [n, s, m, d, q, len(shapes), p])
    names = "output", "grad_value", "grad_locations", "grad_attention"
    return [tensors[name] for name in names]


@pytest.mark.parametrize("fast", [True, False])
def test_kernels_read_levels_that_lie_on_the_device(emulation, fast):
    arguments = msda_arguments(torch.float32, d=32)
    _, shapes, starts, *_ = arguments
    found = attend(emulation, arguments, shapes, starts, fast=fast)
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    expected = [
        reference.ms_deform_attn(*exact),
        *reference.ms_deform_attn_backward(msda_grad(arguments).double(), *exact, ALL),
    ]
    for ours, wanted in zip(found, expected, strict=True):
        assert_close(ours, wanted, torch.float32)


BAD_LEVELS = {
    "too high": ([[7, 5], [1, 1], [3, 8]], [0, 30, 31]),
    "too wide": ([[6, 5], [1, 1], [3, 9]], [0, 30, 31]),
    "negative": ([[-6, -5], [1, 1], [3, 8]], [0, 30, 31]),
    "huge": ([[2**40, 2**40], [2**31, 1], [2**62, 4]], [0, 30, 31]),
    "starts before": ([[6, 5], [1, 1], [3, 8]], [-1, 30, -(2**62)]),
    "starts behind": ([[6, 5], [1, 1], [3, 8]], [26, 56, 2**62]),
    "empty": ([[0, 5], [1, 0], [0, 0]], [0, 30, 55]),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("shapes", "starts"), BAD_LEVELS.values(), ids=BAD_LEVELS)
def test_a_level_that_does_not_lie_in_value_is_not_sampled(emulation, shapes, starts, fast):
    """Whatever the numbers say: here value lies between numbers that may not be touched."""
    arguments = list(msda_arguments(torch.float32, d=32))
    value = arguments[0]
    guarded = torch.full((3, *value.shape), torch.nan)
    arguments[0] = guarded[1].copy_(value)
    output, by_value, by_locations, by_attention = attend(
        emulation, arguments, torch.tensor(shapes), torch.tensor(starts), fast=fast
    )
    sizes = torch.tensor(shapes).double().prod(1)
    for level, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        good = min(shapes[level]) > 0 and start >= 0 and start + size <= value.shape[1]
        assert by_locations[:, :, :, level].any() == good
        assert by_attention[:, :, :, level].any() == good
    assert output.isfinite().all()
    assert by_value.isfinite().all()


# ---- which kernel runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "sizes", "lanes"),
    [
        (torch.float32, {"d": 16}, 4),
        (torch.float32, {"d": 32}, 8),
        (torch.float32, {"d": 64, "p": 8}, 16),
        (torch.float16, {"d": 16}, 2),
        (torch.bfloat16, {"d": 32}, 4),
        (torch.bfloat16, {"d": 64, "levels": [(3, 2)]}, 8),
        (torch.float16, {"d": 16, "p": 2}, 2),
        (torch.float32, {"d": 32, "num_points": [8, 0, 4]}, 8),
        (torch.float32, {"d": 32, "p": 3}, 16),
        (torch.float32, {"d": 32, "num_points": [8, 1, 4]}, 16),
        (torch.float32, {"d": 24}, 16),
        (torch.float64, {"d": 32}, 16),
    ],
)
def test_heads_of_16_32_and_64_channels_have_fast_kernels(emulation, dtype, sizes, lanes):
    arguments = msda_arguments(dtype, n=3, q=50, m=4, **sizes)
    kernels.run_emulated("ms_deform_attn", *arguments)
    rows_of_block = 256 // lanes
    assert emulation.statistics()["blocks"] == -(-3 * 50 * 4 // rows_of_block)


def test_channels_side_by_side_in_memory_have_a_kernel_of_their_own(emulation):
    input, points = point_arguments(torch.float32, c=40, points=(1, 70))
    side_by_side = input.contiguous(memory_format=torch.channels_last)
    output = kernels.run_emulated("point_sample", side_by_side, points)
    assert emulation.statistics()["blocks"] == 2 * 2 * 3  # images, tiles of channels and of points
    assert_close(output, reference.point_sample(input.double(), points.double()), torch.float32)
