import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mask2former.images.run_length import mask_to_rle


def decode(rle):
    """A bool mask from a compressed COCO RLE, by the format's description."""
    counts, value, shift = [], 0, 0
    for character in rle["counts"]:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    height, width = rle["size"]
    assert sum(counts) == height * width
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return torch.from_numpy(pixels.reshape(width, height).T.copy())


def masks_to_encode():
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(
        torch.randn(1, 1, 5, 4, generator=generator), size=(70, 331), mode="bicubic"
    )
    return [
        torch.zeros(5, 7, dtype=torch.bool),
        torch.ones(5, 7, dtype=torch.bool),
        torch.rand(13, 29, generator=generator) > 0.5,
        torch.rand(1, 1, generator=generator) >= 0,
        smooth[0, 0] > 0,
    ]


def test_counts_run_down_the_columns_from_background():
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    # 2 off, 1 on, 1 off, 2 on; the last is written as 1 more than the one two before it
    assert mask_to_rle(mask) == {"size": [2, 3], "counts": "2111"}
    assert mask_to_rle(1 - mask) == {"size": [2, 3], "counts": "021O1"}


@pytest.mark.parametrize("mask", masks_to_encode(), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_run_lengths_decode_to_the_mask(mask):
    rle = mask_to_rle(mask)
    assert rle["size"] == list(mask.shape)
    assert torch.equal(decode(rle), mask)


# pycocotools 2.0 asks numpy for something it deprecated
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_run_lengths():
    coco_mask = pytest.importorskip("pycocotools.mask")
    for mask in masks_to_encode():
        rle = mask_to_rle(mask)
        assert np.array_equal(coco_mask.decode(rle), mask.numpy())
        assert coco_mask.area(rle) == mask.sum()
        encoded = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert rle["counts"].encode() == encoded["counts"]
