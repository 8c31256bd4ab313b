import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.images.segmentation_maps import map_tensor, map_tensors, masks_and_labels
from mask2former.io.errors import DataError


def convert(ids, mapping=None, ignore_index=None, do_reduce_labels=False):
    masks, labels = masks_and_labels(
        torch.as_tensor(ids), mapping, ignore_index, do_reduce_labels, 0
    )
    assert masks.dtype == torch.bool
    assert labels.dtype == torch.int64
    return masks.int().tolist(), labels.tolist()


@pytest.mark.parametrize("mode", ["L", "P", "I", "I;16", "1"])
def test_the_pixels_of_a_pil_map_are_its_ids(mode):
    ids = np.array([[0, 1, 1], [1, 0, 0]])
    if mode == "P":
        image = Image.fromarray(ids.astype(np.uint8)).convert("P")
    else:
        dtype = {"L": np.uint8, "I": np.int32, "I;16": np.uint16, "1": bool}[mode]
        image = Image.fromarray(ids.astype(dtype))
    assert image.mode == mode
    result = map_tensor(image, 0)
    assert result.dtype == torch.int64
    assert result.tolist() == ids.tolist()


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (2, 3, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_arrays_and_tensors_are_maps_with_or_without_a_channel(shape, dtype):
    array = np.arange(6, dtype=dtype).reshape(shape)
    assert map_tensor(array, 0).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert map_tensor(torch.from_numpy(array), 0).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_map_is_turned_as_its_exif_orientation_says(tmp_path):
    ids = np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ids).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert map_tensor(image, 0).tolist() == np.rot90(ids, -1).tolist()


def test_colours_are_no_ids():
    with pytest.raises(DataError, match=r"Segmentation map 4 .*mode RGB"):
        map_tensor(Image.new("RGB", (3, 2)), 4)
    with pytest.raises(ValueError, match=r"Segmentation map 4 .*\(2, 5, 3\)"):
        map_tensor(np.zeros((2, 5, 3), dtype=np.uint8), 4)


def test_fractions_are_no_ids():
    with pytest.raises(ValueError, match="Segmentation map 1 must hold integer ids"):
        map_tensor(np.array([[0.5]]), 1)


def test_a_map_of_another_size_than_its_image_is_named_with_both_sizes():
    images = [torch.zeros(3, 4, 6), torch.zeros(3, 5, 7)]
    with pytest.raises(DataError, match="Segmentation map 1 is 7 x 5 but its image is 5 x 7"):
        map_tensors([np.zeros((4, 6), int), np.zeros((7, 5), int)], images)


def test_as_many_maps_as_images():
    with pytest.raises(ValueError, match="2 segmentation maps for 1 images"):
        map_tensors(np.zeros((2, 4, 6), int), [torch.zeros(3, 4, 6)])


def test_the_example_of_the_documentation():
    masks, labels = convert([[2, 6, 7, 9]])
    assert masks == [[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]]]
    assert labels == [2, 6, 7, 9]


def test_the_ignore_index_has_no_mask():
    masks, labels = convert([[255, 0, 3]], ignore_index=255)
    assert masks == [[[0, 1, 0]], [[0, 0, 1]]]
    assert labels == [0, 3]


def test_reduced_labels_count_from_one_and_zero_is_background():
    masks, labels = convert([[0, 1, 150, 255]], ignore_index=255, do_reduce_labels=True)
    assert masks == [[[0, 1, 0, 0]], [[0, 0, 1, 0]]]
    assert labels == [0, 149]


def test_instances_get_the_label_of_their_mapping():
    masks, labels = convert([[7, 7, 3, 9]], mapping={3: 1, 7: 4, 9: 1})
    assert masks == [[[0, 0, 1, 0]], [[1, 1, 0, 0]], [[0, 0, 0, 1]]]
    assert labels == [1, 4, 1]


def test_instances_of_the_ignored_label_or_background_have_no_mask():
    assert convert([[5, 6]], {5: 255, 6: 2}, ignore_index=255)[1] == [2]
    assert convert([[5, 6]], {5: 0, 6: 2}, ignore_index=255, do_reduce_labels=True)[1] == [1]


def test_ids_outside_the_mapping_are_ignored_only_if_they_mean_nothing():
    assert convert([[255, 6]], {6: 2}, ignore_index=255)[1] == [2]
    assert convert([[0, 6]], {6: 2}, ignore_index=255, do_reduce_labels=True)[1] == [1]
    with pytest.raises(ValueError, match="Segmentation map 0 has instance 0"):
        convert([[0, 6]], {6: 2}, ignore_index=255)


@pytest.mark.parametrize("instance", [254, 255, 256])
@pytest.mark.parametrize("reduce", [False, True])
def test_no_instance_is_dropped_for_the_number_it_has(instance, reduce):
    """transformers loses instance ignore_index + 1 when it reduces labels."""
    masks, labels = convert([[instance, 1]], {1: 3, instance: 5}, 255, reduce)
    assert masks == [[[0, 1]], [[1, 0]]]
    assert labels == [3 - reduce, 5 - reduce]


def test_a_label_one_above_the_ignore_index_is_kept_when_reduced():
    assert convert([[256]], ignore_index=255, do_reduce_labels=True)[1] == [255]


def test_a_map_of_nothing_has_no_masks():
    masks, labels = masks_and_labels(torch.full((4, 5), 255), None, 255, False, 0)
    assert masks.shape == (0, 4, 5)
    assert labels.shape == (0,)
