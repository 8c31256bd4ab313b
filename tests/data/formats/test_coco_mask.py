import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle

from mask2former.data.formats.coco_mask import (
    check_polygon,
    check_run_lengths,
    decode,
    require_mask_api,
)
from mask2former.images.run_length import mask_to_rle
from mask2former.io.errors import DataError

pytestmark = pytest.mark.filterwarnings(  # pycocotools is older than numpy 2
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SIZE = (13, 17)


def test_polygons_are_drawn_as_pycocotools_draws_them():
    generator = np.random.default_rng(0)
    for _ in range(50):
        polygons = [
            (generator.uniform(-3, 20, 2 * generator.integers(3, 9))).round(2).tolist()
            for _ in range(generator.integers(1, 4))
        ]
        expected = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, *SIZE)))
        np.testing.assert_array_equal(decode(polygons, SIZE, "x"), expected)


def test_an_axis_aligned_polygon_covers_its_pixels():
    mask = decode([[2, 1, 6, 1, 6, 4, 2, 4]], SIZE, "x")
    expected = np.zeros(SIZE, bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_run_lengths_of_both_kinds_are_decoded():
    mask = np.random.default_rng(1).random(SIZE) < 0.3
    compressed = mask_to_rle(torch.from_numpy(mask))
    np.testing.assert_array_equal(decode(compressed, SIZE, "x"), mask)
    column_wise = mask.T.ravel()
    edges = np.flatnonzero(np.diff(column_wise)) + 1
    counts = np.diff([0, *edges, column_wise.size]).tolist()
    counts = [0, *counts] if column_wise[0] else counts
    plain = {"size": list(SIZE), "counts": counts}
    np.testing.assert_array_equal(decode(plain, SIZE, "x"), mask)


@pytest.mark.parametrize(
    "counts", [[], [5], [222], [-1, 222], [1.5, 219.5], ["221"], "", "~", "4", "\ud800", "é", "0d9"]
)
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(DataError, match="a.json, 7: its mask cannot be decoded"):
        decode({"size": list(SIZE), "counts": counts}, SIZE, "a.json, 7")


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([1, 1, 5, 5], "of 4 numbers; .* at least 3 points"),
        ([1, 1, 5, 5, 1, 5, 2], "of 7 numbers"),
        ([], "of 0 numbers"),
        ([1, 1, 5, float("nan"), 1, 5], "not finite"),
        ([1, 1, 5, float("inf"), 1, 5], "not finite"),
        ([1, 1, "5", 5, 1, 5], "list of numbers"),
        ([[1, 1], [5, 5], [1, 5]], "list of numbers"),
        ({"x": 1}, "list of numbers"),
        ([-5, 1, -1, 1, -3, 5], "lies outside its image, which is 17 wide and 13 high"),
        ([17, 1, 20, 1, 20, 5], "lies outside"),
        ([1, 13, 5, 13, 5, 15], "lies outside"),
        ([1, 1, 500, 1, 500, 5], r"from \(1, 1\) to \(500, 5\) lies outside"),
    ],
)
def test_bad_polygons_are_refused(points, reason):
    with pytest.raises(DataError, match=f"a.json, 7: .*{reason}"):
        check_polygon(points, SIZE, "a.json, 7")


def test_polygons_may_reach_beyond_the_image():
    check_polygon([-2, -2, 18.5, 0, 5, 14], SIZE, "x")
    check_polygon([0, 0, 17, 0, 17, 13, 0, 13], SIZE, "x")


def test_run_lengths_must_be_of_the_images_size():
    check_run_lengths({"size": [13, 17], "counts": ""}, SIZE, "x")
    with pytest.raises(DataError, match=r"for \[17, 13\] but its image is \[13, 17\]"):
        check_run_lengths({"size": [17, 13], "counts": ""}, SIZE, "x")
    for damaged in ({"size": [13, 17]}, {"counts": ""}, {"size": 5, "counts": [3]}):
        with pytest.raises(DataError, match="needs counts and size"):
            check_run_lengths(damaged, SIZE, "x")


def test_a_missing_mask_library_is_said_with_the_remedy(monkeypatch):
    require_mask_api()
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr("mask2former.io.optional.find_spec", lambda package: None)
    with pytest.raises(DataError, match=r"faster_coco_eval.*pip install .*mask2former\[train\]"):
        require_mask_api()
