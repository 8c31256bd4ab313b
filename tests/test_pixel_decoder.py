import pytest
import torch

from mask2former import Mask2FormerConfig
from mask2former.pixel_decoder import reference_points
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
