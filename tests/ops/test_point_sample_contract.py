"""The operator in the rest of torch: autograd, autocast, compilation, export, vmap, and what it
says of wrong arguments. Its numbers are in test_point_sample.py."""

import pytest
import torch

from mask2former_ops import point_sample
from tests.ops.contract import (
    BACKENDS,
    assert_same,
    check_many_gradients_at_a_time,
    check_vmap,
)
from tests.ops.samples import channels_last, point_arguments, point_grad, spread

OP = torch.ops.mask2former_ops.point_sample.default
BACKWARD = torch.ops.mask2former_ops.point_sample_backward.default
BOTH = [True, True]
POINTS = [(2, 5), (1, 5), (2, 2, 3), (1, 2, 3)]


# ---- autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("points", POINTS)
def test_gradients_are_the_derivatives(points, align_corners):
    input, where = point_arguments(points=points, size=(3, 4))
    assert torch.autograd.gradcheck(
        lambda x, y: point_sample(x, y, align_corners),
        (input.requires_grad_(), where.requires_grad_()),
        atol=1e-7,
        check_batched_grad=True,
    )


def test_points_of_a_mask_have_derivatives_and_the_mask_has_none():
    mask, points = point_arguments(torch.bool)
    point_sample(mask, points.requires_grad_()).sum().backward()
    assert points.grad.any()
    assert mask.grad is None


def test_gradients_have_the_dtypes_of_their_arguments():
    input, points = point_arguments(torch.bfloat16, point_dtype=torch.float32)
    point_sample(input.requires_grad_(), points.requires_grad_()).sum().backward()
    assert input.grad.dtype == torch.bfloat16
    assert points.grad.dtype == torch.float32


@pytest.mark.parametrize("mask", [[True, False], [False, True]])
def test_only_the_gradients_asked_for_are_computed(mask):
    input, points = point_arguments()
    grad = point_grad(input, points)
    result = BACKWARD(grad, input, points, False, mask)
    assert [x.numel() > 0 for x in result] == mask
    leaf = (input, points)[mask.index(True)].requires_grad_()
    (gradient,) = torch.autograd.grad(point_sample(input, points), leaf, grad)
    assert torch.equal(gradient, result[mask.index(True)])


def test_without_inputs_that_want_gradients_the_output_wants_none():
    assert not point_sample(*point_arguments()).requires_grad


def test_a_second_derivative_is_refused():
    input, points = point_arguments()
    output = point_sample(input.requires_grad_(), points)
    (grad,) = torch.autograd.grad((output**2).sum(), input, create_graph=True)
    with pytest.raises(NotImplementedError, match="once, not twice"):
        grad.sum().backward()


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_input_and_takes_float32_points(dtype):
    input, points = point_arguments(torch.float32)
    half = points.to(dtype).requires_grad_()
    mask = input > 0
    with torch.autocast("cpu", dtype=dtype):
        output = point_sample(input, half)
        from_half = point_sample(input.to(dtype), points)
        from_mask = point_sample(mask, half)
    assert torch.equal(output, point_sample(input, half.float()))
    assert torch.equal(from_half, point_sample(input.to(dtype), points))
    assert torch.equal(from_mask, point_sample(mask, half.float()))
    output.sum().backward()
    assert half.grad.dtype == dtype


def test_autocast_leaves_float64_alone():
    input, points = point_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(point_sample(input, points), OP(input, points))


# ---- torch.library -------------------------------------------------------------------------------


# opcheck itself reads .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "sizes",
    [
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16, "point_dtype": torch.float32},
        {"dtype": torch.uint8},
        {"dtype": torch.bool},
        {"dtype": torch.float32, "c": 0},
        {"dtype": torch.float32, "size": (0, 3)},
    ],
)
@pytest.mark.parametrize("points", [(1, 5), (2, 2, 3)])
@pytest.mark.parametrize(
    "layout", [torch.clone, spread, channels_last], ids=["contiguous", "spread", "channels_last"]
)
def test_the_operator_passes_opcheck(sizes, points, layout):
    input, where = (layout(x) for x in point_arguments(points=points, **sizes))
    grad = layout(point_grad(input, where))
    torch.library.opcheck(BACKWARD, (grad, input, where, False, [False, True]))
    if input.is_floating_point():
        input.requires_grad_()
    torch.library.opcheck(OP, (input, where.requires_grad_()), {"align_corners": True})


# ---- compilation and export ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_compiles_into_one_graph_for_any_size(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def compiled(input, points):
        return point_sample(input, points).sin()

    for n, size, count in ((2, (6, 7), 11), (3, (4, 5), 13)):
        leaves = point_arguments(n=n, size=size, points=(1, count))
        for leaf in leaves:
            leaf.requires_grad_()
        assert_same(compiled(*leaves), point_sample(*leaves).sin(), leaves)


def test_it_compiles_under_autocast():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(input, points):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return point_sample(input, points)

    input, points = point_arguments(torch.float32)
    assert torch.equal(compiled(input, points.half()), OP(input, points.half().float()))


