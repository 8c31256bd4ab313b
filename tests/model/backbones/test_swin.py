import pytest
import torch

from mask2former.configuration import SwinConfig
from mask2former.model.backbones import SwinBackbone
from mask2former.model.backbones.swin import DropPath

SMALL = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 7), (64, 36)])
def test_any_image_size_gives_maps_of_the_right_strides(size):
    features = SwinBackbone(SwinConfig(**SMALL)).eval()(torch.randn(1, 3, *size))
    height, width = (-(-extent // 4) for extent in size)
    for feature in features:
        assert feature.shape[2:] == (height, width)
        height, width = -(-height // 2), -(-width // 2)


def test_stride_is_that_of_the_coarsest_stage():
    backbone = SwinBackbone(SwinConfig(**SMALL, patch_size=2)).eval()
    assert backbone.stride == 16
    assert backbone(torch.randn(1, 3, 64, 64))[-1].shape[2:] == (4, 4)


def test_absolute_position_embedding_is_resized_to_the_image():
    backbone = SwinBackbone(SwinConfig(**SMALL, use_absolute_embeddings=True, image_size=32)).eval()
    torch.nn.init.normal_(backbone.position)
    assert backbone(torch.randn(1, 3, 32, 32))[0].shape[2:] == (8, 8)
    assert backbone(torch.randn(1, 3, 48, 40))[0].shape[2:] == (12, 10)


def test_drop_path_drops_the_branch_of_whole_images_while_training_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.zeros(4000, 2, 3)
    seen = []

    def branch(x, of_images):
        seen.append(len(x))
        assert len(x) == len(of_images)
        return x + 1

    y = drop.train()(x, branch, torch.arange(4000))
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(float(y.mean()) - 1) < 0.05
    assert seen == [int((y[:, 0, 0] > 0).sum())]  # for the others it was not even computed
    assert torch.equal(drop.eval()(x, branch, torch.arange(4000)), x + 1)


@pytest.mark.parametrize("rate", [0.5, 1.0 - 1e-7])
def test_gradients_pass_by_a_dropped_branch(rate):
    """With the second rate all images are dropped."""
    torch.manual_seed(1)
    drop, x = DropPath(rate).train(), torch.randn(6, 2).double().requires_grad_()
    weight = torch.ones(2).double().requires_grad_()
    y = drop(x, lambda x: x * weight)
    factor = (y / x).detach()[:, :1]
    of_x, of_weight = torch.autograd.grad(y.sum(), [x, weight])
    assert torch.allclose(of_x, factor.expand_as(x))
    assert torch.allclose(of_weight, (x * (factor - 1)).sum(0).detach())
    assert (factor == 1).any()


def dropping(rate):
    torch.manual_seed(0)
    config = SwinConfig(**SMALL, drop_path_rate=rate)
    return SwinBackbone(config).train(), torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("rate", [0.5, 1.0 - 1e-7])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
def test_all_weights_get_gradients_whatever_is_dropped(rate, autocast, hooked):
    backbone, x = dropping(rate)
    if hooked:
        backbone.stages[0][0].attention.qkv.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = sum(feature.float().square().sum() for feature in backbone(x))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


# torch 2.13 warns of itself, and newer ones of Python 3.13.0
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
def test_training_compiles_as_one_graph():
    backbone, x = dropping(0.5)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    sum(feature.square().sum() for feature in compiled(x)).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_swin_tiny_has_the_known_number_of_parameters():
    # timm's swin_tiny without head has 27 519 354, with a final norm of 2 * 768; ours has a norm
    # per stage (2 * 96 * 15) instead.
    count = sum(p.numel() for p in SwinBackbone(SwinConfig()).parameters())
    assert count == 27_519_354 - 2 * 768 + 2 * 96 * 15
