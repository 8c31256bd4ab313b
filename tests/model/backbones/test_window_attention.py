"""Self-attention in shifted windows."""

import pytest
import torch
from torch import nn

from mask2former.configuration import SwinConfig
from mask2former.model.backbones.window_attention import SHIFT_PENALTY, WindowAttention

# Largest error measured, relative to the largest entry: 2e-15.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def make(shift, window=3, **options):
    torch.manual_seed(0)
    config = SwinConfig(window_size=window, **options)
    attention = WindowAttention(config, 6, 2, shift).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def maps(n=3, height=7, width=8):
    return torch.randn(n, height, width, 6, generator=torch.Generator().manual_seed(1)).double()


def rectangles(sizes, height=7, width=8):
    valid = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for mask, (rows, columns) in zip(valid, sizes, strict=True):
        mask[:rows, :columns] = True
    return valid


def one_position_at_a_time(attention, x, window, shift):
    """The same of one map (H, W, 6) by loops: each position sees its window of the shifted grid."""
    height, width, channels = x.shape
    whole = [-(-length // window) * window for length in (height, width)]
    padded = x.new_zeros(*whole, channels)
    padded[:height, :width] = x
    query, key, value = attention.qkv(padded).view(*whole, 3, 2, 3).unbind(2)
    out = torch.zeros_like(x)

    def group(position, axis):
        """Window along an axis; those that the shift moved to the other end are by themselves."""
        return -1 if position < shift else (position - shift) // window

    for row in range(height):
        for column in range(width):
            mine = group(row, 0), group(column, 1)
            seen = [
                (r, c)
                for r in range(whole[0])
                for c in range(whole[1])
                if (group(r, 0), group(c, 1)) == mine
            ]
            for head in range(2):
                scores = torch.stack(
                    [
                        query[row, column, head] @ key[r, c, head] / 3**0.5
                        + attention.position_bias[
                            (row - r + window - 1) * (2 * window - 1) + column - c + window - 1,
                            head,
                        ]
                        for r, c in seen
                    ]
                )
                values = torch.stack([value[r, c, head] for r, c in seen])
                out[row, column, 3 * head : 3 * head + 3] = scores.softmax(0) @ values
    return attention.output(out)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"window": 4}])
@torch.no_grad()
def test_each_position_sees_its_window(options, shift):
    attention, x = make(shift, **options), maps(2, 5, 7)
    expected = [one_position_at_a_time(attention, m, attention.window, shift) for m in x]
    torch.testing.assert_close(attention(x, None), torch.stack(expected), **TOLERANCE)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("window", [3, 4, 9])
def test_an_image_alone_gives_what_it_gives_in_a_larger_map(window, shift):
    """Its first rows and columns, which a shift moves to the far end of the map, included."""
    attention = make(shift, window)
    sizes = [(4, 8), (7, 5), (2, 3)]
    valid, x = rectangles(sizes), maps(3)
    together = attention(x, valid)
    for image, out, (rows, columns) in zip(x, together, sizes, strict=True):
        alone = attention(image[None, :rows, :columns], None)
        torch.testing.assert_close(out[None, :rows, :columns], alone, **TOLERANCE)


@pytest.mark.parametrize("prob", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_dropout_acts_while_training(prob):
    attention, x = make(1, **{prob: 0.5}), maps()
    expected = make(1)(x, None)
    torch.testing.assert_close(attention(x, None), expected, **TOLERANCE)
    out = attention.train()(x, None)
    assert not torch.allclose(out, attention(x, None))
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(0.5 if prob == "hidden_dropout_prob" else 0, abs=0.05)


def test_masked_pairs_leave_no_denormal_probability():
    scores = torch.tensor([[0.0, SHIFT_PENALTY], [0.0, SHIFT_PENALTY + 30]])
    assert scores.softmax(-1)[:, 1].tolist() == [0, 0]  # of float32
    assert (scores.double().softmax(-1)[:, 1] > 0).all()
