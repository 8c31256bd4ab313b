import torch

from mask2former.backbones import ResNetBackbone
from mask2former.configuration import ResNetConfig


def test_feature_maps_have_the_strides_and_widths_of_their_stages():
    backbone = ResNetBackbone(ResNetConfig(depths=[1, 1, 1, 1])).eval()
    features = backbone(torch.randn(2, 3, 64, 96))
    assert [f.shape[1] for f in features] == backbone.channels == [256, 512, 1024, 2048]
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_only_the_named_stages_are_returned():
    config = ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage2", "stage4"])
    backbone = ResNetBackbone(config).eval()
    assert [f.shape[1] for f in backbone(torch.randn(1, 3, 32, 32))] == [512, 2048]
    assert backbone.channels == [512, 2048]


def test_first_stage_may_downsample():
    config = ResNetConfig(depths=[1, 1, 1, 1], downsample_in_first_stage=True)
    backbone = ResNetBackbone(config).eval()
    features = backbone(torch.randn(1, 3, 128, 128))
    assert [feature.shape[-1] for feature in features] == [16, 8, 4, 2]
    assert backbone.stride == 64


def test_resnet50_has_the_known_number_of_parameters():
    # torchvision's resnet50 has 25 557 032, of which the classifier is 2 049 000.
    assert sum(p.numel() for p in ResNetBackbone(ResNetConfig()).parameters()) == 23_508_032
