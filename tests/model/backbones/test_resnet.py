import torch

from mask2former.configuration import ResNetConfig
from mask2former.model.backbones import ResNetBackbone


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


def trained(**options):
    """A small ResNet after one step of training, and its tensors before it."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **options
    )
    backbone = ResNetBackbone(config).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    sum(x.square().sum() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * parameter.grad.sign())
    return backbone, before


def changed(backbone, before):
    return {k for k, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[k])}


def test_batch_norms_learn_while_training():
    backbone, before = trained()
    assert changed(backbone, before) == set(before)


def test_frozen_batch_norms_stay_as_loaded_while_the_convolutions_learn():
    backbone, before = trained(freeze_batch_norm_2d=True)
    assert changed(backbone, before) == {name for name in before if name.endswith("conv.weight")}
    x = torch.randn(1, 3, 64, 64)
    training = backbone(x)
    assert all(torch.equal(a, b) for a, b in zip(training, backbone.eval()(x), strict=True))
    assert backbone.state_dict().keys() == trained()[0].state_dict().keys()


def test_statistics_stay_in_evaluation():
    backbone, _ = trained()
    before = {name: tensor.clone() for name, tensor in backbone.eval().state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    assert not changed(backbone, before)
