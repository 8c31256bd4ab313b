"""`make_backbone`, and the published sizes of the two backbones of this package."""

import pytest
import torch

from mask2former import Mask2FormerConfig, ResNetConfig, SwinConfig
from mask2former.model.backbones import make_backbone
from tests.reference import relative_error

SWIN_SIZES = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}
# Counted from the published architecture, without head and final norm, by timm 1.0.31.
SWIN_PARAMETERS = {
    ("tiny", 7): 27_517_818,
    ("small", 7): 48_835_722,
    ("base", 7): 86_741_176,
    ("base", 12): 86_876_536,
    ("large", 7): 194_992_404,
    ("large", 12): 195_195_444,
}


def on_meta(backbone_config):
    with torch.device("meta"):
        return make_backbone(Mask2FormerConfig(backbone_config=backbone_config))


@pytest.mark.parametrize(("size", "window"), SWIN_PARAMETERS)
def test_published_swin_sizes(size, window):
    config = SwinConfig(**SWIN_SIZES[size], window_size=window)
    backbone = on_meta(config)
    channels = [config.embed_dim * 2**stage for stage in range(4)]
    norms = 2 * sum(channels)  # one for each returned map
    count = sum(p.numel() for p in backbone.parameters())
    assert count == SWIN_PARAMETERS[size, window] + norms
    maps = backbone(torch.empty(1, 3, 384, 640, device="meta"))
    assert [x.shape[1] for x in maps] == backbone.channels == channels
    assert [tuple(x.shape[2:]) for x in maps] == [(96, 160), (48, 80), (24, 40), (12, 20)]
    assert backbone.stride == 32


# torchvision's models without their classifier of 2 049 000.
@pytest.mark.parametrize(
    ("depths", "count"), [([3, 4, 6, 3], 23_508_032), ([3, 4, 23, 3], 42_500_160)]
)
def test_published_resnet_sizes(depths, count):
    backbone = on_meta(ResNetConfig(depths=depths))
    assert sum(p.numel() for p in backbone.parameters()) == count
    maps = backbone(torch.empty(1, 3, 384, 640, device="meta"))
    assert [x.shape[1] for x in maps] == backbone.channels == [256, 512, 1024, 2048]
    assert [tuple(x.shape[2:]) for x in maps] == [(96, 160), (48, 80), (24, 40), (12, 20)]


def classifier(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "swin":
        config = transformers.SwinConfig(
            embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 2], window_size=3
        )
        return transformers.SwinForImageClassification(config), transformers.SwinBackbone
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config), transformers.ResNetBackbone


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_a_named_backbone_starts_with_the_weights_of_its_classifier(kind, tmp_path):
    """As transformers' own backbone does from the same folder, in float64."""
    model, theirs = classifier(kind)
    model.save_pretrained(tmp_path)
    config = Mask2FormerConfig(backbone=str(tmp_path), use_pretrained_backbone=True)
    ours = make_backbone(config).double().eval()
    stages = ["stage1", "stage2", "stage3", "stage4"]
    theirs = theirs.from_pretrained(tmp_path, out_features=stages).double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = theirs(image).feature_maps, ours(image)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-12


def test_without_use_pretrained_backbone_the_weights_are_new(tmp_path):
    model, _ = classifier("resnet")
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    ours = make_backbone(Mask2FormerConfig(backbone=str(tmp_path)))
    theirs = model.resnet.embedder.embedder.convolution.weight
    assert ours.stem.conv.weight.shape == theirs.shape
    assert not torch.equal(ours.stem.conv.weight, theirs)
