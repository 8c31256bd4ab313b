import pytest
import torch
import torch.nn.functional as F

from mask2former.images import mask_resizer
from mask2former.images.mask_resizer import MaskResizer

# (logits_size, (valid height, valid width, padded height, padded width), target)
GEOMETRIES = [
    ((16, 24), (64, 96, 64, 96), (64, 96)),
    ((16, 24), (64, 96, 64, 96), (37, 51)),
    ((16, 24), (61, 83, 64, 96), (61, 83)),
    ((16, 24), (33, 70, 64, 96), (101, 203)),
    ((8, 8), (5, 32, 32, 32), (3, 19)),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("target", [(64, 96), (37, 51), (3, 200), (1, 1)])
def test_without_image_sizes_one_bilinear_resize_of_all_logits(target):
    logits = torch.randn(3, 16, 24, dtype=torch.float64)
    expected = F.interpolate(logits[None], size=target, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(MaskResizer((16, 24), None, target)(logits), expected)


@pytest.mark.parametrize(("logits_size", "image_size", "target"), GEOMETRIES)
def test_resized_to_the_input_cropped_and_resized_to_the_target(logits_size, image_size, target):
    logits = torch.randn(2, *logits_size, dtype=torch.float64)
    # where the padding repeats the last logit of the image, the paper's procedure and ours coincide
    real = [
        -(-v * n // p) for v, n, p in zip(image_size, logits_size, image_size[2:], strict=False)
    ]
    logits[:, real[0] :] = logits[:, real[0] - 1, None]
    logits[:, :, real[1] :] = logits[:, :, real[1] - 1, None]
    resize = {"mode": "bilinear", "align_corners": False}
    enlarged = F.interpolate(logits[None], size=image_size[2:], **resize)
    cropped = enlarged[..., : image_size[0], : image_size[1]]
    expected = F.interpolate(cropped, size=target, **resize)[0]
    torch.testing.assert_close(MaskResizer(logits_size, image_size, target)(logits), expected)


def test_the_same_valid_and_target_size_needs_a_single_resize():
    resizer = MaskResizer((16, 24), (64, 96, 64, 96), (64, 96))
    assert resizer.rows.index.shape[1] == resizer.columns.index.shape[1] == 2


@pytest.mark.parametrize(("logits_size", "image_size", "target"), GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_band_of_rows_is_exactly_those_rows_of_the_whole(logits_size, image_size, target, dtype):
    logits = torch.randn(5, *logits_size, dtype=dtype)
    resizer = MaskResizer(logits_size, image_size, target)
    whole = resizer(logits)
    assert whole.shape == (5, *target)
    assert whole.dtype == dtype
    for step in (1, 2, 7):
        bands = [resizer(logits, i, min(i + step, target[0])) for i in range(0, target[0], step)]
        assert torch.equal(torch.cat(bands, dim=1), whole)


def test_half_precision_logits_are_resized_in_float32():
    logits = torch.randn(2, 16, 24).bfloat16()
    resizer = MaskResizer((16, 24), None, (40, 50))
    assert torch.equal(resizer(logits), resizer(logits.float()))


def test_bands_cover_every_row_once_within_the_budget(monkeypatch):
    monkeypatch.setattr(mask_resizer, "BAND_ELEMENTS", 700)
    resizer = MaskResizer((16, 24), None, (37, 50))
    bands = list(resizer.bands(4))
    assert [row for start, stop in bands for row in range(start, stop)] == list(range(37))
    assert all(4 * 50 * (stop - start) <= 700 for start, stop in bands)
    assert len(list(resizer.bands(1000))) == 37


@pytest.mark.parametrize("target", [(16, 31), (20, 50)])
def test_logits_in_the_padding_are_never_read(target):
    resizer = MaskResizer((8, 12), (16, 31, 32, 48), target)
    logits = torch.randn(2, 8, 12)
    spoilt = logits.clone()
    spoilt[:, 4:] = spoilt[:, :, 8:] = torch.nan
    assert torch.equal(resizer(spoilt), resizer(logits))


def test_without_a_target_the_logits_of_the_image_come_back():
    logits = torch.randn(2, 8, 12)
    assert torch.equal(MaskResizer((8, 12), None, None)(logits), logits)
    assert torch.equal(MaskResizer((8, 12), (13, 30, 32, 48), None)(logits), logits[:, :4, :8])
