from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former.model.padding import (
    checked_mask,
    group_norm,
    mask_at,
    mask_padding,
    pad_to_multiple,
    replicate_edges,
    resize,
    valid_sizes,
)
from tests.reference import randomise, relative_error, tiny_model


def corner_mask(height, width, canvas):
    mask = torch.zeros(1, *canvas, dtype=torch.bool)
    mask[:, :height, :width] = True
    return mask


def test_positions_belong_to_the_image_if_their_top_left_pixel_does():
    mask = corner_mask(33, 40, (64, 64))
    assert mask_at(mask, 2, 2).tolist() == [[[True, True], [True, True]]]
    assert mask_at(mask, 4, 4)[0].sum(0).tolist() == [3, 3, 3, 0]
    assert mask_at(mask, 64, 64).equal(mask)


def test_a_mask_of_nothing_is_dropped():
    assert checked_mask(None) is checked_mask(torch.ones(2, 4, 4)) is None
    assert checked_mask(corner_mask(2, 2, (4, 4)).float()).dtype == torch.bool


@pytest.mark.parametrize("rows", [slice(0, 0), slice(2, 4)])
def test_a_mask_that_is_no_rectangle_in_the_corner_is_refused(rows):
    mask = torch.zeros(1, 4, 4)
    mask[:, rows, 1:] = 1
    with pytest.raises(ValueError, match="one rectangle per image, in its top left corner"):
        checked_mask(mask)


def test_pad_to_multiple_adds_zeros_at_the_bottom_and_right():
    x = torch.ones(2, 3, 33, 64)
    padded = pad_to_multiple(x, 32)
    assert padded.shape == (2, 3, 64, 64)
    assert padded.sum() == x.sum()
    assert torch.equal(pad_to_multiple(x[..., :32, :], 32), x[..., :32, :])


def test_valid_sizes_are_heights_and_widths():
    mask = torch.cat([corner_mask(2, 3, (3, 4)), corner_mask(3, 1, (3, 4))])
    assert valid_sizes(mask).tolist() == [[2, 3], [3, 1]]


def test_half_precision_group_norm_does_not_overflow():
    norm = nn.GroupNorm(2, 16)
    x = torch.randn(1, 16, 160, 160)
    mask = corner_mask(150, 150, (160, 160))
    half = group_norm(x.half(), norm.half(), mask)
    assert relative_error(half.float(), group_norm(x, norm.float(), mask)) < 2e-3  # measured 3.1e-4


def test_mask_padding_zeroes_the_rest():
    x = torch.randn(1, 3, 4, 6)
    kept = mask_padding(x, corner_mask(8, 8, (16, 24)))
    assert torch.equal(kept[..., :2, :2], x[..., :2, :2])
    assert kept[..., 2:, :].abs().max() == kept[..., 2:].abs().max() == 0
    assert mask_padding(x, None) is x


def test_edges_are_repeated_into_the_padding_of_each_image():
    x = torch.arange(2 * 12.0).view(2, 1, 3, 4)
    mask = torch.cat([corner_mask(2, 3, (3, 4)), corner_mask(3, 1, (3, 4))])
    first, second = replicate_edges(x, mask)[:, 0]
    assert first.tolist() == [[0, 1, 2, 2], [4, 5, 6, 6], [4, 5, 6, 6]]
    assert second.tolist() == [[12] * 4, [16] * 4, [20] * 4]


def test_group_norm_is_that_of_the_image_alone():
    norm = nn.GroupNorm(2, 6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    out = group_norm(x, norm, corner_mask(3, 4, (5, 7)))
    assert torch.allclose(out[..., :3, :4], norm(x[..., :3, :4]), rtol=1e-12, atol=1e-12)
    assert out[..., 3:, :].abs().sum() == out[..., 4:].abs().sum() == 0


def test_resize_never_sees_the_padding():
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    out = resize(x, (12, 16), corner_mask(3, 4, (6, 8)))
    alone = F.interpolate(x[..., :3, :4], (6, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(out[..., :6, :8], alone, rtol=1e-12, atol=1e-12)


def test_a_batch_is_padded_to_a_multiple_of_the_backbones_own_stride():
    """A first stage that halves makes the coarsest stride 64, whatever the strides are called."""
    backbone = tiny_model().config.backbone_config
    model = tiny_model(backbone_config=replace(backbone, downsample_in_first_stage=True)).double()
    image = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    pixels, mask = torch.zeros(1, 3, 160, 160, dtype=torch.float64), torch.zeros(1, 160, 160)
    pixels[..., :128, :128], mask[:, :128, :128] = image, 1
    alone = model(image).class_queries_logits
    assert relative_error(model(pixels, pixel_mask=mask).class_queries_logits, alone) < 1e-12


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 65)])
def test_an_image_gives_the_same_answer_alone_and_in_a_larger_batch(backbone, size):
    """In float64, with garbage in the padding. Measured: 1.5e-15."""
    model = randomise(tiny_model(backbone), seed=3).double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)

    def answer(height, width):
        pixels = torch.full((2, 3, height, width), 7.0, dtype=torch.float64)
        mask = torch.ones(2, height, width)
        pixels[0, :, : size[0], : size[1]] = image
        mask[0, size[0] :] = 0
        mask[0, :, size[1] :] = 0
        output = model(pixels, pixel_mask=mask)
        rows, columns = (-(-length // 4) for length in size)
        masks = output.masks_queries_logits[:1, :, :rows, :columns]
        return output.class_queries_logits[:1], masks

    height, width = (-(-length // 32) * 32 for length in size)
    with torch.no_grad():
        alone = answer(height, width)
        for together in (answer(height + 64, width + 96), answer(97, 133)):
            for a, b in zip(alone, together, strict=True):
                assert relative_error(a, b) < 1e-12
        if size == (64, 96):  # no padding of its own: the same as without a mask
            assert relative_error(model(image).class_queries_logits, together[0]) < 1e-12
