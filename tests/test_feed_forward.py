"""Feed-forward networks in parts: results and gradients are the plain formula's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former import in_parts as module
from mask2former.feed_forward import feed_forward

# Largest error measured, relative to the largest entry: 5e-16.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def parts_of_three_rows(monkeypatch):
    monkeypatch.setattr(module, "PART", 3 * 8)
    monkeypatch.setattr(module, "LEAST_ROWS", 1)


def make():
    torch.manual_seed(0)
    fc1, fc2 = nn.Linear(5, 8).double(), nn.Linear(8, 5).double()
    return torch.randn(2, 5, 5, dtype=torch.float64), fc1, fc2  # ten rows: the last part is one


def plain(x, fc1, activation, fc2):
    return fc2(activation(fc1(x)))


def gradients(function, x, fc1, activation, fc2):
    x = x.clone().requires_grad_()
    out = function(x, fc1, activation, fc2)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    wanted = [p for p in (x, *fc1.parameters(), *fc2.parameters()) if p.requires_grad]
    return out.detach(), torch.autograd.grad((out * weight).sum(), wanted)


@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu])
@pytest.mark.parametrize("frozen", [(), ("fc1",), ("fc2",)])
def test_results_and_gradients_are_those_of_the_plain_formula(activation, frozen):
    x, fc1, fc2 = make()
    for name in frozen:
        {"fc1": fc1, "fc2": fc2}[name].requires_grad_(False)
    actual = gradients(feed_forward, x, fc1, activation, fc2)
    torch.testing.assert_close(actual, gradients(plain, x, fc1, activation, fc2), **TOLERANCE)


def test_a_norm_before_is_part_of_it():
    x, fc1, fc2 = make()
    norm = nn.LayerNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    found = []
    for function in (
        lambda x: feed_forward(x, fc1, F.gelu, fc2, norm=norm),
        lambda x: plain(norm(x), fc1, F.gelu, fc2),
    ):
        x = x.detach().requires_grad_()
        out = function(x)
        found.append(torch.autograd.grad(out.square().sum(), [x, *norm.parameters()]))
    torch.testing.assert_close(*found, **TOLERANCE)


def test_no_input_has_no_output_and_zero_gradients():
    _, fc1, fc2 = make()
    out, (_, *of_weights) = gradients(feed_forward, torch.zeros(0, 5).double(), fc1, F.relu, fc2)
    assert out.shape == (0, 5)
    assert not any(gradient.any() for gradient in of_weights)


def test_the_inside_is_not_kept():
    x, fc1, fc2 = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        feed_forward(x.requires_grad_(), fc1, F.gelu, fc2)
    assert kept
    assert (10, 8) not in kept
    assert (2, 5, 8) not in kept


def test_dropout_is_drawn_again_as_it_was():
    x, fc1, fc2 = make()
    dropout = nn.Dropout(0.5)

    def dropped(x, fc1, activation, fc2):
        return fc2(dropout(activation(fc1(x))))

    torch.manual_seed(1)
    expected = gradients(dropped, x, fc1, F.relu, fc2)
    torch.manual_seed(1)
    actual = gradients(lambda *a: feed_forward(*a, dropout=dropout), x, fc1, F.relu, fc2)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_autocast_computes_in_half_precision_as_ever():
    x, fc1, fc2 = make()
    x, fc1, fc2 = x.float(), fc1.float(), fc2.float()
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(feed_forward, x, fc1, F.relu, fc2)
        expected = gradients(plain, x, fc1, F.relu, fc2)
    assert actual[0].dtype == torch.bfloat16
    assert all(torch.equal(a, e) for a, e in zip(actual[1], expected[1], strict=True))
