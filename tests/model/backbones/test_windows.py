import pytest
import torch

from mask2former.model.backbones.windows import (
    bias_of_pairs,
    into_windows,
    out_of_windows,
    whole_windows,
    window_mask,
)


def numbered(n, height, width):
    """Maps (N, H, W, 1) whose positions are numbered from 1, row by row."""
    return torch.arange(1, n * height * width + 1).view(n, height, width, 1)


def test_windows_are_cut_row_by_row():
    x = numbered(2, 4, 6)
    windows = into_windows(x, 2, 0)
    assert windows.shape == (12, 4, 1)
    assert torch.equal(windows[1], x[0, :2, 2:4].flatten(0, 1))
    assert torch.equal(windows[6], x[1, :2, :2].flatten(0, 1))


@pytest.mark.parametrize("shift", [0, 1])
def test_every_position_is_in_the_windows_once_and_the_rest_is_zero(shift):
    x = numbered(2, 3, 5)
    windows = into_windows(x, 2, shift)
    assert windows.shape == (2 * 2 * 3, 4, 1)
    assert torch.equal(windows[windows > 0].sort().values, x.flatten())
    # The first window holds what lies `shift` positions down and to the right.
    corner = [1, 2, 6, 7] if shift == 0 else [7, 8, 12, 13]
    assert windows[0].flatten().tolist() == corner


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (1, 9)])
def test_out_of_windows_is_the_inverse(size, shift):
    x = torch.randn(2, *size, 3)
    assert torch.equal(out_of_windows(into_windows(x, 4, shift), *size, 4, shift), x)


def test_a_length_is_rounded_up_to_whole_windows():
    assert [whole_windows(length, 3) for length in (1, 3, 4)] == [3, 3, 6]


def test_each_pair_of_positions_has_the_bias_of_its_offset():
    size = 3
    table = torch.randn((2 * size - 1) ** 2, 2)
    bias = bias_of_pairs(table, size)
    assert bias.shape == (2, size**2, size**2)
    for query in range(size**2):
        for key in range(size**2):
            row = query // size - key // size + size - 1
            column = query % size - key % size + size - 1
            assert torch.equal(bias[:, query, key], table[row * (2 * size - 1) + column])


def test_nothing_is_masked_without_shift_and_padding():
    assert window_mask(numbered(1, 4, 4), None, 2, 0) is None


@pytest.mark.parametrize("size", [(8, 8), (7, 6), (9, 5)])
def test_the_mask_separates_what_the_shift_brought_together(size):
    """Two positions may see each other if they lie less than a window apart in the map."""
    window, shift, (height, width) = 4, 2, size
    x = numbered(2, height, width)
    mask = window_mask(x, None, window, shift)
    rows, columns = whole_windows(height, window), whole_windows(width, window)
    where = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1
    ).repeat(2, 1, 1, 1)
    where = into_windows(where, window, shift)
    distance = (where[:, :, None] - where[:, None]).abs().amax(-1)
    assert torch.equal(~mask, distance < window)


@pytest.mark.parametrize("shift", [0, 2])
def test_the_mask_hides_windows_that_an_image_alone_would_not_have(shift):
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[:, :3, :6] = True  # alone it has one row of two windows
    mask = window_mask(valid[..., None], valid, 4, shift)
    row, column = (x.flatten() for x in torch.meshgrid(*[torch.arange(8)] * 2, indexing="ij"))
    where = into_windows((8 * row + column).view(1, 8, 8, 1), 4, shift)[..., 0]
    alone = row[where] < 4
    assert mask[alone[:, :, None] & ~alone[:, None]].all()
    if shift == 0:
        assert not mask[alone[:, :, None] & alone[:, None]].any()
