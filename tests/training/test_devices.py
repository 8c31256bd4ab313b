import pytest
import torch
from torch import nn

from mask2former.model.backbones.resnet import FrozenBatchNorm2d
from mask2former.training.devices import make_accelerator, synchronised
from mask2former.training.recipe import Recipe, RecipeError


def test_batch_norms_are_synchronised_but_not_the_frozen_ones():
    frozen = FrozenBatchNorm2d(2)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), frozen)
    weight = model[0][1].weight
    model = synchronised(model)
    assert isinstance(model[0][1], nn.SyncBatchNorm) and model[0][1].weight is weight
    assert model[1] is frozen and not frozen.weight.requires_grad
    assert not model.train()[1].training


def test_batch_norms_of_timm_keep_their_activation():
    timm = pytest.importorskip("timm")
    model = nn.Sequential(timm.layers.BatchNormAct2d(2, act_layer=nn.ReLU))
    model = synchronised(model)
    assert isinstance(model[0], nn.SyncBatchNorm)
    found = model.eval()(torch.linspace(-1, 1, 8).view(1, 2, 2, 2))
    assert found.min() == 0 < found.max()


def test_a_second_precision_in_a_process_is_refused():
    make_accelerator(Recipe(precision="no"))
    make_accelerator(Recipe(precision="no", gradient_accumulation_steps=2))
    with pytest.raises(RecipeError, match="precision is 'bf16', but Accelerate has 'no' in this"):
        make_accelerator(Recipe(precision="bf16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="A GPU has float16.")
def test_half_precision_that_the_device_lacks_is_refused():
    with pytest.raises(RecipeError, match="precision is 'fp16', which a CPU cannot train in"):
        make_accelerator(Recipe(precision="fp16"))