class Sampling(torch.nn.Module):
    def forward(self, input, points):
        return point_sample(input, points, align_corners=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_an_exported_program_runs_for_any_batch_and_any_size(dtype, tmp_path):
    n, height, width, p = (torch.export.Dim(name) for name in "nhwp")
    program = torch.export.export(
        Sampling(),
        point_arguments(dtype),
        dynamic_shapes=({0: n, 2: height, 3: width}, {0: n, 1: p}),
    )
    torch.export.save(program, tmp_path / "sampling.pt2")
    loaded = torch.export.load(tmp_path / "sampling.pt2").module()
    for n, size, p in ((2, (6, 7), 11), (5, (9, 4), 3), (3, (2, 2), 1)):
        arguments = point_arguments(dtype, n=n, size=size, points=(n, p))
        assert torch.equal(loaded(*arguments), OP(*arguments, align_corners=True))


# ---- vmap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize(
    "in_dims", [(0, None), (-1, None), (None, 0), (None, -1), (0, 0), (1, -1), (-1, 1)]
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_vmap_gives_what_a_loop_gives_gradients_too(align_corners, in_dims, points):
    samples = [point_arguments(points=points, seed=seed) for seed in range(3)]
    check_vmap(lambda x, y: point_sample(x, y, align_corners), samples, in_dims)


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_many_gradients_of_one_output_may_be_taken_at_a_time(wanted, points):
    arguments = point_arguments(points=points)
    leaves = [arguments[i].requires_grad_() for i in wanted]
    check_many_gradients_at_a_time(point_sample(*arguments), leaves)


def test_vmap_goes_with_masks_with_autocast_and_with_itself():
    mask, points = point_arguments(torch.bool)
    masks = torch.stack([mask, ~mask, mask, mask]).view(2, 2, *mask.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = torch.vmap(torch.vmap(lambda x: point_sample(x, points.bfloat16())))(masks)
    points = points.bfloat16().float()
    assert torch.equal(result[0, 1], point_sample(~mask, points))
    assert torch.equal(result[1, 0], point_sample(mask, points))


# ---- wrong arguments -----------------------------------------------------------------------------

# Argument changed, what it is changed to, and what the message must say.
WRONG = [
    (0, lambda x: x[0], r"input must have 4 dimensions \(N, C, H, W\), but has shape \(3, 6, 7\)"),
    (0, lambda x: x.int(), "input must be float64 or .* but is int32"),
    (0, lambda x: x > 0, "points must be float32, but is float64"),
    (1, lambda x: x.float(), "points must be float64, but is float32"),
    (1, lambda x: x[0], r"points must have 3 dimensions \(N or 1, P, 2\)"),
    (1, lambda x: x[..., :1], r"points must have shape \(N or 1, P, 2\) = \(any, any, 2\)"),
    (1, lambda x: x[:, :, None, :1], r"points must have shape \(N or 1, Hg, Wg, 2\) = "),
    (1, lambda x: x.repeat(2, 1, 1), "points must have a first size of 1 or input's N = 2, but"),
    (1, lambda x: x[:0], "points must have a first size of 1 or input's N = 2, but has 0"),
]  # fmt: skip


@pytest.mark.parametrize(("index", "change", "message"), WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_wrong_argument_is_named(device, index, change, message):
    arguments = list(point_arguments())
    arguments[index] = change(arguments[index])
    with pytest.raises(RuntimeError, match="point_sample: " + message):
        point_sample(*(x.to(device) for x in arguments))


@pytest.mark.parametrize("size", [(2**31, 1), (1, 2**31)])
def test_maps_that_32_bits_cannot_count_are_refused(size):
    input, points = torch.zeros(1, 1, 1, 1).expand(1, 1, *size), torch.zeros(1, 5, 2)
    with pytest.raises(RuntimeError, match=r"input must have fewer than 2\^31 rows and columns"):
        point_sample(input, points)
    with pytest.raises(RuntimeError, match=r"input must have fewer than 2\^31 rows and columns"):
        BACKWARD(torch.zeros(1, 1, 5), input, points, False, BOTH)


def test_half_inputs_take_no_other_half():
    input, points = point_arguments(torch.float16)
    with pytest.raises(RuntimeError, match="points must be float16 or float32, but is bfloat16"):
        point_sample(input, points.bfloat16())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_of_the_backward_are_named(device):
    input, points = (x.to(device) for x in point_arguments())
    grad = point_grad(*point_arguments()).to(device)
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 3, 11\)"):
        BACKWARD(grad[:, :2], input, points, False, BOTH)
    with pytest.raises(RuntimeError, match="grad_output must be float64, but is float32"):
        BACKWARD(grad.float(), input, points, False, BOTH)
    for mask in ([True], [True] * 3):
        with pytest.raises(RuntimeError, match="output_mask must have 2 values, but has"):
            BACKWARD(grad, input, points, False, mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_of_a_mask_is_refused(device, dtype):
    input, points = point_arguments(dtype)
    grad = point_grad(input, points).to(device)
    with pytest.raises(RuntimeError, match=r"input has no gradient, because it is (bool|uint8)"):
        BACKWARD(grad, input.to(device), points.to(device), False, BOTH)


@pytest.mark.parametrize("index", [0, 1])
def test_tensors_on_two_devices_are_refused(index):
    arguments = list(point_arguments())
    arguments[index] = arguments[index].to("meta")
    with pytest.raises(RuntimeError, match="points must be on (cpu|meta) like input|device"):
        point_sample(*arguments)
