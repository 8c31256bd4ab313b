import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.images.resize import (
    center_cropped,
    next_multiple,
    padded,
    resized_by_pillow,
    resized_image,
    resized_nearest,
    shortest_edge_size,
)

Resampling = Image.Resampling
SIZES = [((37, 53), (80, 91)), ((480, 321), (97, 45)), ((50, 50), (50, 99)), ((64, 64), (1, 1))]


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resample", list(Resampling))
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bytes_are_resized_as_pillow_does_within_one(source, target, resample):
    array = pixels(*source)
    expected = np.array(Image.fromarray(array).resize(target[::-1], resample)).astype(int)
    result = resized_image(torch.from_numpy(array).permute(2, 0, 1), target, resample)
    assert result.dtype == torch.uint8
    assert abs(result.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("resample", [Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS])
def test_floats_are_resized_as_pillow_does(resample):
    plane = np.random.default_rng(1).random((33, 21), dtype=np.float32)
    expected = np.array(Image.fromarray(plane).resize((40, 17), resample))
    result = resized_image(torch.from_numpy(plane).expand(3, 33, 21), (17, 40), resample)
    np.testing.assert_allclose(result[1].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("resample", list(Resampling))
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_what_pillow_resizes_is_bit_identical_to_pillow(source, target, resample):
    array = pixels(*source)
    expected = np.array(Image.fromarray(array).resize(target[::-1], resample))
    result = resized_by_pillow(torch.from_numpy(array).permute(2, 0, 1), target, resample)
    assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((4, 3), [3, 4, 5, 6], [1, 2, 3]), ((9, 20), list(range(9)), list(range(6)))],
)
def test_the_centre_is_cut_out_and_nothing_enlarged(size, rows, columns):
    values = torch.arange(10 * 6).view(1, 10, 6)
    assert torch.equal(center_cropped(values, size), values[:, rows][:, :, columns])


def test_the_same_size_changes_nothing():
    image = torch.from_numpy(pixels(9, 8)).permute(2, 0, 1)
    assert resized_image(image, (9, 8), Resampling.BILINEAR) is image


def test_nearest_takes_pillows_pixels():
    """At ties too, as in 200 pixels that become 90."""
    generator = np.random.default_rng(2)
    sizes = [((40, 200), (18, 90)), *SIZES]
    sizes += [tuple(map(tuple, generator.integers(1, 300, (2, 2)).tolist())) for _ in range(200)]
    for source, target in sizes:
        ids = generator.integers(0, 2**30, source, dtype=np.int32)
        expected = np.array(Image.fromarray(ids).resize(target[::-1], Resampling.NEAREST))
        assert np.array_equal(resized_nearest(torch.from_numpy(ids), target).numpy(), expected)


def test_nearest_keeps_ids_that_floats_cannot_hold():
    ids = torch.tensor([[2**53 + 1, 2**62 + 3]])
    assert resized_nearest(ids, (2, 4)).unique().tolist() == [2**53 + 1, 2**62 + 3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_padding_is_at_the_bottom_and_right(dtype):
    result = padded(torch.ones(2, 2, 3, dtype=dtype), (4, 5))
    assert result.dtype == dtype
    assert result[0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5, [0] * 5]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((1024, 2048), (667, 1333)),
        ((2048, 1024), (1333, 667)),
        ((1, 5000), (1, 1333)),
        ((500, 500), (800, 800)),
        ((800, 900), (800, 900)),
    ],
)
def test_the_shortest_edge_rules_unless_the_longest_would_be_too_long(size, expected):
    assert shortest_edge_size(size, 800, 1333) == expected


def test_without_a_longest_edge_the_shortest_always_rules():
    assert shortest_edge_size((100, 1000), 800) == (800, 8000)


def test_edges_are_the_exact_ones_rounded_half_up():
    generator = np.random.default_rng(3)
    for _ in range(500):
        size = tuple(int(n) for n in generator.integers(1, 2500, 2))
        shortest, longest = (int(n) for n in generator.integers(200, 1500, 2))
        scale = min(Fraction(shortest, min(size)), Fraction(longest, max(size)))
        exact = [scale * edge for edge in size]
        if not any(edge % 1 == Fraction(1, 2) for edge in exact):  # where floats may round down
            expected = tuple(max(math.floor(edge + Fraction(1, 2)), 1) for edge in exact)
            assert shortest_edge_size(size, shortest, longest) == expected


def test_half_a_pixel_is_rounded_up():
    assert shortest_edge_size((2, 5), 1) == (1, 3)
    assert shortest_edge_size((4, 3), 2, 2) == (2, 2)


def test_next_multiple():
    assert next_multiple((33, 64), 32) == (64, 64)
    assert next_multiple((33, 65), 0) == (33, 65)


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (9, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_become_one_pixel_wide(size, layout):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 6, 5), dtype=torch.uint8, generator=generator)
    image = image.contiguous(memory_format=layout)[0]
    expected = resized_by_pillow(image.contiguous(), size, Image.Resampling.BILINEAR)
    result = resized_image(image, size, Image.Resampling.BILINEAR)
    assert result.dtype == torch.uint8
    assert (result.int() - expected.int()).abs().max() <= 1
