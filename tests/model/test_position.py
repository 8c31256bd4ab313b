import math

import pytest
import torch

from mask2former.model.position import sine_position_embedding


def test_values_follow_the_formula():
    height, width, channels = 3, 5, 8
    embedding = sine_position_embedding(
        torch.ones(1, height, width, dtype=torch.bool), channels, torch.float64
    )
    half = channels // 2
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                axis, length = (y, height) if c < half else (x, width)
                i = c % half
                angle = (axis + 1) / (length + 1e-6) * 2 * math.pi / 10000 ** (2 * (i // 2) / half)
                expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                assert float(embedding[0, c, y, x]) == pytest.approx(expected, abs=1e-12)


def test_padding_does_not_change_the_image():
    valid = torch.zeros(1, 6, 9, dtype=torch.bool)
    valid[:, :4, :5] = True
    padded = sine_position_embedding(valid, 16, torch.float32)
    alone = sine_position_embedding(valid[:, :4, :5], 16, torch.float32)
    assert torch.equal(padded[:, :, :4, :5], alone)
    assert padded.isfinite().all()
