import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former.model.backbones.library import LibraryBackbone, is_plain, last_map_per_stride
from tests.reference import relative_error


class Convolutions(LibraryBackbone):
    """Maps of strides 4, 8 and 16, each of which mixes neighbours and has a bias."""

    def __init__(self):
        torch.manual_seed(0)
        body = nn.ModuleList(
            [nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)]
        )
        super().__init__(body, [4, 5, 6], [4, 8, 16], None)
        self.double()

    def read(self, pixel_values):
        self.seen = tuple(pixel_values.shape)
        maps = []
        for layer in self.body:
            pixel_values = layer(pixel_values)
            maps.append(pixel_values)
        return maps


class Plain(LibraryBackbone):
    """`count` maps of one stride, 14: means of patches."""

    def __init__(self, count=1):
        super().__init__(nn.Identity(), [3] * count, [14] * count, [8, 16, 32])
        self.count = count

    def read(self, pixel_values):
        self.seen = tuple(pixel_values.shape)
        means = F.avg_pool2d(pixel_values, 14)
        return [means + number for number in range(self.count)]


def test_an_image_is_filled_up_with_zeros_and_its_maps_are_cut():
    backbone = Convolutions()
    image = torch.randn(1, 3, 33, 50, dtype=torch.float64)
    maps = backbone(image)
    assert backbone.seen == (1, 3, 48, 64)
    assert [tuple(x.shape[2:]) for x in maps] == [(9, 13), (5, 7), (3, 4)]
    whole = backbone(F.pad(image, (0, 14, 0, 15)))
    for x, y in zip(maps, whole, strict=True):
        assert torch.equal(x, y[..., : x.shape[2], : x.shape[3]])


def test_patches_are_whole_too():
    backbone = Plain()
    maps = backbone(torch.ones(1, 3, 60, 100))
    assert backbone.seen == (1, 3, 70, 140)  # of 64 and 128
    assert (backbone.stride, backbone.body_stride) == (32, 14)
    assert [tuple(x.shape[2:]) for x in maps] == [(8, 13), (4, 7), (2, 4)]


@pytest.mark.parametrize("make", [Convolutions, Plain])
def test_an_image_gives_the_same_maps_alone_and_in_a_batch(make):
    backbone = make().double()
    sizes = [(64, 32), (33, 50), (64, 32), (5, 96), (33, 50)]
    images = [torch.randn(1, 3, *size, dtype=torch.float64) for size in sizes]
    pixels = torch.full((5, 3, 64, 96), 9.0, dtype=torch.float64)
    mask = torch.zeros(5, 64, 96, dtype=torch.bool)
    for index, (height, width) in enumerate(sizes):
        pixels[index, :, :height, :width] = images[index][0]
        mask[index, :height, :width] = True
    together = backbone(pixels, mask)
    for index, image in enumerate(images):
        for batch, alone in zip(together, backbone(image), strict=True):
            rows, columns = alone.shape[2:]
            assert relative_error(batch[index, :, :rows, :columns], alone[0]) < 1e-12
            assert (
                batch[index, :, rows:].abs().sum() == batch[index, ..., columns:].abs().sum() == 0
            )


def test_gradients_reach_the_image_and_not_the_padding():
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, :20, :32] = mask[1, :32, :10] = True
    sum(x.square().sum() for x in Convolutions()(pixels, mask)).backward()
    assert torch.equal(pixels.grad.abs().sum(1) > 0, mask)


def test_one_map_serves_all_levels_and_several_serve_one_each():
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(Plain()(image)[2], F.max_pool2d(Plain()(image)[1], 2))
    several = Plain(count=3)(image)
    assert torch.allclose(several[1], Plain()(image)[1] + 1)
    with pytest.raises(ValueError, match="returns 2 maps of stride 14; name one, or one for each"):
        Plain(count=2)


def test_a_network_is_plain_if_all_its_maps_have_one_stride():
    assert is_plain([14, 14, 14])
    assert not is_plain([4, 8, 16, 32])


def test_the_last_map_of_each_stride_is_chosen():
    assert last_map_per_stride([2, 4, 4, 8, 16, 32, 32], [4, 8, 16, 32], "x") == [2, 3, 4, 6]
    with pytest.raises(ValueError, match=r"short has maps of the strides \[4, 8\] and none of \["):
        last_map_per_stride([4, 8], [4, 8, 16, 32], "short")
