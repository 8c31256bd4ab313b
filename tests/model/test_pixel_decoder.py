from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mask2former import Mask2FormerConfig
from mask2former.model.pixel_decoder import reference_points
from tests.reference import tiny_model


def test_reference_points_are_pixel_centres():
    valid = [torch.ones(1, 2, 4, dtype=torch.bool), torch.ones(1, 4, 8, dtype=torch.bool)]
    points = reference_points(valid, torch.float64)
    assert points.shape == (1, 8 + 32, 2, 2)
    assert points[0, 0, 0].tolist() == [0.125, 0.25]
    assert points[0, 7, 1].tolist() == [0.875, 0.75]
    assert points[0, 8, 0].tolist() == [0.0625, 0.125]


def test_reference_points_of_a_padded_image_keep_to_the_image():
    valid = torch.zeros(1, 4, 8, dtype=torch.bool)
    valid[:, :2, :4] = True
    points = reference_points([valid, valid], torch.float64)[0].view(2, 4, 8, 2, 2)
    # The centre of the last image pixel, in fractions of the padded map.
    assert points[0, 1, 3, 1].tolist() == [3.5 / 8, 1.5 / 4]


@torch.no_grad()
def test_a_layer_drops_attention_inner_activations_and_outputs_while_training():
    layer = tiny_model(dropout=0.3).model.pixel_decoder.layers[0].train()
    shapes = torch.tensor([[2, 3], [4, 6], [8, 12]])
    start = torch.tensor([0, 6, 30])
    x, position = torch.randn(2, 2, 126, 32)
    points = reference_points([torch.ones(2, *s, dtype=torch.bool) for s in shapes], x.dtype)
    torch.manual_seed(1)
    actual = layer(x, position, points, shapes, start, None)
    torch.manual_seed(1)
    attended = layer.self_attn(x + position, points, x, shapes, start)
    y = layer.self_attn_norm(x + F.dropout(attended, 0.3))
    inner = F.dropout(layer.fc1(y).relu(), 0.3)
    y = layer.final_norm(y + F.dropout(layer.fc2(inner), 0.3))
    assert torch.equal(actual, y)


def test_common_stride_sets_the_number_of_fpn_levels():
    model = tiny_model(common_stride=8)
    assert model.model.pixel_decoder.num_fpn_levels == 0
    assert model(torch.randn(1, 3, 64, 64)).masks_queries_logits.shape[-1] == 8


def test_too_few_stages_are_named():
    config = Mask2FormerConfig().backbone_config
    config.out_features = ["stage2", "stage3", "stage4"]
    with pytest.raises(ValueError, match="3 feature maps.*need 4; name more stages"):
        tiny_model(backbone_config=config)


def test_feature_size_must_fit_the_group_norm():
    with pytest.raises(ValueError, match="feature_size is 40; it must be a multiple of 32"):
        tiny_model(feature_size=40)


@pytest.mark.parametrize(
    "strides", [{"common_stride": 16}, {"feature_strides": [8, 16]}, {"feature_strides": [2] * 4}]
)
def test_strides_that_do_not_fit_are_named(strides):
    with pytest.raises(ValueError, match="at least 3 entries.*no smaller than common_stride"):
        tiny_model(**strides)


def test_feature_strides_decide_which_maps_lead_to_the_common_stride():
    backbone = tiny_model().config.backbone_config
    five = replace(backbone, hidden_sizes=[8] * 5, depths=[1] * 5, out_features=None)
    model = tiny_model(backbone_config=five, feature_strides=[4, 8, 16, 32, 64])
    assert model.model.pixel_decoder.num_fpn_levels == 2
    output = model(torch.randn(1, 3, 128, 128), output_hidden_states=True)
    assert [s.shape[-1] for s in output.pixel_decoder_hidden_states] == [2, 4, 8]
    assert output.masks_queries_logits.shape[-1] == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_under_autocast_all_is_computed_in_float32(dtype, padded):
    decoder = tiny_model().model.pixel_decoder
    maps = [torch.randn(1, c, s, s) for c, s in zip([8, 8, 16, 16], [16, 8, 4, 2], strict=True)]
    maps = [x.to(dtype) for x in maps]
    mask = None
    if padded:
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[:, :40, :50] = True
    expected = decoder([x.float() for x in maps], mask)
    with torch.autocast("cpu", dtype):
        output = decoder(maps, mask)
    for a, b in zip(
        [*output.levels, output.mask_features],
        [*expected.levels, expected.mask_features],
        strict=True,
    ):
        assert torch.equal(a, b)
