"""When layers are computed in parts, and the norm of the parts."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from mask2former.model import in_parts
from mask2former.model.in_parts import NormInParts, SumOfProducts, goes_in_parts, rows_at_once

# Largest error measured, relative to the largest entry: 4e-16.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def test_a_part_has_enough_rows_for_a_matrix_product(monkeypatch):
    monkeypatch.setattr(in_parts, "PART", 1000)
    monkeypatch.setattr(in_parts, "LEAST_ROWS", 10)
    assert rows_at_once(10) == 100
    assert rows_at_once(100) == rows_at_once(1000) == 10


def test_plain_layers_of_numbers_on_a_processor_go_in_parts():
    layers = [nn.Linear(3, 3), nn.LayerNorm(3)]
    assert goes_in_parts(torch.zeros(2, 3), layers)
    assert goes_in_parts(torch.zeros(2, 3).double(), layers)
    assert not goes_in_parts(torch.zeros(2, 3).bfloat16(), layers)
    assert not goes_in_parts(torch.zeros(2, 3, device="meta"), layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert not goes_in_parts(torch.zeros(2, 3), layers)


def test_layers_that_are_more_than_their_formula_do_not():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, norm = torch.zeros(2, 3), nn.LayerNorm(3)
    assert not goes_in_parts(x, [norm, Doubled(3, 3)])
    assert not goes_in_parts(x, [norm, parametrizations.weight_norm(nn.Linear(3, 3))])
    linear = nn.Linear(3, 3)
    for register in (
        linear.register_forward_hook,
        linear.register_forward_pre_hook,
        linear.register_full_backward_hook,
    ):
        handle = register(lambda *_: None)
        assert not goes_in_parts(x, [norm, linear])
        handle.remove()
        assert goes_in_parts(x, [norm, linear])
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not goes_in_parts(x, [norm, linear])
    handle.remove()
    linear.forward = lambda x: x  # as offloading does it
    assert not goes_in_parts(x, [norm, linear])


def test_what_is_compiled_does_not():
    seen = []

    @torch.compile(backend="eager")
    def compiled(x):
        seen.append(goes_in_parts(x, []))
        return x + 1

    compiled(torch.zeros(2))
    assert seen == [False]


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_of_two_parts_has_the_gradients_of_the_whole(affine):
    torch.manual_seed(0)
    norm = nn.LayerNorm(5, elementwise_affine=affine, eps=0.1).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, grad = torch.randn(7, 5).double().requires_grad_(), torch.randn(7, 5).double()
    expected = torch.autograd.grad(norm(x), [x, *norm.parameters()], grad)
    parts = NormInParts(norm.weight, norm.bias, norm.eps)
    found = []
    with torch.no_grad():
        for rows in (slice(3), slice(3, 7)):
            normed, statistics = parts.normalise_again(x[rows])
            assert torch.equal(normed, parts.normalise(x[rows]))
            torch.testing.assert_close(normed, norm(x)[rows], **TOLERANCE)
            found.append(parts.differentiate(grad[rows], x[rows], statistics))
    gradients = [x for x in parts.gradients if x is not None]
    torch.testing.assert_close([torch.cat(found), *gradients], list(expected), **TOLERANCE)


def test_products_are_summed_up_for_those_who_want_them():
    torch.manual_seed(0)
    weight, (a, b) = torch.zeros(3, 4), (torch.randn(2, 3, 5), torch.randn(2, 5, 4))
    for wanted in (True, False):
        total = SumOfProducts(weight, wanted)
        nothing = total.result()
        assert nothing is None if not wanted else torch.equal(nothing, weight)
        for pair in zip(a, b, strict=True):
            total.add(*pair)
        if wanted:
            torch.testing.assert_close(total.result(), (a @ b).sum(0))
        else:
            assert total.result() is None
