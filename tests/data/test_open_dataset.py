from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mask2former.data.formats import label_folder
from mask2former.data.formats.cityscapes import Cityscapes
from mask2former.data.formats.coco import CocoInstances
from mask2former.data.formats.coco_panoptic import CocoPanoptic
from mask2former.data.formats.label_folder import LabelFolder
from mask2former.data.formats.yolo import Yolo
from mask2former.data.open_dataset import (
    as_task,
    find_dataset,
    open_dataset,
)
from mask2former.images.visualization import id_map_to_rgb, save_png
from mask2former.io.errors import DataError
from tests.data.files import write_json, write_map, write_picture


def write_instances(root, *splits):
    for split in splits:
        write_picture(root / split / "a.png", 4, 6)
        write_json(
            root / "annotations" / f"instances_{split}.json",
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
                "annotations": [],
                "categories": [{"id": 3, "name": "cat"}],
            },
        )


def write_panoptic(root, *splits):
    for split in splits:
        write_picture(root / split / "a.png", 4, 6)
        (root / "annotations" / f"panoptic_{split}").mkdir(parents=True)
        ids = np.full((4, 6), 9)
        save_png(id_map_to_rgb(ids), root / "annotations" / f"panoptic_{split}" / "a.png")
        segments = [{"id": 9, "category_id": 3, "area": 24}]
        write_json(
            root / "annotations" / f"panoptic_{split}.json",
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
                "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
                "categories": [{"id": 3, "name": "cat", "isthing": 1}],
            },
        )


def write_label_maps(root, *splits):
    for split in splits:
        write_picture(root / "images" / split / "a.png", 4, 6)
        write_map(root / "annotations" / split / "a.png", np.ones((4, 6)))


def write_cityscapes(root, *splits):
    for split in splits:
        write_picture(root / "leftImg8bit" / split / "ulm" / "u_leftImg8bit.png", 4, 6)
        numbers = np.full((4, 6), 26001)
        write_map(root / "gtFine" / split / "ulm" / "u_gtFine_instanceIds.png", numbers)


def write_yolo(root, *splits):
    lines = [f"{split}: images/{split}" for split in splits]
    for split in splits:
        write_picture(root / "images" / split / "a.png", 4, 6)
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "a.txt").write_text("0 0 0 1 0 1 1\n")
    (root / "data.yaml").write_text("\n".join([*lines, "names: [cat]"]))


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_instances, CocoInstances),
        (write_panoptic, CocoPanoptic),
        (write_label_maps, LabelFolder),
        (write_cityscapes, Cityscapes),
        (write_yolo, Yolo),
    ],
)
def test_formats_are_recognised(tmp_path, write, kind):
    write(tmp_path, "train", "val")
    assert list(find_dataset(tmp_path).splits) == ["train", "val"]
    for split in (None, "train", "val"):
        dataset = open_dataset(str(tmp_path), split)
        assert type(dataset) is kind
        assert dataset[0].size == (4, 6)
        assert dataset.skipped == []
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        open_dataset(tmp_path, "test")


def write_own_names(root, *splits):
    write_instances(root, *splits)
    for split in splits:
        (root / "annotations" / f"instances_{split}.json").rename(root / f"{split}.json")


@pytest.mark.parametrize("write", [write_instances, write_own_names, write_panoptic, write_yolo])
@pytest.mark.parametrize("by_file", [False, True])
def test_an_annotation_file_is_read_once(tmp_path, monkeypatch, write, by_file):
    write(tmp_path, "train", "val")
    files = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".yaml")]
    reads, read_bytes = Counter(), Path.read_bytes

    def counted(path):
        reads[path] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(Path, "read_text", None)
    found = find_dataset(min(files) if by_file else tmp_path)
    for split in found.splits:
        assert len(found.open(split)) == 1
    assert reads == (
        {min(files): 1} if by_file and write is write_own_names else dict.fromkeys(files, 1)
    )


