import pytest
import torch

from mask2former.model.backbones.windows import (
    into_windows,
    out_of_windows,
    partition_windows,
    relative_position_index,
    shift_mask,
    window_cells,
)

CPU = torch.device("cpu")


def test_windows_are_partitioned_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6)
    windows = partition_windows(x, 2)
    assert windows.shape == (12, 4)
    assert torch.equal(windows[1], x[0, :2, 2:4].flatten())


@pytest.mark.parametrize("shift", [0, 1])
def test_every_cell_has_one_place_in_the_windows(shift):
    cells, places = window_cells(2, 3, 5, 2, shift, CPU)
    assert cells.shape == (2 * 2 * 3, 4)
    assert torch.equal(cells.flatten()[places], torch.arange(2 * 3 * 5))
    assert (cells == -1).sum() == cells.numel() - 2 * 3 * 5
    # The first window holds what lies `shift` cells down and to the right.
    corner = [[0, 1], [5, 6]] if shift == 0 else [[6, 7], [11, 12]]
    assert cells[0].view(2, 2).tolist() == corner


@pytest.mark.parametrize("size", [(3, 5), (4, 4)])
def test_gradients_go_into_windows_and_out_again(size):
    cells, places = window_cells(2, *size, 2, 1, CPU)
    cells, present = cells.flatten(), cells.flatten()[:, None] >= 0
    x = torch.randn(2 * size[0] * size[1], 3, dtype=torch.float64).requires_grad_()
    weight = torch.randn(len(cells), 3, dtype=torch.float64)

    def there_and_back(x):
        windows = into_windows(x, cells, places)
        return out_of_windows(torch.where(present, windows * windows * weight, 7.0), cells, places)

    assert torch.equal(there_and_back(x), x * x * weight[places])
    assert torch.autograd.gradcheck(there_and_back, x)
    assert torch.autograd.gradgradcheck(there_and_back, x)


def test_relative_positions_index_every_offset_once():
    size = 3
    index = relative_position_index(size)
    offsets = {}
    for a in range(size * size):
        for b in range(size * size):
            offset = (a // size - b // size, a % size - b % size)
            assert offsets.setdefault(offset, int(index[a, b])) == int(index[a, b])
    assert sorted(offsets.values()) == list(range((2 * size - 1) ** 2))


def test_shift_mask_separates_what_the_roll_brought_together():
    size, shift, extent = 4, 2, 8
    mask = shift_mask(extent, extent, size, shift, CPU)
    # Two positions may see each other if they were in one window of the unshifted, unrolled map.
    position = (torch.arange(extent) + shift) % extent
    far = torch.stack(torch.meshgrid(position, position, indexing="ij"), -1)[None]
    windows = torch.stack([partition_windows(axis, size) for axis in far.unbind(-1)], -1)
    distance = (windows[:, :, None] - windows[:, None]).abs().amax(-1)
    assert torch.equal(~mask, distance < size)
