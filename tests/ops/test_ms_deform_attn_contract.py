"""The operator in the rest of torch: autograd, autocast, compilation, export, vmap, and what it
says of wrong arguments. Its numbers are in test_ms_deform_attn.py."""

import itertools

import pytest
import torch

from mask2former_ops import ms_deform_attn, reference
from tests.ops.contract import (
    BACKENDS,
    assert_same,
    check_many_gradients_at_a_time,
    check_vmap,
)
from tests.ops.samples import msda_arguments, msda_grad, spread
from tests.ops.tolerances import assert_close

OP = torch.ops.mask2former_ops.ms_deform_attn.default
BACKWARD = torch.ops.mask2former_ops.ms_deform_attn_backward.default
ALL = [True, True, True]
DIFFERENTIABLE = (0, 3, 4)  # value, locations, weights


# ---- autograd ------------------------------------------------------------------------------------


def check_derivatives(fast_mode, *, num_points=None, **sizes):
    value, shapes, starts, locations, weights, _ = msda_arguments(num_points=num_points, **sizes)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w, num_points),
        inputs,
        atol=1e-7,
        fast_mode=fast_mode,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("num_points", [None, [2, 0, 1]])
def test_gradients_are_the_derivatives(num_points):
    check_derivatives(False, num_points=num_points, q=3, m=2, d=2, p=2)


@pytest.mark.parametrize("d", [30, 32, 64, 71, 1025, 2048, 3096])
def test_gradients_are_the_derivatives_for_the_head_sizes_of_the_original(d):
    check_derivatives(True, levels=[(6, 4), (3, 2)], n=1, q=2, m=2, d=d, p=2)


def test_gradients_have_the_dtypes_of_their_arguments():
    *tensors, _ = msda_arguments(torch.bfloat16, location_dtype=torch.float32)
    for i in DIFFERENTIABLE:
        tensors[i].requires_grad_()
    ms_deform_attn(*tensors).sum().backward()
    assert [tensors[i].grad.dtype for i in DIFFERENTIABLE] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    ]


@pytest.mark.parametrize("wanted", [(0,), (3,), (4,), (0, 4), (3, 4), DIFFERENTIABLE])
def test_only_the_gradients_asked_for_are_computed(wanted):
    *tensors, _ = msda_arguments()
    for i in wanted:
        tensors[i].requires_grad_()
    output = ms_deform_attn(*tensors)
    gradients = torch.autograd.grad(output.sum(), [tensors[i] for i in wanted])
    mask = [i in wanted for i in DIFFERENTIABLE]
    tensors = [x.detach() for x in tensors]
    expected = reference.ms_deform_attn_backward(torch.ones_like(output), *tensors, None, ALL)
    direct = BACKWARD(torch.ones_like(output), *tensors, None, mask)
    assert [x.numel() > 0 for x in direct] == mask
    for result, exact in zip(
        gradients, [x for x, asked in zip(expected, mask, strict=True) if asked], strict=True
    ):
        assert_close(result, exact, torch.float64)


def test_without_inputs_that_want_gradients_the_output_wants_none():
    assert not ms_deform_attn(*msda_arguments()).requires_grad


def test_a_second_derivative_is_refused():
    *tensors, _ = msda_arguments()
    tensors[0].requires_grad_()
    output = ms_deform_attn(*tensors)
    (grad,) = torch.autograd.grad((output**2).sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="once, not twice"):
        grad.sum().backward()


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_half_values_and_float32_locations(dtype):
    *tensors, _ = msda_arguments(torch.float32)
    tensors[0].requires_grad_()
    tensors[4] = tensors[4].bfloat16()
    with torch.autocast("cpu", dtype=dtype):
        output = ms_deform_attn(*tensors)
    value, shapes, starts, locations, weights = tensors
    expected = ms_deform_attn(value.to(dtype), shapes, starts, locations, weights.float())
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    output.sum().backward()
    assert value.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone():
    arguments = msda_arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ms_deform_attn(*arguments), OP(*arguments))


# ---- torch.library -------------------------------------------------------------------------------


# opcheck itself reads .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "sizes",
    [
        {"dtype": torch.float64},
        {"dtype": torch.float32, "num_points": [1, 2, 0]},
        {"dtype": torch.bfloat16, "location_dtype": torch.float32},
        {"dtype": torch.float16, "d": 0},
        {"dtype": torch.float32, "q": 0, "p": 0},
    ],
)
@pytest.mark.parametrize("layout", [torch.clone, spread], ids=["contiguous", "spread"])
def test_the_operator_passes_opcheck(sizes, layout):
    *tensors, num_points = msda_arguments(**{"q": 3, **sizes})
    tensors = [layout(x) for x in tensors]
    grad = layout(msda_grad(tensors))
    torch.library.opcheck(BACKWARD, (grad, *tensors, num_points, [True, False, True]))
    for i in DIFFERENTIABLE:
        tensors[i].requires_grad_()
    torch.library.opcheck(OP, (*tensors, num_points))


