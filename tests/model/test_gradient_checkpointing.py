import pytest
import torch
from torch import nn

from mask2former import Mask2FormerModel
from mask2former.model import gradient_checkpointing
from tests.reference import make_labels, tiny_model

PARTS = ["backbone", "pixel_decoder", "transformer_decoder"]


def training_step(model, autocast=False):
    """Gradients by name, and the bytes of all activations that were saved for them."""
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    masks, classes = make_labels(0, [2, 3], (64, 96), 3)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    torch.manual_seed(1)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = model(x, masks, classes, output_attentions=True)
    output.loss.backward()
    for tensor in model.state_dict().values():
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, sum(saved.values())


def deep_model(backbone):
    """Many layers, random paths and dropout, whose draws must be the same when they run again."""
    model = tiny_model(backbone, encoder_layers=3, decoder_layers=7, dropout=0.1).train()
    assert backbone == "resnet" or model.config.backbone_config.drop_path_rate > 0
    return model


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_gradients_are_identical_and_fewer_activations_are_saved(backbone, autocast):
    model = deep_model(backbone)
    expected, everything = training_step(model, autocast)
    model.gradient_checkpointing_enable()
    gradients, saved = training_step(model, autocast)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert saved < 0.35 * everything  # measured: 0.20 to 0.29
    model.gradient_checkpointing_disable()
    gradients, saved = training_step(model, autocast)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert saved == everything


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_each_part_has_its_own_flag_and_saves_less_for_it(backbone, part):
    model = deep_model(backbone)
    expected, everything = training_step(model)
    getattr(model.model, part).gradient_checkpointing = True
    gradients, saved = training_step(model)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert saved < everything


def test_statistics_of_batch_norms_count_each_batch_once():
    model = tiny_model("resnet").train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    buffers = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        for name, tensor in model.named_buffers():
            tensor.copy_(before[name])
        enable()
        training_step(model)
        buffers.append({name: tensor.clone() for name, tensor in model.named_buffers()})
    assert all(torch.equal(tensor, buffers[1][name]) for name, tensor in buffers[0].items())
    assert not torch.equal(
        buffers[0]["model.backbone.stem.norm.running_mean"],
        before["model.backbone.stem.norm.running_mean"],
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)


def test_attentions_are_returned_once_for_each_layer():
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    masks, classes = make_labels(0, [2], (64, 64), 3)
    output = model(torch.randn(1, 3, 64, 64), masks, classes, output_attentions=True)
    output.loss.backward()
    assert len(output.attentions) == 3


def test_the_switch_is_on_both_models_and_says_where_it_stands():
    for model in (tiny_model(), Mask2FormerModel(tiny_model().config)):
        assert model.supports_gradient_checkpointing
        assert not model.is_gradient_checkpointing
        model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing
        bare = getattr(model, "model", model)
        assert all(getattr(bare, part).gradient_checkpointing for part in PARTS)
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing


def test_nothing_is_checkpointed_unless_the_switch_is_on_and_gradients_are_recorded(monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(gradient_checkpointing, "checkpoint", never)
    model = tiny_model("swin").train()
    x, labels = torch.randn(1, 3, 64, 64), make_labels(0, [2], (64, 64), 3)
    model(x, *labels)
    model.gradient_checkpointing_enable()
    with torch.no_grad():
        model(x, *labels)
    with pytest.raises(AssertionError):
        model(x, *labels)
    model.gradient_checkpointing_disable()
    model(x, *labels)


def test_it_is_switched_on_the_way_transformers_trainer_does():
    model = tiny_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=None, every_n_layers=1, offload=False
    )
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True is not"),
        ({"activation_checkpointing_kwargs": {"debug": True}}, "debug=True is not supported"),
        ({"every_n_layers": 2}, "every_n_layers=2 and offload=False is not supported"),
        ({"offload": True}, "every_n_layers=1 and offload=True is not supported"),
    ],
)
def test_checkpointing_of_another_kind_is_refused(options, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model.activation_checkpointing_enable(**options)
    assert not model.is_gradient_checkpointing
