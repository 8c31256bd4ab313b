import pytest

from mask2former.data.formats.coco_splits import find_splits
from mask2former.io.errors import DataError
from tests.data.files import write_json

INSTANCES = {"images": [], "annotations": [], "categories": []}
PANOPTIC = {"annotations": [{"segments_info": []}]}


def test_splits_are_found_in_the_layouts_of_coco_and_roboflow(tmp_path):
    coco, roboflow, own = tmp_path / "coco", tmp_path / "roboflow", tmp_path / "own"
    for split in ("train2017", "val2017"):
        write_json(coco / "annotations" / f"instances_{split}.json", INSTANCES)
        write_json(coco / "annotations" / f"captions_{split}.json", INSTANCES)
    for split in ("train", "valid"):
        write_json(roboflow / split / "_annotations.coco.json", INSTANCES)
    write_json(own / "labels.json", INSTANCES)
    write_json(own / "settings.json", {"images": 3})
    assert list(find_splits(coco)) == ["train2017", "val2017"]
    assert list(find_splits(coco / "annotations" / "instances_val2017.json")) == list(
        find_splits(coco)
    )
    assert list(find_splits(roboflow)) == ["train", "valid"]
    assert list(find_splits(roboflow / "train")) == ["train"]
    assert list(find_splits(roboflow / "train" / "_annotations.coco.json")) == ["train", "valid"]
    assert list(find_splits(own)) == ["labels"]


def test_panoptic_splits_are_those_with_a_folder_of_maps(tmp_path):
    (tmp_path / "annotations" / "panoptic_val").mkdir(parents=True)
    for split in ("test", "val"):
        write_json(tmp_path / "annotations" / f"panoptic_{split}.json", PANOPTIC)
    write_json(tmp_path / "panoptic_coco_categories.json", [])
    assert list(find_splits(tmp_path)) == ["val"]
    assert list(find_splits(tmp_path / "annotations" / "panoptic_val.json")) == ["val"]


def test_panoptic_files_may_have_any_name_and_lie_in_the_folder_itself(tmp_path):
    (tmp_path / "examples").mkdir()
    write_json(tmp_path / "examples.json", PANOPTIC)
    assert list(find_splits(tmp_path)) == ["examples"]


def test_instances_beside_a_folder_of_their_name_are_not_panoptic(tmp_path):
    (tmp_path / "train").mkdir()
    file = write_json(tmp_path / "train.json", INSTANCES)
    assert list(find_splits(tmp_path)) == list(find_splits(file)) == ["train"]


def test_other_json_files_are_no_data_set(tmp_path):
    file = write_json(tmp_path / "settings.json", {"images": 3})
    assert find_splits(tmp_path) == {}
    with pytest.raises(DataError, match="is no COCO file"):
        find_splits(file)