# ---- compilation and export ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_compiles_into_one_graph_for_any_size(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def compiled(*arguments):
        return ms_deform_attn(*arguments).sin()

    for n, q, levels in ((2, 3, [(6, 5), (3, 4)]), (3, 5, [(4, 3), (2, 2)])):
        *tensors, _ = msda_arguments(n=n, q=q, levels=levels)
        leaves = [tensors[i].requires_grad_() for i in DIFFERENTIABLE]
        assert_same(compiled(*tensors), ms_deform_attn(*tensors).sin(), leaves)


def test_it_compiles_under_autocast():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ms_deform_attn(*arguments)

    *tensors, _ = msda_arguments(torch.float32)
    result = compiled(*tensors)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, OP(tensors[0].bfloat16(), *tensors[1:]))


class Attention(torch.nn.Module):
    def __init__(self, num_points):
        super().__init__()
        self.num_points = num_points

    def forward(self, *tensors):
        return ms_deform_attn(*tensors, self.num_points)


@pytest.mark.parametrize("num_points", [None, [2, 0, 1]])
def test_an_exported_program_runs_for_any_batch_and_any_number_of_queries(num_points, tmp_path):
    *tensors, _ = msda_arguments(num_points=num_points)
    n, q = torch.export.Dim("n"), torch.export.Dim("q")
    sizes = ({0: n}, None, None, {0: n, 1: q}, {0: n, 1: q})
    program = torch.export.export(Attention(num_points), tuple(tensors), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "attention.pt2")
    loaded = torch.export.load(tmp_path / "attention.pt2").module()
    for n, q in ((2, 7), (1, 1), (5, 9)):
        *tensors, _ = msda_arguments(n=n, q=q, num_points=num_points)
        assert torch.equal(loaded(*tensors), OP(*tensors, num_points))


# ---- vmap ----------------------------------------------------------------------------------------

MAPPED = [x for x in itertools.product([None, 0, -1], repeat=3) if x != (None, None, None)]


@pytest.mark.parametrize("num_points", [None, [2, 0, 1]])
@pytest.mark.parametrize("in_dims", MAPPED)
def test_vmap_gives_what_a_loop_gives_gradients_too(in_dims, num_points):
    samples = [msda_arguments(num_points=num_points, seed=seed) for seed in range(3)]
    _, shapes, starts, *_ = samples[0]
    check_vmap(
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w, num_points),
        [[sample[i] for i in DIFFERENTIABLE] for sample in samples],
        in_dims,
    )


@pytest.mark.parametrize("wanted", [(0,), (3,), (0, 4), DIFFERENTIABLE])
def test_many_gradients_of_one_output_may_be_taken_at_a_time(wanted):
    *tensors, _ = msda_arguments()
    leaves = [tensors[i].requires_grad_() for i in wanted]
    check_many_gradients_at_a_time(ms_deform_attn(*tensors), leaves)


def test_vmap_goes_with_autocast_and_with_itself():
    value, shapes, starts, locations, weights, _ = msda_arguments(torch.float32)

    def attention(value):
        return ms_deform_attn(value, shapes, starts, locations, weights)

    values = torch.stack([value, -value, 2 * value, value]).view(2, 2, *value.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = torch.vmap(torch.vmap(attention))(values)
        expected = attention(value)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result[0, 1], -expected)
    assert torch.equal(result[1, 0], 2 * expected)


@pytest.mark.parametrize("index", [1, 2])
def test_vmap_over_the_levels_is_refused(index):
    *tensors, _ = msda_arguments()
    tensors[index] = torch.stack([tensors[index]] * 2)
    in_dims = [0 if i == index else None for i in range(5)]
    with pytest.raises(RuntimeError, match=r"torch.vmap cannot map over spatial_shapes and"):
        torch.vmap(ms_deform_attn, in_dims=tuple(in_dims))(*tensors)


# ---- wrong arguments -----------------------------------------------------------------------------

