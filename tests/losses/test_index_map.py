import pytest
import torch

from mask2former.losses.index_map import sample_index_map
from mask2former_ops import point_sample

LIMIT = {torch.float64: 1e-12, torch.float32: 3e-7}  # measured: 1.6e-15 and 1.2e-7


def points_in_and_around(sets, dtype):
    """Some on centres and edges of pixels, outside, NaN or infinite."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(sets, 400, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    points[:, :100] = (points[:, :100] * 26).round() / 26
    points[:, 100] = torch.nan
    points[:, 101, 0] = torch.inf
    return points


@pytest.mark.parametrize("size", [(9, 13), (1, 6), (6, 1)])
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("own", [True, False])
def test_it_is_point_sample_of_the_masks(size, dtype, own):
    index_map = torch.randint(-2, 4, size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([3, 0, 7])  # no pixel has the last
    points = points_in_and_around(3 if own else 1, dtype)
    masks = (index_map == ids[:, None, None]).to(dtype)
    expected = point_sample(masks[:, None], points.expand(3, -1, -1))[:, 0]
    sampled = sample_index_map(index_map, ids, points)
    assert sampled.dtype == dtype
    assert expected[:2].any()
    assert not expected[2].any()
    assert (sampled - expected).abs().max() <= LIMIT[dtype]


@pytest.mark.parametrize("count", [0, 2])
def test_no_masks_and_no_points_are_nothing(count):
    sampled = sample_index_map(torch.zeros(4, 5).int(), torch.zeros(count), torch.rand(1, 0, 2))
    assert sampled.shape == (count, 0)
