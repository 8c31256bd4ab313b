import pytest
import torch
from torch.nn import functional as F

from mask2former.model.backbones.feature_pyramid import FeaturePyramid
from tests.reference import relative_error

STRIDES = [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("patch", "side", "channels"),
    [
        (16, 6, [4, 8, 16, 16]),
        (14, 7, [4, 8, 16, 16]),  # 7 patches are 98 pixels, of which 96 are positions of 16
        (8, 12, [8, 16, 16, 16]),
        (32, 3, [2, 4, 8, 16]),
    ],
)
def test_one_stride_becomes_four(patch, side, channels):
    pyramid = FeaturePyramid([16] * 4, patch, STRIDES)
    maps = pyramid([torch.randn(2, 16, side, side)] * 4)
    assert [x.shape[1] for x in maps] == pyramid.channels == channels
    assert [tuple(x.shape[2:]) for x in maps] == [(96 // s, 96 // s) for s in STRIDES]


def test_finer_levels_are_deconvolutions_with_norm_and_gelu_between():
    torch.manual_seed(0)
    pyramid = FeaturePyramid([8], 16, [4]).double()
    first, norm, _, second = pyramid.levels[0]
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)

    def spread(x, layer):
        """Each position becomes 2x2, each with a matrix of its own."""
        spread_out = torch.einsum("nchw,coij->nohiwj", x, layer.weight)
        return spread_out.flatten(4, 5).flatten(2, 3) + layer.bias[:, None, None]

    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    y = spread(x, first)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    y = F.gelu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    assert relative_error(pyramid([x])[0], spread(y, second)) < 1e-12


def test_coarser_levels_are_maxima_and_the_transformers_own_level_is_untouched():
    x = torch.randn(1, 3, 4, 6)
    pyramid = FeaturePyramid([3, 3, 3], 16, [16, 32, 64])
    same, half, quarter = pyramid([x] * 3)
    assert torch.equal(same, x)
    assert torch.equal(half, x.unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5)))
    assert quarter.shape[2:] == (1, 1)
    assert torch.equal(quarter[..., 0, 0], x[..., :4].amax((2, 3)))


def test_resampled_positions_lie_where_they_do_in_the_image():
    """A map of the centres of all patches of 14 pixels becomes the map of patches of 16 pixels."""
    centres = 14 * (torch.arange(16, dtype=torch.float64) + 0.5)
    x = torch.stack(torch.meshgrid(centres, centres, indexing="ij"))[None]
    (y,) = FeaturePyramid([2], 14, [16])([x])
    expected = 16 * (torch.arange(14, dtype=torch.float64) + 0.5)
    grid = torch.stack(torch.meshgrid(expected, expected, indexing="ij"))[None]
    assert y.shape == grid.shape
    assert torch.allclose(y, grid, rtol=1e-12, atol=0)  # 8 to 216 lies between 7 and 217


def test_a_stride_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match=r"feature_strides has \[6\]"):
        FeaturePyramid([8, 8], 16, [6, 16])