# Argument changed, what it is changed to, and what the message must say.
WRONG = [
    (0, lambda x: x[0], r"value must have 4 dimensions \(N, S, M, D\), but has shape \(55, 3, 5\)"),
    (0, lambda x: x.long(), "value must be float64 or .* but is int64"),
    (0, lambda x: x.cfloat(), "value must be float64 or .* but is "),
    (1, lambda x: x.int(), "spatial_shapes must be int64, but is int32"),
    (1, lambda x: x[:, :1], r"spatial_shapes must have shape \(L, 2\) = \(any, 2\), but has"),
    (1, lambda x: x[0], r"spatial_shapes must have 2 dimensions \(L, 2\), but has shape \(2\)"),
    (2, lambda x: x[:2], r"level_start_index must have shape \(L\) = \(3\), but has \(2\)"),
    (2, lambda x: x.double(), "level_start_index must be int64, but is float64"),
    (3, lambda x: x.float(), "sampling_locations must be float64, but is float32"),
    (3, lambda x: x[..., :1], r"sampling_locations must have shape .* = \(2, any, 3, 3, any, 2\)"),
    (3, lambda x: x[:1], "sampling_locations must have shape"),
    (3, lambda x: x[..., 0], "sampling_locations must have 6 dimensions"),
    (4, lambda x: x[:, 1:], r"attention_weights must have shape .* = \(2, 7, 3, 3, 4\)"),
    (4, lambda x: x.half(), "attention_weights must be float64, but is float16"),
    (5, lambda x: [1, 2], r"num_points must be 3 counts, .*, but is \[1, 2\]"),
    (5, lambda x: [1, 2, -1], r"num_points must be 3 counts, .*, but is \[1, 2, -1\]"),
    (5, lambda x: [1, 2, 3], r"sampling_locations must have 5 dimensions .* sum\(num_points\)"),
]  # fmt: skip


def test_counts_of_points_whose_sum_overflows_are_refused():
    *tensors, _ = msda_arguments(num_points=[1, 0, 1])
    with pytest.raises(RuntimeError, match="ms_deform_attn: (num_points|sampling_locations) must"):
        ms_deform_attn(*tensors, [2**63 - 1, 2**63 - 1, 4])  # 2 modulo 2^64


@pytest.mark.parametrize(("index", "change", "message"), WRONG)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_wrong_argument_is_named(device, index, change, message):
    arguments = list(msda_arguments())
    arguments[index] = change(arguments[index])
    arguments = [x.to(device) if torch.is_tensor(x) else x for x in arguments]
    with pytest.raises(RuntimeError, match="ms_deform_attn: " + message):
        ms_deform_attn(*arguments)


def test_half_values_take_no_other_half():
    arguments = list(msda_arguments(torch.float16))
    arguments[4] = arguments[4].bfloat16()
    with pytest.raises(
        RuntimeError, match="attention_weights must be float16 or float32, but is bfloat16"
    ):
        ms_deform_attn(*arguments)


LEVELS = [(6, 5), (1, 1), (3, 8)]


@pytest.mark.parametrize(
    ("shapes", "starts", "message"),
    [
        ([(6, 5), (1, 1), (3, 9)], [0, 30, 31], "one is 3 x 9 and starts at 31"),
        (LEVELS, [0, 30, 32], "one is 3 x 8 and starts at 32"),
        (LEVELS, [-1, 30, 31], "one is 6 x 5 and starts at -1"),
        ([(6, 5), (-1, -1), (3, 8)], [0, 30, 31], "one is -1 x -1 and starts at 30"),
        ([(2**40, 2**40), (1, 1), (3, 8)], [0, 30, 31], f"one is {2**40} x {2**40}"),
        ([(2**32, 2**32), (1, 1), (3, 8)], [0, 30, 31], f"one is {2**32} x {2**32}"),
        (LEVELS, [0, 2**63 - 1, 31], f"one is 1 x 1 and starts at {2**63 - 1}"),
        ([(6, 5), (1, 1), (3, 7)], [0, 30, 31], "must cover value's S = 55, .* have 52 pixels"),
        (LEVELS, [0, 29, 31], r"must not let levels overlap, but is \[0, 29, 31\]"),
        (LEVELS, [25, 25, 0], r"must not let levels overlap, but is \[25, 25, 0\]"),
    ],
)
def test_levels_must_fit_the_value(shapes, starts, message):
    arguments = list(msda_arguments(levels=LEVELS))
    arguments[1:3] = torch.tensor(shapes), torch.tensor(starts)
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn(*arguments)
    with pytest.raises(RuntimeError, match=message):
        BACKWARD(msda_grad(arguments), *arguments, ALL)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_of_the_backward_are_named(device):
    arguments = [x.to(device) if torch.is_tensor(x) else x for x in msda_arguments()]
    grad = msda_grad(msda_arguments()).to(device)
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 7, 15\)"):
        BACKWARD(grad[:, :3], *arguments, ALL)
    with pytest.raises(RuntimeError, match="grad_output must be float64, but is float32"):
        BACKWARD(grad.float(), *arguments, ALL)
    for mask in ([True, True], [True] * 4):
        with pytest.raises(RuntimeError, match="output_mask must have 3 values, but has"):
            BACKWARD(grad, *arguments, mask)


@pytest.mark.parametrize("index", [0, 3, 4])
def test_tensors_on_two_devices_are_refused(index):
    arguments = list(msda_arguments())
    arguments[index] = arguments[index].to("meta")
    with pytest.raises(RuntimeError, match="on cpu like value|on meta like value|device"):
        ms_deform_attn(*arguments)
