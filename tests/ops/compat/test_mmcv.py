"""mmcv's names against those of Deformable-DETR and detectron2, which their own tests prove."""

import pytest
import torch
from torch import nn

from mask2former_ops.compat import deformable_detr, detectron2
from mask2former_ops.compat.mmcv import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
    point_sample,
)
from mask2former_ops.modules import MSDeformAttn
from tests.ops.reference.test_ms_deform_attn import by_grid_sample
from tests.ops.samples import generator, msda_arguments, point_arguments
from tests.ops.tolerances import assert_close

_, SHAPES, STARTS, *_ = msda_arguments()
S = int(SHAPES.prod(1).sum())


def layers(**options):
    """mmcv's layer and, with the same weights, Deformable-DETR's; none of them at its start."""
    ours = MultiScaleDeformableAttention(
        12, num_heads=3, num_levels=3, num_points=2, **options
    ).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator(parameter.numel()))
    plain = MSDeformAttn(12, n_levels=3, n_heads=3, n_points=2).double()
    plain.load_state_dict(ours.state_dict())
    return ours.eval(), plain


def inputs(queries=7):
    g = generator(0)
    query, position = torch.randn(2, 2, queries, 12, generator=g, dtype=torch.float64)
    value = torch.randn(2, S, 12, generator=g, dtype=torch.float64)
    points = torch.rand(2, queries, 3, 2, generator=g, dtype=torch.float64)
    return query, position, value, points


def where(points):
    return {"reference_points": points, "spatial_shapes": SHAPES, "level_start_index": STARTS}


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_layer_adds_its_input_to_the_attention_around_the_reference_points(batch_first):
    ours, plain = layers(**({"batch_first": True} if batch_first else {}))
    query, position, value, points = inputs()
    padding = torch.rand(2, S, generator=generator(1)) < 0.3
    expected = query + plain(query + position, points, value, SHAPES, STARTS, padding)
    given = (query, value, position)
    if not batch_first:
        given = [x.transpose(0, 1) for x in given]
    result = ours(
        given[0],
        value=given[1],
        query_pos=given[2],
        key_padding_mask=padding,
        **where(points),
        key_pos="ignored",
    )
    assert_close(result if batch_first else result.transpose(0, 1), expected, torch.float64)


def test_value_is_by_default_the_query_without_its_position():
    ours, plain = layers(batch_first=True)
    query, position, _, points = inputs(queries=S)
    expected = query + plain(query + position, points, query, SHAPES, STARTS)
    result = ours(query, query_pos=position, **where(points))
    assert_close(result, expected, torch.float64)


@pytest.mark.parametrize("name", ["identity", "residual"])
def test_another_tensor_may_be_added(name):
    ours, plain = layers(batch_first=True)
    query, other, value, points = inputs()
    expected = other + plain(query, points, value, SHAPES, STARTS)
    result = ours(query, value=value, **{name: other}, **where(points))
    assert_close(result, expected, torch.float64)


def test_arguments_keep_mmcvs_order():
    ours, plain = layers(batch_first=True)
    query, position, value, points = inputs()
    padding = torch.rand(2, S, generator=generator(1)) < 0.3
    expected = 3 * query + plain(query + position, points, value, SHAPES, STARTS, padding)
    key = None
    result = ours(query, key, value, 3 * query, position, padding, points, SHAPES, STARTS)
    assert_close(result, expected, torch.float64)


def test_dropout_falls_on_the_attention_and_not_on_the_residual():
    query, _, value, points = inputs()
    ours, plain = layers(dropout=0.5, batch_first=True)
    attended = plain(query, points, value, SHAPES, STARTS)
    torch.manual_seed(0)
    added = ours.train()(query, value=value, **where(points)) - query
    dropped = added.abs() < 1e-12
    assert 0.3 < dropped.double().mean() < 0.7
    assert_close(added[~dropped], 2 * attended[~dropped], torch.float64)
    assert MultiScaleDeformableAttention().dropout.p == 0.1


def test_values_may_be_projected_to_another_width():
    layer = MultiScaleDeformableAttention(
        12, num_heads=3, num_levels=3, num_points=2, batch_first=True, value_proj_ratio=0.5
    )
    layer = layer.double().eval()
    assert layer.value_proj.weight.shape == (6, 12)
    assert layer.output_proj.weight.shape == (12, 6)
    assert list(layer.state_dict()) == list(MSDeformAttn().state_dict())
    nn.init.normal_(layer.attention_weights.weight, generator=generator(2))
    query, _, value, points = inputs()
    locations = points[:, :, None, :, None] + (
        layer.sampling_offsets.bias.view(3, 3, 2, 2) / SHAPES.flip(1).view(1, 3, 1, 2)
    )
    weights = layer.attention_weights(query).view(2, 7, 3, 6).softmax(-1).view(2, 7, 3, 3, 2)
    projected = layer.value_proj(value).view(2, S, 3, 2)
    expected = query + layer.output_proj(
        by_grid_sample(projected, SHAPES, STARTS, locations, weights)
    )
    assert_close(layer(query, value=value, **where(points)), expected, torch.float64)


def test_init_weights_re_initialises_the_layer():
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(12, num_heads=3)
    nn.init.normal_(layer.sampling_offsets.bias)
    torch.manual_seed(1)
    layer.init_weights()
    torch.manual_seed(1)
    plain = MSDeformAttn(12, n_heads=3)
    plain._reset_parameters()
    assert torch.equal(layer.sampling_offsets.bias, plain.sampling_offsets.bias)
    assert not layer.value_proj.bias.any()


def test_what_a_configuration_passes_is_kept():
    layer = MultiScaleDeformableAttention(
        im2col_step=7, norm_cfg={"type": "LN"}, init_cfg={"type": "Xavier"}
    )
    assert (layer.embed_dims, layer.num_heads, layer.num_levels, layer.num_points) == (256, 8, 4, 4)
    assert (layer.im2col_step, layer.batch_first) == (7, False)
    assert (layer.norm_cfg, layer.init_cfg) == ({"type": "LN"}, {"type": "Xavier"})


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(ValueError, match="12 times value_proj_ratio 0.4 is 4, but must be a multi"):
        MultiScaleDeformableAttention(12, num_heads=3, value_proj_ratio=0.4)
    query, *_, points = inputs()
    for name in where(points):
        with pytest.raises(ValueError, match=f"needs {name}, but it is None"):
            layers()[0](query, **{**where(points), name: None})


def test_the_functions_equal_deformable_detr():
    assert MultiScaleDeformableAttnFunction is deformable_detr.MSDeformAttnFunction
    assert multi_scale_deformable_attn_pytorch is deformable_detr.ms_deform_attn_core_pytorch


@pytest.mark.parametrize("align_corners", [False, True])
def test_point_sample_takes_align_corners_third(align_corners):
    input, points = point_arguments()
    for mode in ("bilinear", "nearest"):
        result = point_sample(input, points, align_corners, mode=mode)
        expected = detectron2.point_sample(input, points, mode=mode, align_corners=align_corners)
        assert torch.equal(result, expected)
    assert torch.equal(point_sample(input, points), detectron2.point_sample(input, points))
