import pytest
import torch

from mask2former import DataError, Mask2FormerConfig
from mask2former.checkpoints.backbone import load_backbone_weights
from mask2former.checkpoints.weights import read_weights, save_weights
from mask2former.model.backbones import make_backbone

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    """Of a small ResNet that classifies."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def load(folder, **options):
    config = Mask2FormerConfig(backbone=str(folder), **options)
    backbone = make_backbone(config)
    load_backbone_weights(backbone, config)
    return backbone


def test_the_head_is_left_out_and_all_else_is_loaded(folder):
    _, weights = read_weights(folder)
    assert torch.equal(
        load(folder).stem.conv.weight, weights["resnet.embedder.embedder.convolution.weight"]
    )


def test_a_file_of_the_bare_model_has_names_without_prefix(folder):
    _, weights = read_weights(folder)
    bare = {name.removeprefix("resnet."): tensor for name, tensor in weights.items()}
    save_weights(folder, bare)
    assert torch.equal(load(folder).stem.conv.weight, bare["embedder.embedder.convolution.weight"])


def test_a_missing_tensor_is_named(folder):
    _, weights = read_weights(folder)
    del weights["resnet.embedder.embedder.convolution.weight"]
    save_weights(folder, weights)
    with pytest.raises(
        DataError, match=r"misses 1 key\(s\), such as 'embedder\.embedder\.convolution\.weight'"
    ):
        load(folder)


def test_a_foreign_tensor_is_named(folder):
    _, weights = read_weights(folder)
    save_weights(folder, weights | {"resnet.more.weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"has foreign 1 key\(s\), such as .*more\.weight"):
        load(folder)


def test_a_shape_that_an_option_changed_is_named(folder):
    message = r"convolution\.weight has shape \(8, 3, 7, 7\) instead of \(8, 4"
    with pytest.raises(DataError, match=message):
        load(folder, backbone_kwargs={"num_channels": 4})
