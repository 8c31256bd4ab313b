from dataclasses import replace

import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.losses.annotations import IGNORED
from tests.data.memory import sample

INDEX_MAP = [[VOID, 0, 0], [2, 1, IGNORED]]


def masks(*rows):
    return sample([[[bool(pixel) for pixel in row]] for row in rows], range(len(rows)))


def test_sizes_are_height_and_width():
    assert sample(INDEX_MAP, [5, 6, 7]).size == (2, 3)


def test_masks_of_some_segments_in_the_order_asked_for():
    wanted = torch.tensor([2, 0])
    found = sample(INDEX_MAP, [5, 6, 7]).masks_of(wanted)
    assert found.dtype == torch.bool
    assert found.int().tolist() == [[[0, 0, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 0]]]
    found = masks([1, 0, 0], [0, 1, 0], [1, 1, 1]).masks_of(wanted)
    assert found.int().tolist() == [[[1, 1, 1]], [[1, 0, 0]]]
    assert sample(INDEX_MAP, [5, 6, 7]).masks_of(torch.tensor([]).long()).shape == (0, 2, 3)


def test_segments_of_an_index_map_are_numbered_from_1():
    ids = sample(INDEX_MAP, [5, 6, 7]).id_map()
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[0, 1, 1], [3, 2, 0]]


@pytest.mark.parametrize("rows", [([1, 0, 0], [1, 1, 0]), ([1, 1, 0], [1, 0, 0])])
def test_of_masks_that_overlap_the_smaller_is_on_top(rows):
    small = min(range(2), key=lambda i: sum(rows[i])) + 1
    ids = masks(*rows).id_map()
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[small, 3 - small, 0]]


def test_an_image_without_masks_has_an_id_map_of_zeros():
    none = sample([[VOID] * 3] * 2, [])
    for one in (none, replace(none, masks=torch.zeros(0, 2, 3, dtype=torch.bool))):
        assert one.id_map().tolist() == [[0, 0, 0], [0, 0, 0]]
