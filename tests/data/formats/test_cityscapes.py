import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.dataset import VOID
from mask2former.data.formats.cityscapes import CLASSES, Cityscapes, find_splits
from mask2former.io.errors import DataError
from tests.data.files import write_map, write_picture

# road, a car, a group of cars, another car, out of roi (3), caravan (29) and its object, sky
NUMBERS = np.array([[7, 26000, 26, 26001], [3, 29, 29000, 23]], np.uint16)


def write_frame(root, name="ulm_000000_000019", split="val", numbers=NUMBERS):
    city = name.partition("_")[0]
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    write_picture(image, *numbers.shape)
    write_map(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", numbers)
    return image


def test_the_19_classes_and_their_8_things(tmp_path):
    write_frame(tmp_path)
    dataset = Cityscapes(tmp_path / "leftImg8bit" / "val")
    assert dataset.task == "panoptic"
    assert len(dataset.id2label) == len(CLASSES) == 19
    names = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert [dataset.id2label[label] for label in dataset.thing_label_ids] == names
    # labels.py of cityscapesScripts: ids whose ignoreInEval is False, in the order of trainId
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert dataset.category_ids == ids


def test_objects_groups_stuff_and_void_are_told_apart(tmp_path):
    write_frame(tmp_path)
    dataset = Cityscapes(tmp_path / "leftImg8bit" / "val")
    sample = dataset[0]
    assert sample.name == dataset.name(0) == "ulm/ulm_000000_000019_leftImg8bit.png"
    names = [dataset.id2label[label] for label in sample.labels.tolist()]
    assert names == ["road", "sky", "car", "car", "car"]
    assert sample.crowd.tolist() == [False, False, True, False, False]
    assert sample.masks.tolist() == [[0, 3, 2, 4], [VOID, VOID, VOID, 1]]
    assert sample.masks.dtype == torch.int32


def test_the_last_object_of_a_class_is_of_that_class(tmp_path):
    write_frame(tmp_path, numbers=np.array([[26999, 27000, 33999, 24000]], np.uint16))
    dataset = Cityscapes(tmp_path / "leftImg8bit" / "val")
    names = [dataset.id2label[label] for label in dataset[0].labels.tolist()]
    assert names == ["person", "car", "truck", "bicycle"]
    assert not dataset[0].crowd.any()


def test_the_licence_plate_is_void(tmp_path):
    write_frame(tmp_path, numbers=np.array([[65535, 7]], np.uint16))
    assert Cityscapes(tmp_path / "leftImg8bit" / "val")[0].masks.tolist() == [[VOID, 0]]


def test_other_numbers_are_refused(tmp_path):
    for number in (34, 999, 34000):
        write_frame(tmp_path, numbers=np.array([[number, 7]], np.uint16))
        with pytest.raises(DataError, match=f"instanceIds.png has the number {number}"):
            Cityscapes(tmp_path / "leftImg8bit" / "val")[0]


def test_maps_of_one_bit_and_of_negative_numbers_are_no_crash(tmp_path):
    write_frame(tmp_path, numbers=np.array([[0, 1]]))
    truth = next((tmp_path / "gtFine").rglob("*.png"))
    dataset = Cityscapes(tmp_path / "leftImg8bit" / "val")
    Image.fromarray(np.array([[False, True]])).save(truth)
    assert (dataset[0].masks == VOID).all()
    Image.fromarray(np.array([[-1, 7]], np.int32)).save(truth, format="TIFF")
    with pytest.raises(DataError, match="instanceIds.png has the number -1"):
        dataset[0]


def test_splits_without_annotations_are_none(tmp_path):
    write_frame(tmp_path, split="train")
    write_frame(tmp_path, split="val")
    write_picture(tmp_path / "leftImg8bit" / "demoVideo" / "a" / "a_leftImg8bit.png")
    assert list(find_splits(tmp_path)) == ["train", "val"]


def test_images_without_annotations_are_refused_or_left_out(tmp_path):
    write_frame(tmp_path)
    image = write_frame(tmp_path, "bonn_000001_000019")
    (tmp_path / "gtFine" / "val" / "bonn" / "bonn_000001_000019_gtFine_instanceIds.png").unlink()
    with pytest.raises(DataError, match=f"{image.name} has no annotation"):
        Cityscapes(tmp_path / "leftImg8bit" / "val")
    dataset = Cityscapes(tmp_path / "leftImg8bit" / "val", skip_bad=True)
    assert [dataset.name(0)] == ["ulm/ulm_000000_000019_leftImg8bit.png"]
    assert len(dataset.skipped) == 1


def test_a_split_without_images_is_refused(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match="has no annotated images"):
        Cityscapes(tmp_path / "leftImg8bit" / "val")
