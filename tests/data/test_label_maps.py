import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.dataset import VOID
from mask2former.data.label_maps import class_segments, read_label_map
from mask2former.io.errors import DataError

NUMBERS = np.array([[0, 3, 255], [1, 1, 0]], np.uint8)


def test_numbers_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NUMBERS).save(path)
    np.testing.assert_array_equal(read_label_map(path, (2, 3)), NUMBERS)
    wide = NUMBERS.astype(np.uint16) * 257
    Image.fromarray(wide).save(path)
    np.testing.assert_array_equal(read_label_map(path), wide)
    Image.fromarray(NUMBERS == 1).save(path)
    np.testing.assert_array_equal(read_label_map(path), NUMBERS == 1)


def test_of_a_palette_image_the_indices_are_read(tmp_path):
    image = Image.fromarray(NUMBERS)
    image.putpalette([200, 10, 30] * 256)
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), NUMBERS)


def test_colours_and_other_sizes_are_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a.png is an image of mode RGB"):
        read_label_map(tmp_path / "a.png")
    Image.new("L", (3, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="b.png is 2x3 .* but its image is 3x2"):
        read_label_map(tmp_path / "b.png", (3, 2))


def test_a_class_is_a_segment_and_void_is_none():
    classes = np.array([[VOID, 4, 4], [0, VOID, 7]])
    masks, labels = class_segments(classes)
    assert (masks.dtype, labels.dtype) == (torch.int32, torch.int64)
    assert labels.tolist() == [0, 4, 7]
    assert masks.tolist() == [[VOID, 1, 1], [0, VOID, 2]]


def test_a_map_of_void_has_no_segment():
    masks, labels = class_segments(np.full((2, 3), VOID))
    assert (masks == VOID).all()
    assert len(labels) == 0


def test_the_last_class_alone_is_segment_0():
    masks, labels = class_segments(np.full((2, 3), 9))
    assert (masks == 0).all()
    assert labels.tolist() == [9]
