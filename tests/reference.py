"""What the model tests share: the transformers implementation and ways to compare with it."""

import contextlib
from unittest import mock

import pytest
import torch

from mask2former import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)
from mask2former.losses import loss
from mask2former.model.backbones import make_backbone
from mask2former_ops import reference


def transformers_model(backbone: str, backbone_options: dict | None = None, **options):
    """A transformers model with Swin-T or ResNet-50; the options override the configurations."""
    torch.manual_seed(1)
    transformers = pytest.importorskip("transformers")
    backbones = {"swin": transformers.SwinConfig, "resnet": transformers.ResNetConfig}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone_config = backbones[backbone](**{"out_features": stages} | (backbone_options or {}))
    options = {"num_labels": 5, "num_queries": 12, "train_num_points": 300, **options}
    config = transformers.Mask2FormerConfig(backbone_config=backbone_config, **options)
    return transformers.Mask2FormerForUniversalSegmentation(config)


@torch.no_grad()
def randomise(model, seed: int):
    """Noise on every parameter and statistic, so that none is at a special value such as zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name == "criterion.empty_weight":
            continue
        noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        if name.endswith("running_var"):
            tensor.add_(noise)
        else:
            tensor.add_(0.05 * (noise - 0.5))
    return model


def make_labels(seed: int, counts: list[int], size: tuple[int, int], num_labels: int):
    """Random rectangles as float masks, with their classes, per image."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    masks, classes = [], []
    for count in counts:
        image = torch.zeros(count, height, width)
        for mask in image:
            top, left = (int(torch.randint(n // 2, (), generator=generator)) for n in size)
            mask[top : top + height // 3, left : left + width // 3] = 1
        masks.append(image)
        classes.append(torch.randint(num_labels, (count,), generator=generator))
    return masks, classes


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-300))


@contextlib.contextmanager
def same_points():
    """Within it all masks get the same points, whoever draws them and in whatever order.

    `torch.rand` of points (M, P, 2) depends on P alone, and the loss draws its points by it.
    """

    def rand(*shape, dtype=None, device=None, **options):
        if len(shape) == 1 and not isinstance(shape[0], int):
            shape = tuple(shape[0])
        if len(shape) != 3 or shape[2] != 2:
            return original(*shape, dtype=dtype, device=device, **options)
        generator = torch.Generator().manual_seed(shape[1])
        points = original(1, *shape[1:], generator=generator, dtype=dtype)
        return points.repeat(shape[0], 1, 1).to(device)

    def points(logits, count, *ratios):
        counts = reference.uncertain_counts(count, *ratios)
        return reference.uncertain_points(logits[:, None], lambda x: -x.abs(), *counts, count)

    original = torch.rand
    with (
        mock.patch.object(torch, "rand", rand),
        mock.patch.object(loss, "uncertain_points", points),
    ):
        yield


# Options of a model small enough to run in milliseconds.
SMALL = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "decoder_layers": 4,
    "dim_feedforward": 32,
    "num_queries": 6,
    "train_num_points": 50,
}


def tiny_model(backbone: str = "resnet", **options):
    """One of our models with random weights and the options `SMALL`."""
    backbones = {
        "swin": SwinConfig(embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 2], window_size=3),
        "resnet": ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
        ),
    }
    defaults = {"backbone_config": backbones[backbone], "num_labels": 3, **SMALL}
    torch.manual_seed(0)
    config = Mask2FormerConfig(**(defaults | options))
    return Mask2FormerForUniversalSegmentation(config).eval()


def backbone_of(config, **options):
    """The backbone that a model of these options has, with random weights."""
    torch.manual_seed(0)
    return make_backbone(Mask2FormerConfig(backbone_config=config, **options)).eval()


def assert_checkpointing_changes_no_gradient(backbone):
    """Of a library's backbone in float64, whose layers must run again where it is on."""
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    gradients, runs = [], []

    def count(*_):
        runs[-1] += 1

    for layer in backbone.body.modules():
        layer.register_forward_hook(count)
    for value in (False, True):
        backbone.gradient_checkpointing = value
        assert backbone.gradient_checkpointing == value
        backbone.zero_grad()
        runs.append(0)
        sum(x.square().sum() for x in backbone(image)).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert runs[1] > runs[0]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(relative_error(gradients[1][n], g) < 1e-12 for n, g in gradients[0].items())
