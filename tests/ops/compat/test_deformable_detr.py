"""Deformable-DETR's names against the path through grid_sample and transformers' layer."""

import importlib
import sys

import pytest
import torch
from torch import nn

from mask2former_ops import modules, ms_deform_attn
from mask2former_ops.compat import deformable_detr
from mask2former_ops.compat.deformable_detr import (
    MSDeformAttn,
    MSDeformAttnFunction,
    ms_deform_attn_core_pytorch,
)
from tests.ops.reference.test_ms_deform_attn import by_grid_sample
from tests.ops.samples import LEVELS, generator, msda_arguments
from tests.ops.tolerances import assert_close

HALF = [torch.float16, torch.bfloat16]


def arguments(dtype=torch.float64, **sizes):
    return msda_arguments(dtype, **sizes)[:5]


def in_float64(tensors):
    return [x.double() if x.is_floating_point() else x for x in tensors]


def grad_like(output, seed=1):
    grad = torch.randn(output.shape, generator=generator(seed), dtype=torch.float64)
    return grad.to(output.dtype)


@pytest.fixture
def upstream_function(monkeypatch):
    """An autograd function written against the compiled extension, as detectors have it."""
    monkeypatch.setitem(sys.modules, "MultiScaleDeformableAttention", deformable_detr)
    extension = importlib.import_module("MultiScaleDeformableAttention")

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors_and_step):
            *tensors, ctx.step = tensors_and_step
            ctx.save_for_backward(*tensors)
            return extension.ms_deform_attn_forward(*tensors, ctx.step)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):
            value, locations, weights = extension.ms_deform_attn_backward(
                *ctx.saved_tensors, grad_output, ctx.step
            )
            return value, None, None, locations, weights, None

    return Function.apply


@pytest.fixture(params=["function", "function over the extension"])
def attention(request):
    if request.param == "function":
        return MSDeformAttnFunction.apply
    return request.getfixturevalue("upstream_function")


def test_output_and_gradients_equal_grid_sample(attention):
    tensors = arguments(q=19)
    leaves = [tensors[i].requires_grad_() for i in (0, 3, 4)]
    expected, result = by_grid_sample(*tensors), attention(*tensors, 64)
    assert_close(result, expected, torch.float64)
    grad = grad_like(expected)
    for ours, wanted in zip(
        torch.autograd.grad(result, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert_close(ours, wanted, torch.float64)


def test_gradients_are_the_derivatives(attention):
    value, shapes, starts, locations, weights = arguments(q=3, m=2, d=2, p=2)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: attention(v, shapes, starts, x, w, 64), leaves, atol=1e-7
    )


@pytest.mark.parametrize("step", [0, 1, 2, 64, -3, None])
def test_the_step_means_nothing_even_where_the_batch_is_no_multiple_of_it(attention, step):
    tensors = arguments(n=3)
    tensors[0].requires_grad_()
    output = attention(*tensors, step)
    assert torch.equal(output, ms_deform_attn(*tensors))
    assert torch.autograd.grad(output.sum(), tensors[0])[0].abs().sum() > 0


@pytest.mark.parametrize("n", [0, 1, 65])
def test_any_batch_is_taken(attention, n):
    tensors = arguments(n=n, q=2, levels=[(2, 3)])
    assert_close(attention(*tensors, 64), by_grid_sample(*tensors), torch.float64)


@pytest.mark.parametrize("location_dtype", [None, torch.float32], ids=["all half", "mixed"])
@pytest.mark.parametrize("dtype", HALF)
def test_half_values_give_half_results_and_gradients(attention, dtype, location_dtype):
    tensors = arguments(dtype, location_dtype=location_dtype)
    exact = in_float64(tensors)
    leaves = [[x[i].requires_grad_() for i in (0, 3, 4)] for x in (tensors, exact)]
    result, expected = attention(*tensors, 64), ms_deform_attn(*exact)
    assert result.dtype == dtype
    assert_close(result, expected, dtype)
    grad = grad_like(result)
    ours = torch.autograd.grad(result, leaves[0], grad)
    wanted = torch.autograd.grad(expected, leaves[1], grad.double())
    for gradient, leaf, exactly in zip(ours, leaves[0], wanted, strict=True):
        assert gradient.dtype == leaf.dtype
        assert_close(gradient, exactly, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_locations_and_weights_of_another_dtype_are_converted_to_the_dtype_of_value(
    attention, dtype
):
    *first, locations, weights = arguments(dtype)
    others = [x.bfloat16().requires_grad_() for x in (locations, weights)]
    output = attention(*first, *others, 64)
    assert torch.equal(output, ms_deform_attn(*first, *(x.to(dtype) for x in others)))
    for gradient in torch.autograd.grad(output.float().sum(), others):
        assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_result_keeps_the_dtype_of_value(attention, dtype):
    tensors = arguments(dtype, location_dtype=torch.float32)
    tensors[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(*tensors, 64)
        (gradient,) = torch.autograd.grad(output.sum(), tensors[0])
    expected = attention(*tensors, 64)
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), tensors[0])[0])