def test_label_maps_are_searched_for_their_classes_once(tmp_path, monkeypatch):
    write_label_maps(tmp_path, "train", "val")
    reads, read = Counter(), label_folder.read_label_map

    def counted(path, size=None):
        reads[path] += 1
        return read(path, size)

    monkeypatch.setattr(label_folder, "read_label_map", counted)
    found = find_dataset(tmp_path)
    assert found.open("train").id2label == found.open("val").id2label == {0: "0", 1: "1"}
    assert set(reads.values()) == {1} and len(reads) == 2


def test_the_only_split_is_the_default(tmp_path):
    write_instances(tmp_path, "val2017")
    assert len(open_dataset(tmp_path)) == 1


def test_splits_are_found_by_the_beginning_of_their_names(tmp_path):
    write_instances(tmp_path, "train2017", "val2017")
    assert open_dataset(tmp_path).file.name == "instances_train2017.json"
    assert open_dataset(tmp_path, "val").file.name == "instances_val2017.json"
    write_instances(tmp_path, "val2014")
    with pytest.raises(DataError, match="no split 'val'; it has train2017, val2014, val2017"):
        open_dataset(tmp_path, "val")


def test_a_file_is_its_own_split_and_leads_to_those_beside_it(tmp_path):
    write_instances(tmp_path, "train", "val")
    file = tmp_path / "annotations" / "instances_val.json"
    assert open_dataset(file).file == file
    assert open_dataset(file, "train").file.name == "instances_train.json"
    assert list(find_dataset(file).splits) == ["train", "val"]


def test_of_instances_and_panoptic_files_one_must_be_given(tmp_path):
    write_panoptic(tmp_path, "val")
    write_instances(tmp_path, "val")
    with pytest.raises(DataError, match="give one of the files, .*panoptic_val.json"):
        open_dataset(tmp_path)
    folder = tmp_path / "annotations"
    assert open_dataset(folder / "panoptic_val.json").task == "panoptic"
    assert open_dataset(folder / "instances_val.json").task == "instance"


def test_images_may_be_elsewhere(tmp_path):
    write_instances(tmp_path / "a", "val")
    (tmp_path / "a" / "val").rename(tmp_path / "pictures")
    with pytest.raises(DataError, match="--images"):
        open_dataset(tmp_path / "a")
    assert len(open_dataset(tmp_path / "a", images=str(tmp_path / "pictures"))) == 1
    with pytest.raises(DataError, match="nowhere is no folder"):
        open_dataset(tmp_path / "a", images=tmp_path / "nowhere")


def test_arguments_of_other_formats_are_refused(tmp_path):
    write_instances(tmp_path / "coco", "val")
    with pytest.raises(ValueError, match="--reduce-labels"):
        open_dataset(tmp_path / "coco", reduce_labels=True)
    write_yolo(tmp_path, "val")
    with pytest.raises(ValueError, match="--images"):
        open_dataset(tmp_path, images=tmp_path)


def test_bad_records_are_left_out_and_listed(tmp_path):
    write_label_maps(tmp_path, "train")
    write_picture(tmp_path / "images" / "train" / "b.png", 4, 6)
    with pytest.raises(DataError, match="b.png must have one label map.*--skip-bad"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert (len(dataset), len(dataset.skipped)) == (1, 1)
    (tmp_path / "images" / "train" / "a.png").unlink()
    with pytest.raises(DataError, match="no image in 'train' that could be used; of 2.*: .*b.png"):
        open_dataset(tmp_path, skip_bad=True)


def test_a_broken_file_is_still_recognised(tmp_path):
    write_instances(tmp_path, "val")
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DataError, match="instances_val.json is not valid JSON"):
        open_dataset(tmp_path)


def test_files_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    write_instances(tmp_path, "val")

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match=r"instances_val.json cannot be read \(Permission denied\)"):
        open_dataset(tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no data set of a known format"):
        find_dataset(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="a.txt is no annotation file"):
        open_dataset(tmp_path / "a.txt")
    file = write_json(tmp_path / "a.json", {"images": []})
    with pytest.raises(DataError, match="a.json is no COCO file"):
        open_dataset(file)


def test_a_data_set_can_be_had_for_another_task(tmp_path):
    write_cityscapes(tmp_path, "val")
    assert as_task(open_dataset(tmp_path), "semantic")[0].labels.tolist() == [13]
