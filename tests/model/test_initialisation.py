"""Every parameter starts from the distribution that the papers' code draws it from.

The table below is written from descriptions of that code, not from ours.
"""

import math
import re

import pytest
import torch

from mask2former import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
from mask2former.configuration import SwinConfig

# Wide enough to tell distributions apart, and different, so that a projection has two fans.
FEATURES, WIDTH = 96, 64


def zeros(shape):
    return torch.zeros(shape)


def ones(shape):
    return torch.ones(shape)


def normal(std):
    def draw(shape):
        return torch.randn(16, *shape).mul_(std)

    return draw


def truncated(std):
    """Normal, drawn again where beyond two: for weights as small as these simply a normal."""
    return normal(std)


def uniform(bound):
    def draw(shape):
        return torch.empty(16, *shape).uniform_(-bound, bound)

    return draw


def fans(shape):
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def xavier(shape):
    return uniform(math.sqrt(6 / sum(fans(shape))))(shape)


def third_of_xavier(shape):
    """One of three matrices that are drawn as one, (3 C, C)."""
    fan_in, fan_out = fans(shape)
    return uniform(math.sqrt(6 / (fan_in + 3 * fan_out)))(shape)


def c2_xavier(shape):
    """kaiming_uniform with a=1."""
    return uniform(math.sqrt(3 / fans(shape)[0]))(shape)


def msra(shape):
    """kaiming_normal of the fan out, for a ReLU."""
    return normal(math.sqrt(2 / fans(shape)[1]))(shape)


def torch_default(shape):
    """Weights of nn.Linear and nn.Conv2d."""
    return uniform(1 / math.sqrt(fans(shape)[0]))(shape)


def default_bias(fan_in):
    return uniform(1 / math.sqrt(fan_in))


def ring(shape):
    """8 heads look into 8 directions, 4 points at distances 1 to 4, on each of 3 levels."""
    directions = torch.tensor(
        [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    ).float()
    distances = torch.arange(1, 5).float()
    points = directions[:, None, None] * distances[:, None]
    return points.expand(8, 3, 4, 2).reshape(shape)


SWIN = {
    r"patch_embed\.weight": torch_default,
    r"patch_embed\.bias": default_bias(3 * 4 * 4),
    r"position": truncated(0.02),
    r"stages\.\d\.\d\.attention\.position_bias": truncated(0.02),
    r"stages\.\d\.\d\.(attention\.(qkv|output)|fc1|fc2)\.weight": truncated(0.02),
    r"stages\.\d\.\d\.(attention\.(qkv|output)|fc1|fc2)\.bias": zeros,
    r"merges\.\d\.reduction\.weight": truncated(0.02),
    r"(patch_norm|stages\.\d\.\d\.norm[12]|merges\.\d\.norm|norms\.stage\d)\.weight": ones,
    r"(patch_norm|stages\.\d\.\d\.norm[12]|merges\.\d\.norm|norms\.stage\d)\.bias": zeros,
}
RESNET = {
    r"(stem|stages\.\d\.\d\.(convs\.\d|shortcut))\.conv\.weight": msra,
    r"(stem|stages\.\d\.\d\.(convs\.\d|shortcut))\.norm\.weight": ones,
    r"(stem|stages\.\d\.\d\.(convs\.\d|shortcut))\.norm\.bias": zeros,
}
PIXEL_DECODER = {
    r"input_projections\.\d\.0\.weight": xavier,
    r"input_projections\.\d\.0\.bias": zeros,
    r"level_embed": normal(1),
    r"layers\.\d\.self_attn\.sampling_offsets\.weight": zeros,
    r"layers\.\d\.self_attn\.sampling_offsets\.bias": ring,
    r"layers\.\d\.self_attn\.attention_weights\.(weight|bias)": zeros,
    r"layers\.\d\.self_attn\.(value|output)_proj\.weight": xavier,
    r"layers\.\d\.self_attn\.(value|output)_proj\.bias": zeros,
    r"layers\.\d\.fc[12]\.weight": xavier,
    r"layers\.\d\.fc1\.bias": default_bias(FEATURES),
    r"layers\.\d\.fc2\.bias": default_bias(2 * WIDTH),
    r"(lateral|output)_convs\.\d\.0\.weight": c2_xavier,
    r"mask_projection\.weight": c2_xavier,
    r"mask_projection\.bias": zeros,
    r"(layers\.\d\.\w+_norm|\w+\.\d\.1)\.weight": ones,
    r"(layers\.\d\.\w+_norm|\w+\.\d\.1)\.bias": zeros,
}
TRANSFORMER_DECODER = {
    r"(query_features|query_position|level_embed)\.weight": normal(1),
    r"input_projections\.\d\.weight": c2_xavier,
    r"input_projections\.\d\.bias": zeros,
    r"layers\.\d\.(cross|self)_attn\.(query|key|value)\.weight": third_of_xavier,
    r"layers\.\d\.(cross|self)_attn\.output\.weight": xavier,
    r"layers\.\d\.(cross|self)_attn\.\w+\.bias": zeros,
    r"layers\.\d\.fc[12]\.weight": xavier,
    r"layers\.\d\.fc1\.bias": default_bias(WIDTH),
    r"layers\.\d\.fc2\.bias": default_bias(2 * WIDTH),
    r"mask_embedder\.\d\.weight": torch_default,
    r"mask_embedder\.\d\.bias": default_bias(WIDTH),
    r"(layers\.\d\.\w+_norm|norm)\.weight": ones,
    r"(layers\.\d\.\w+_norm|norm)\.bias": zeros,
}
# The paper's code has nn.Linear's default here, and transformers its `init_std`, which is
# documented to act on this layer.
CLASS_HEAD = {
    r"weight": lambda shape: torch.nn.init.trunc_normal_(torch.empty(16, *shape)).mul_(0.02),
    r"bias": zeros,
}


def build(backbone):
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=49,
        num_queries=50,
        feature_size=FEATURES,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        num_attention_heads=8,
        encoder_layers=2,
        encoder_feedforward_dim=2 * WIDTH,
        decoder_layers=3,
        dim_feedforward=2 * WIDTH,
    )
    return Mask2FormerForUniversalSegmentation(config)


