"""A linear layer in parts: results and gradients are those of the whole at once."""

import pytest
import torch
from torch import nn

from mask2former import in_parts
from mask2former.in_parts import linear_in_parts

# Largest error measured, relative to the largest entry: 4e-16.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 7


@pytest.fixture(autouse=True)
def parts_of_two_items(monkeypatch):
    monkeypatch.setattr(in_parts, "PART", 6 * WIDTH)
    monkeypatch.setattr(in_parts, "LEAST_ROWS", 1)


class Mixing(nn.Module):
    """Items of three rows, which mix with each other, and a number for each item."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(4, WIDTH)
        self.linear = nn.Linear(WIDTH, 5)
        self.scale = nn.Parameter(torch.randn(3, 1))
        self.lengths = []
        self.double()

    def inside(self, x, number, _, scale, wide):
        self.lengths.append(len(x))
        wide = wide(x)
        return torch.sin(wide * scale + wide.mean(1, keepdim=True) * number[:, None, None])

    def forward(self, x, number, random=False):
        options = {"shared": [self.scale], "width": WIDTH, "random": random}
        inputs = [x, number, None]
        return linear_in_parts(self.inside, self.linear, [self.wide], inputs, **options)

    def plain(self, x, number):
        return self.linear(self.inside(x, number, None, self.scale, self.wide))


def gradients(model, function, items=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(items, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    number = torch.randn(items, generator=generator, dtype=torch.float64)
    out = function(x, number)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return out.detach(), torch.autograd.grad(out.square().sum(), wanted)


@pytest.mark.parametrize("frozen", ["", "wide.weight", "scale", "linear"])
def test_results_and_gradients_are_those_of_the_whole(frozen):
    model = Mixing()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    actual, expected = gradients(model, model), gradients(model, model.plain)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert model.lengths == [2, 2, 1] * 2 + [5]  # forward and backward in parts


def test_a_hook_on_a_parameter_is_applied_once():
    model = Mixing()
    _, (_, *before) = gradients(model, model)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient / 2)
    _, (_, *after) = gradients(model, model)
    torch.testing.assert_close(after, [gradient / 2 for gradient in before], **TOLERANCE)


def test_a_layer_that_is_more_than_its_formula_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Mixing()
    expected = gradients(model, model)
    for name in ("wide", "linear"):
        layer = getattr(model, name)
        seen = []
        handle = layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(len(out)))
        torch.testing.assert_close(gradients(model, model), expected, **TOLERANCE)
        assert set(seen) == {5}  # items, not those of a part
        handle.remove()
        layer.__class__ = Doubled
        actual = gradients(model, model)
        layer.__class__ = nn.Linear
        assert not torch.allclose(actual[0], expected[0])


def test_a_part_has_enough_rows_for_a_matrix_product(monkeypatch):
    monkeypatch.setattr(in_parts, "LEAST_ROWS", 10)
    model = Mixing()
    gradients(model, model)
    assert model.lengths == [4, 1] * 2  # of three rows each


def test_no_items_have_zero_gradients():
    model = Mixing()
    out, (_, *of_weights) = gradients(model, model, items=0)
    assert out.shape == (0, 3, 5)
    assert not any(gradient.any() for gradient in of_weights)


def test_a_weight_that_changed_before_the_backward_pass_is_noticed():
    model = Mixing()
    x = torch.randn(5, 3, 4, dtype=torch.float64).requires_grad_()
    out = model(x, torch.zeros(5, dtype=torch.float64))
    with torch.no_grad():
        model.wide.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_without_gradients_all_is_done_at_once():
    model = Mixing()
    with torch.no_grad():
        model(torch.zeros(5, 3, 4).double(), torch.zeros(5).double())
    assert model.lengths == [5]
