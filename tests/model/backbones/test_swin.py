import pytest
import torch

from mask2former.configuration import SwinConfig
from mask2former.model.backbones import SwinBackbone
from mask2former.model.backbones.swin import DropPath, SwinBlock

SMALL = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 7), (64, 36)])
def test_any_image_size_gives_maps_of_the_right_strides(size):
    features = SwinBackbone(SwinConfig(**SMALL)).eval()(torch.randn(1, 3, *size))
    height, width = (-(-length // 4) for length in size)
    for feature in features:
        assert feature.shape[2:] == (height, width)
        height, width = -(-height // 2), -(-width // 2)


def test_stride_belongs_to_the_coarsest_stage():
    backbone = SwinBackbone(SwinConfig(**SMALL, patch_size=2)).eval()
    assert backbone.stride == 16
    assert backbone(torch.randn(1, 3, 64, 64))[-1].shape[2:] == (4, 4)


def test_absolute_position_embedding_is_resized_to_the_image():
    backbone = SwinBackbone(SwinConfig(**SMALL, use_absolute_embeddings=True, image_size=32)).eval()
    torch.nn.init.normal_(backbone.position)
    assert backbone(torch.randn(1, 3, 32, 32))[0].shape[2:] == (8, 8)
    assert backbone(torch.randn(1, 3, 48, 40))[0].shape[2:] == (12, 10)


def test_drop_path_drops_whole_images_while_training_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop.train()(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(float(y.mean()) - 1) < 0.05
    assert drop.eval()(x) is x
    assert torch.equal(DropPath(1.0).train()(x), torch.zeros_like(x))


def make_block(rate):
    torch.manual_seed(0)
    return SwinBlock(SwinConfig(window_size=2), 8, 2, True, rate).double().train()


def copies(count=400):
    return torch.randn(1, 3, 4, 8, dtype=torch.float64).expand(count, -1, -1, -1)


def test_a_block_drops_attention_and_mlp_of_each_image_independently():
    """Both are dropped for 0.9 * 0.9 of the images: 324 of 400, with a deviation of 8."""
    block, x = make_block(0.9), copies()
    with torch.no_grad():
        unchanged = (block(x, None) == x).flatten(1).all(1).sum().item()
    assert abs(unchanged - 324) < 3 * 8


@torch.no_grad()
def test_kept_branches_are_scaled_by_the_probability_of_being_kept():
    block, x = make_block(0.5), copies()
    attended = x[:1] + 2 * block.attention(block.norm1(x[:1]), None)
    results = [x[:1], attended]
    results += [y + 2 * block.mlp(block.norm2(y)) for y in results]
    out = block(x, None)
    counts = [torch.isclose(out, y).flatten(1).all(1).sum().item() for y in results]
    assert sum(counts) == 400
    assert all(abs(count - 100) < 3 * 9 for count in counts)


@torch.no_grad()
def test_a_block_is_its_formula():
    block, x = make_block(0.5).eval(), copies(2)
    y = x + block.attention(block.norm1(x), None)
    z = block.fc2(torch.nn.functional.gelu(block.fc1(block.norm2(y))))
    assert torch.equal(block(x, None), y + z)


def test_the_rate_grows_linearly_over_the_blocks():
    backbone = SwinBackbone(SwinConfig(**SMALL, drop_path_rate=0.4))
    rates = [block.drop_path.rate for stage in backbone.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@torch.no_grad()
def test_hidden_dropout_acts_on_both_layers_of_the_mlp():
    torch.manual_seed(0)
    block = SwinBlock(SwinConfig(window_size=2, hidden_dropout_prob=0.5), 8, 2, False, 0.0).train()
    torch.nn.init.zeros_(block.fc2.weight)
    torch.nn.init.ones_(block.fc2.bias)
    assert block.mlp(torch.randn(100, 8)).unique().tolist() == [0, 2]
    torch.nn.init.eye_(block.fc2.weight)
    torch.nn.init.zeros_(block.fc2.bias)
    dropped = (block.mlp(torch.randn(1000, 8)) == 0).float().mean().item()
    assert dropped == pytest.approx(0.75, abs=0.02)


def dropping(rate):
    torch.manual_seed(0)
    config = SwinConfig(**SMALL, drop_path_rate=rate)
    return SwinBackbone(config).train(), torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize("rate", [0.5, 1.0 - 1e-7])
@pytest.mark.parametrize("autocast", [True, False])
def test_all_weights_get_gradients_whatever_is_dropped(rate, autocast):
    """With the second rate all images are dropped."""
    backbone, x = dropping(rate)
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