BACKBONES = {
    "swin": lambda: SwinConfig(
        embed_dim=32, num_heads=[2, 2, 4, 4], depths=[2, 2, 1, 1], use_absolute_embeddings=True
    ),
    "resnet": lambda: ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 64, 128], depths=[1, 2, 1, 1]
    ),
}


def expected_draw(name, shape):
    """A draw of the described distribution, where it is random 16 times as many numbers."""
    tables = {
        r"model\.backbone\.": SWIN | RESNET,
        r"model\.pixel_decoder\.": PIXEL_DECODER,
        r"model\.transformer_decoder\.": TRANSFORMER_DECODER,
        r"class_predictor\.": CLASS_HEAD,
    }
    found = [
        draw
        for prefix, table in tables.items()
        for pattern, draw in table.items()
        if re.fullmatch(prefix + pattern, name)
    ]
    assert len(found) == 1, name
    return found[0](shape)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_parameter_starts_from_its_distribution(backbone):
    model = build(BACKBONES[backbone]())
    for name, parameter in model.named_parameters():
        expected = expected_draw(name, parameter.shape)
        actual = parameter.detach()
        if expected.shape == actual.shape:  # not random
            assert torch.allclose(actual, expected, atol=1e-6), name
            continue
        # The largest distance of the two cumulative distributions: Kolmogorov and Smirnov's, whose
        # probability to reach 2.2 / sqrt(n) is 1.2e-4 where they are the same.
        values = actual.flatten().sort().values
        other = expected.flatten().sort().values
        below = torch.searchsorted(other, values).double() / len(other)
        steps = torch.arange(len(values)).double() / len(values)
        distance = (below - steps).abs().max().item()
        assert distance < 2.2 / math.sqrt(len(values)), (name, distance)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_no_two_parameters_start_the_same(backbone):
    """As copies of a layer would."""
    seen = {}
    for name, parameter in build(BACKBONES[backbone]()).named_parameters():
        if parameter.std() > 0 and "sampling_offsets" not in name:
            key = tuple(parameter.detach().flatten()[:8].tolist())
            assert key not in seen, (name, seen[key])
            seen[key] = name


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_statistics_of_batch_norms_start_from_a_standard_normal(backbone):
    buffers = dict(build(BACKBONES[backbone]()).named_buffers())
    running = {name: x for name, x in buffers.items() if "running" in name}
    assert bool(running) == (backbone == "resnet")
    for name, x in running.items():
        assert torch.equal(x, torch.ones_like(x) if name.endswith("var") else torch.zeros_like(x))
