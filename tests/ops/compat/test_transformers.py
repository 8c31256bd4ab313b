"""The layer in transformers' own Deformable-DETR, against the layer it replaces."""

import inspect

import pytest
import torch

from mask2former_ops.compat.transformers import MultiScaleDeformableAttention
from tests.ops.samples import LEVELS, generator, msda_arguments
from tests.ops.tolerances import assert_close, relative_error

transformers = pytest.importorskip("transformers")


@pytest.fixture
def modeling():
    from transformers.models.deformable_detr import modeling_deformable_detr

    return modeling_deformable_detr


def tiny_detector(modeling):
    """Encoder and two decoder layers: the second one refers to boxes, the others to points."""
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        with_box_refine=True,
    )
    return modeling.DeformableDetrForObjectDetection(config).double().eval()


def test_a_detector_with_the_layer_gives_the_same_outputs_and_gradients(modeling, monkeypatch):
    torch.manual_seed(0)
    theirs = tiny_detector(modeling)
    with monkeypatch.context() as patch:
        patch.setattr(modeling, "MultiScaleDeformableAttention", MultiScaleDeformableAttention)
        ours = tiny_detector(modeling)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    layers = [type(layer) for layer in ours.modules()]
    assert layers.count(MultiScaleDeformableAttention) == 3
    assert modeling.MultiScaleDeformableAttention not in layers
    pixels = torch.randn(2, 3, 64, 96, generator=generator(0), dtype=torch.float64)
    mask = torch.ones(2, 64, 96, dtype=torch.int64)
    mask[1, :, 60:] = 0
    outputs = [model(pixels, pixel_mask=mask) for model in (ours, theirs)]
    for name in ("logits", "pred_boxes"):
        assert relative_error(*(output[name] for output in outputs)) < 1e-9
    for output in outputs:
        (output.logits.square().sum() + output.pred_boxes.square().sum()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert any("encoder" in name and "sampling_offsets" in name for name in gradients)
    for name, expected in gradients.items():  # those of biases before a norm are only rounding
        difference = ours.get_parameter(name).grad - expected
        assert difference.norm() < 1e-9 * expected.norm() + 1e-13


def test_output_and_gradients_equal_the_layer_it_replaces(modeling):
    value, shapes, starts, locations, weights, _ = msda_arguments()
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    results = [
        layer(value, shapes, list(LEVELS), starts, locations, weights, 64)
        for layer in (MultiScaleDeformableAttention(), modeling.MultiScaleDeformableAttention())
    ]
    assert_close(*results, torch.float64)
    gradients = [torch.autograd.grad(result.square().sum(), leaves) for result in results]
    for ours, wanted in zip(*gradients, strict=True):
        assert_close(ours, wanted, torch.float64)


def test_it_keeps_what_the_package_kernels_asks_of_a_layer(modeling):
    ours, theirs = (
        list(inspect.signature(layer.forward).parameters)
        for layer in (MultiScaleDeformableAttention, modeling.MultiScaleDeformableAttention)
    )
    assert ours == theirs
    assert MultiScaleDeformableAttention.__init__ is torch.nn.Module.__init__
    added = {name for name, _ in inspect.getmembers(MultiScaleDeformableAttention)}
    assert added - set(dir(torch.nn.Module)) == {"can_torch_compile"}


def test_it_compiles_into_one_graph():
    compiled = torch.compile(MultiScaleDeformableAttention(), fullgraph=True, backend="aot_eager")
    value, shapes, starts, locations, weights, _ = msda_arguments()
    arguments = (value, shapes, list(LEVELS), starts, locations, weights, 64)
    assert torch.equal(compiled(*arguments), MultiScaleDeformableAttention()(*arguments))
