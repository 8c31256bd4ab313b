import pytest
import torch
from torch import nn

from mask2former.training.ema import AveragedWeights


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def change(model: nn.Module) -> None:
    """New weights and statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(4, 2))


def test_the_average_is_the_written_out_sum():
    model = small_model()
    average = AveragedWeights(model, 0.5)
    expected = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
    for number in range(12):
        change(model)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    assert average.updates == 12
    with average.applied():
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        # measured: 2e-7
        torch.testing.assert_close(state[name].double(), expected[name], rtol=2e-6, atol=2e-6)
    assert state["1.num_batches_tracked"] == 12


def test_the_model_gets_its_own_weights_back_to_the_bit():
    model = small_model()
    average = AveragedWeights(model, 0.9)
    change(model)
    average.update()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), average.applied():
        assert not torch.equal(model[0].weight, own["0.weight"])
        raise KeyError
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own)
