"""Attention in shifted windows: by the operator in parts, and as plain PyTorch operators."""

import copy

import pytest
import torch
from torch import nn

from mask2former.configuration import SwinConfig
from mask2former.model import in_parts
from mask2former.model.backbones import window_attention as module
from mask2former.model.backbones.window_attention import SHIFT_PENALTY, WindowAttention
from mask2former_ops._extension import has_kernel

# Largest error measured, relative to the largest entry: 4e-15.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
needs_kernel = pytest.mark.skipif(
    not has_kernel("window_attention", "cpu"), reason="window attention has no kernel here"
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(in_parts, "PART", 0)
    monkeypatch.setattr(in_parts, "LEAST_ROWS", 30)


def make(window=3, **options):
    torch.manual_seed(0)
    config = SwinConfig(window_size=window, **options)
    attention, norm = WindowAttention(config, 6, 2).double(), nn.LayerNorm(6).double()
    for parameter in [*attention.parameters(), *norm.parameters()]:
        nn.init.normal_(parameter)
    return attention, norm


def results(attention, norm, x, shift, valid=None):
    """Output and gradients, where there is image."""
    x = x.clone().requires_grad_()
    out = attention(x, norm, shift, valid)
    seen = out if valid is None else out[valid]
    weight = torch.linspace(-1, 1, seen.numel(), dtype=x.dtype).view_as(seen)
    wanted = [p for p in (x, *attention.parameters(), *norm.parameters()) if p.requires_grad]
    return seen.detach(), torch.autograd.grad((seen * weight).sum(), wanted)


def plainly(function, *arguments):
    """What it gives where nothing is done in parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "goes_in_parts", lambda *_: False)
        return function(*arguments)


def maps(n=3, height=7, width=8):
    return torch.randn(n, height, width, 6, generator=torch.Generator().manual_seed(1)).double()


def rectangles(extents, height=7, width=8):
    valid = torch.zeros(len(extents), height, width, dtype=torch.bool)
    for mask, (rows, columns) in zip(valid, extents, strict=True):
        mask[:rows, :columns] = True
    return valid


@needs_kernel
@pytest.mark.parametrize("valid", [None, rectangles([(7, 8), (4, 8), (2, 3)])])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"window": 4}, {"window": 9}])
@pytest.mark.parametrize("rows", [1, 30, 1000])  # a row of windows, two of them, several images
def test_results_and_gradients_in_parts_are_the_plain_ones(
    monkeypatch, rows, options, shift, valid
):
    monkeypatch.setattr(in_parts, "LEAST_ROWS", rows)
    attention, norm = make(**options)
    arguments = attention, norm, maps(), shift, valid
    expected = plainly(results, *arguments)
    monkeypatch.setattr(attention, "_of_all_windows", None)  # is not asked
    torch.testing.assert_close(results(*arguments), expected, **TOLERANCE)


@needs_kernel
@pytest.mark.parametrize("frozen", ["qkv", "output", "position_bias"])
def test_frozen_weights_get_no_gradient_and_change_no_other(frozen):
    attention, norm = make()
    for name, parameter in attention.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    arguments = attention, norm, maps(), 1
    torch.testing.assert_close(results(*arguments), plainly(results, *arguments), **TOLERANCE)


@pytest.mark.parametrize("shift", [0, 1])
def test_an_image_alone_gives_what_it_gives_in_a_larger_map(shift):
    """If nothing was shifted. Else other places are together with its own, but are not seen."""
    attention, norm = make()
    extents = [(4, 8), (7, 5)]
    if shift:  # the seam lies where the map ends
        extents = [(7, 8)]
    valid = rectangles(extents)
    x = maps(len(extents))
    together = attention(x, norm, shift, valid)
    for image, out, (rows, columns) in zip(x, together, extents, strict=True):
        alone = attention(image[None, :rows, :columns], norm, shift, None)
        torch.testing.assert_close(out[None, :rows, :columns], alone, **TOLERANCE)


def test_a_replaced_or_hooked_layer_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    attention, norm = make()
    expected = results(attention, norm, maps(), 1)
    for name in ("qkv", "output"):
        other = copy.deepcopy(attention)
        seen = []
        handle = getattr(other, name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.testing.assert_close(results(other, norm, maps(), 1), expected, **TOLERANCE)
        assert seen
        handle.remove()
        getattr(other, name).__class__ = Doubled
        assert not torch.allclose(results(other, norm, maps(), 1)[0], expected[0])


@needs_kernel
def test_an_output_without_a_bias_is_one():
    attention, norm = make()
    attention.output.register_parameter("bias", None)
    arguments = attention, norm, maps(), 1
    torch.testing.assert_close(results(*arguments), plainly(results, *arguments), **TOLERANCE)


def test_a_hook_on_a_parameter_is_applied_once():
    attention, norm = make()
    _, (_, *before) = results(attention, norm, maps(), 1)
    for parameter in [*attention.parameters(), *norm.parameters()]:
        parameter.register_hook(lambda gradient: gradient / 2)
    _, (_, *after) = results(attention, norm, maps(), 1)
    torch.testing.assert_close(after, [gradient / 2 for gradient in before], **TOLERANCE)


@needs_kernel
def test_no_maps_have_zero_gradients():
    attention, norm = make()
    out, (_, *of_weights) = results(attention, norm, maps(0), 1)
    assert out.shape == (0, 7, 8, 6)
    assert not any(gradient.any() for gradient in of_weights)


def test_dropout_drops_attention_while_training():
    attention, norm = make(attention_probs_dropout_prob=0.5)
    x = maps()
    out = attention.train()(x, norm, 1, None)
    assert not torch.allclose(out, attention(x, norm, 1, None))
    expected = make()[0](x, norm, 1, None)
    torch.testing.assert_close(attention.eval()(x, norm, 1, None), expected, **TOLERANCE)


@needs_kernel
@pytest.mark.parametrize("channels", [6, 7])
def test_queries_keys_and_values_are_kept_if_they_have_many_channels(monkeypatch, channels):
    monkeypatch.setattr(in_parts, "KEPT_CHANNELS", channels)
    attention, norm = make()
    arguments = attention, norm, maps(), 1
    torch.testing.assert_close(results(*arguments), plainly(results, *arguments), **TOLERANCE)
    kept = []
    hooks = lambda t: kept.append(t) or t, lambda t: t
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        out = attention(maps().requires_grad_(), norm, 1, None).sum()
    widths = [(x.shape[-1], x.numel()) for x in kept if x.dim() == 4]
    qkv = 3 * maps().numel() if channels == 6 else 0
    assert sum(numel for width, numel in widths if width == 18) == qkv
    assert sum(numel for width, numel in widths if width == 6) == maps().numel()
    weight = attention.output.weight
    (first,) = torch.autograd.grad(out, weight, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(out, weight)[0])


def test_shifted_regions_leave_no_denormal_probability():
    scores = torch.tensor([[0.0, SHIFT_PENALTY], [0.0, SHIFT_PENALTY + 30]])
    assert scores.softmax(-1)[:, 1].tolist() == [0, 0]  # of float32
    assert (scores.double().softmax(-1)[:, 1] > 0).all()