def test_shapes_and_starts_may_be_int32(attention):
    value, shapes, starts, locations, weights = arguments()
    value.requires_grad_()
    result = attention(value, shapes.int(), starts.int(), locations, weights, 64)
    expected = attention(value, shapes, starts, locations, weights, 64)
    assert torch.equal(result, expected)
    gradients = [torch.autograd.grad(x.sum(), value)[0] for x in (result, expected)]
    assert torch.equal(*gradients)


def test_shapes_of_another_dtype_are_refused(attention):
    value, shapes, starts, locations, weights = arguments()
    with pytest.raises(RuntimeError, match="spatial_shapes must be int64, but is float32"):
        attention(value, shapes.float(), starts, locations, weights, 64)


def test_inputs_need_not_be_contiguous(attention):
    tensors = arguments(torch.float32)
    scattered = [torch.stack((x, x.new_full(x.shape, 77)), -1)[..., 0] for x in tensors]
    assert not any(x.is_contiguous() for x in scattered)
    assert torch.equal(attention(*scattered, 64), attention(*tensors, 64))


@pytest.mark.parametrize("location_dtype", [torch.float32, torch.bfloat16])
def test_the_extension_gives_all_three_gradients_in_a_list(location_dtype):
    tensors = arguments(torch.float32, location_dtype=location_dtype)
    grad = torch.ones(2, 7, 15)
    gradients = deformable_detr.ms_deform_attn_backward(*tensors, grad, 64)
    assert isinstance(gradients, list)
    for gradient, of in zip(gradients, (0, 3, 4), strict=True):
        assert gradient.shape == tensors[of].shape
        assert gradient.dtype == tensors[of].dtype
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 7, 15\)"):
        deformable_detr.ms_deform_attn_backward(*tensors, grad[:, :3], 64)


def test_the_function_compiles_into_one_graph():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(*tensors):
        return MSDeformAttnFunction.apply(*tensors, 64).sin()

    for q in (3, 5):
        tensors = arguments(q=q)
        tensors[0].requires_grad_()
        expected, result = by_grid_sample(*tensors).sin(), compiled(*tensors)
        assert_close(result, expected, torch.float64)
        ours, wanted = (torch.autograd.grad(x.sum(), tensors[0])[0] for x in (result, expected))
        assert_close(ours, wanted, torch.float64)


@pytest.mark.parametrize(
    "shapes",
    [
        torch.tensor(LEVELS),
        torch.tensor(LEVELS, dtype=torch.int32),
        list(LEVELS),
        [(torch.tensor(h), torch.tensor(w)) for h, w in LEVELS],
    ],
    ids=["int64", "int32", "tuples", "tuples of tensors"],
)
def test_the_core_function_derives_the_starts(shapes):
    tensors = arguments()
    value, _, _, locations, weights = tensors
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    expected = by_grid_sample(*tensors)
    result = ms_deform_attn_core_pytorch(value, shapes, locations, weights)
    assert_close(result, expected, torch.float64)
    grad = grad_like(expected)
    for ours, wanted in zip(
        torch.autograd.grad(result, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert_close(ours, wanted, torch.float64)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_layer_equals_transformers_with_the_same_weights(coordinates):
    transformers = pytest.importorskip("transformers")
    from transformers.models.deformable_detr import modeling_deformable_detr as modeling

    config = transformers.DeformableDetrConfig(d_model=12, num_feature_levels=3)
    theirs = modeling.DeformableDetrMultiscaleDeformableAttention(config, 3, 4).double()
    ours = MSDeformAttn(d_model=12, n_levels=3, n_heads=3, n_points=4).double()
    g = generator(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3, generator=g)
    assert ours.load_state_dict(theirs.state_dict())
    _, shapes, starts, _, _ = arguments()
    query = torch.randn(2, 7, 12, generator=g, dtype=torch.float64)
    value = torch.randn(2, 55, 12, generator=g, dtype=torch.float64)
    reference = torch.rand(2, 7, 3, coordinates, generator=g, dtype=torch.float64)
    padding = torch.rand(2, 55, generator=g) < 0.3
    leaves = (query, value, reference)
    for leaf in leaves:
        leaf.requires_grad_()
    result = ours(query, reference, value, shapes, starts, padding)
    expected, _ = theirs(
        query,
        attention_mask=~padding,
        encoder_hidden_states=value,
        reference_points=reference,
        spatial_shapes=shapes,
        spatial_shapes_list=list(LEVELS),
        level_start_index=starts,
    )
    assert_close(result, expected, torch.float64)
    grad = grad_like(expected)
    for mine, wanted in zip(
        torch.autograd.grad(result, (*leaves, *ours.parameters()), grad),
        torch.autograd.grad(expected, (*leaves, *theirs.parameters()), grad),
        strict=True,
    ):
        assert_close(mine, wanted, torch.float64)


def test_the_layer_is_the_packages_own():
    assert MSDeformAttn is modules.MSDeformAttn
