"""Feed-forward networks in parts: results and gradients are the plain formula's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former.model import in_parts as module
from mask2former.model.feed_forward import feed_forward

# Largest error measured, relative to the largest entry: 5e-16.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
NONE = nn.Dropout(0.0)


@pytest.fixture(autouse=True)
def parts_of_three_rows(monkeypatch):
    monkeypatch.setattr(module, "PART", 3 * 8)
    monkeypatch.setattr(module, "LEAST_ROWS", 1)


def make():
    """Ten rows, of which the last part is one, and layers."""
    torch.manual_seed(0)
    fc1, fc2, norm = nn.Linear(5, 8).double(), nn.Linear(8, 5).double(), nn.LayerNorm(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return torch.randn(2, 5, 5, dtype=torch.float64), norm, fc1, fc2


def plain(x, norm, fc1, activation, fc2, *, normed_residual=True, **_):
    y = norm(x)
    return (y if normed_residual else x) + fc2(activation(fc1(y)))


def ours(*arguments, normed_residual=True, dropout=NONE, **options):
    return feed_forward(*arguments, normed_residual=normed_residual, dropout=dropout, **options)


def gradients(function, activation, x, norm, fc1, fc2, **options):
    x = x.clone().requires_grad_()
    out = function(x, norm, fc1, activation, fc2, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    parameters = [*norm.parameters(), *fc1.parameters(), *fc2.parameters()]
    wanted = [x, *(p for p in parameters if p.requires_grad)]
    return out.detach(), torch.autograd.grad((out * weight).sum(), wanted)


@pytest.mark.parametrize("normed_residual", [True, False])
@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu])
@pytest.mark.parametrize("frozen", [(), (1,), (2,), (3,), (2, 3)])
def test_results_and_gradients_are_those_of_the_plain_formula(frozen, activation, normed_residual):
    made = make()
    for index in frozen:
        made[index].requires_grad_(False)
    actual = gradients(ours, activation, *made, normed_residual=normed_residual)
    expected = gradients(plain, activation, *made, normed_residual=normed_residual)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_weights_is_one(affine):
    x, _, fc1, fc2 = make()
    norm = nn.LayerNorm(5, elementwise_affine=affine, eps=0.1).double()
    layers = x, norm, fc1, fc2
    actual, expected = gradients(ours, F.gelu, *layers), gradients(plain, F.gelu, *layers)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_no_input_has_no_output_and_zero_gradients():
    _, *layers = make()
    out, (_, *of_weights) = gradients(ours, F.relu, torch.zeros(0, 5).double(), *layers)
    assert out.shape == (0, 5)
    assert not any(gradient.any() for gradient in of_weights)


def test_only_the_input_is_kept():
    x, norm, fc1, fc2 = make()
    kept = []
    hooks = lambda t: kept.append(t.shape) or t, lambda t: t
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        ours(x.requires_grad_(), norm, fc1, F.gelu, fc2)
    assert [shape for shape in kept if len(shape) > 1] == [(10, 5), (8, 5), (5, 8)]


def test_the_backward_pass_may_come_twice():
    made = make()
    x = made[0].requires_grad_()
    out = ours(x, made[1], made[2], F.gelu, made[3]).sum()
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(out, x)[0])


@pytest.mark.parametrize("activation", [F.relu, F.gelu])
def test_without_kernels_it_is_the_same(monkeypatch, activation):
    expected = gradients(ours, activation, *make())
    monkeypatch.setattr("mask2former.model.feed_forward.has_kernel", lambda *_: False)
    torch.testing.assert_close(gradients(ours, activation, *make()), expected, **TOLERANCE)


def test_a_hook_on_a_parameter_is_applied_once():
    made = make()
    _, (_, *before) = gradients(ours, F.relu, *made)
    for parameter in (p for layer in made[1:] for p in layer.parameters()):
        parameter.register_hook(lambda gradient: gradient / 2)
    _, (_, *after) = gradients(ours, F.relu, *made)
    torch.testing.assert_close(after, [gradient / 2 for gradient in before], **TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_is_more_than_its_formula_is_called(bias):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, norm, _, fc2 = make()
    layers = x, norm, Doubled(5, 8, bias).double(), fc2
    actual, expected = gradients(ours, F.relu, *layers), gradients(plain, F.relu, *layers)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_an_activation_with_a_weight_gets_its_gradient():
    x, norm, fc1, fc2 = make()
    activation = nn.PReLU().double()
    out = ours(x.requires_grad_(), norm, fc1, activation, fc2)
    (actual,) = torch.autograd.grad(out.sum(), activation.weight)
    out = plain(x, norm, fc1, activation, fc2)
    torch.testing.assert_close(actual, torch.autograd.grad(out.sum(), activation.weight)[0])


def test_a_weight_that_changed_before_the_backward_pass_is_noticed():
    x, norm, fc1, fc2 = make()
    out = ours(x.requires_grad_(), norm, fc1, F.relu, fc2)
    with torch.no_grad():
        fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_dropout_is_drawn_again_as_it_was():
    made = make()
    inner, outer = nn.Dropout(0.5), nn.Dropout(0.25)

    def dropped(x, norm, fc1, activation, fc2):
        y = norm(x)
        return y + outer(fc2(inner(activation(fc1(y)))))

    torch.manual_seed(1)
    expected = gradients(dropped, F.relu, *made)
    torch.manual_seed(1)
    actual = gradients(ours, F.relu, *made, inner_dropout=inner, dropout=outer)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_autocast_computes_in_half_precision_as_ever():
    made = [x.float() for x in make()]
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = gradients(ours, F.relu, *made), gradients(plain, F.relu, *made)
    assert all(torch.equal(a, e) for a, e in zip(actual[1], expected[1], strict=True))
