import os
import pickle
import re

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle

from mask2former.data.formats.coco import CocoInstances
from mask2former.data.formats.coco_json import CocoFile
from mask2former.images.run_length import mask_to_rle
from mask2former.io.errors import DataError
from tests.data.files import write_json, write_picture

pytestmark = pytest.mark.filterwarnings(  # pycocotools is older than numpy 2
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]
CROWD = torch.zeros(12, 16, dtype=torch.bool)
CROWD[3:9, 5:15] = True


def annotation(number, image=10, category=7, segmentation=None, **more):
    segmentation = [SQUARE] if segmentation is None else segmentation
    values = {"id": number, "image_id": image, "category_id": category}
    return {**values, "segmentation": segmentation, "area": 12.0, "bbox": [2, 1, 4, 3], **more}


def content():
    """Two images, the second without objects; categories 2 and 7."""
    return {
        "images": [
            {"id": 10, "file_name": "a.png", "height": 12, "width": 16},
            {"id": 4, "file_name": "sub/b.png", "height": 5, "width": 7},
        ],
        "annotations": [
            annotation(1),
            annotation(2, category=2, segmentation=mask_to_rle(CROWD), iscrowd=1, area=60),
            annotation(3, segmentation=[SQUARE, [8, 8, 12, 8, 12, 11]], area=17.5),
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


@pytest.fixture
def root(tmp_path):
    write_picture(tmp_path / "val" / "a.png")
    write_picture(tmp_path / "val" / "sub" / "b.png", 5, 7)
    return tmp_path


def opened(root, values, skip_bad=False):
    file = write_json(root / "annotations" / "instances_val.json", values)
    return CocoInstances(CocoFile(file), skip_bad=skip_bad)


def test_objects_come_from_the_file(root):
    dataset = opened(root, content())
    assert dataset.task == "instance"
    assert dataset.id2label == {0: "cat", 1: "dog"}
    assert dataset.category_ids == [2, 7]
    assert dataset.thing_label_ids == [0, 1]
    assert len(dataset) == 2
    assert [dataset.name(0), dataset.name(1)] == ["a.png", "sub/b.png"]
    sample = dataset[0]
    assert sample.name == "a.png"
    assert (sample.image.dtype, sample.size) == (torch.uint8, (12, 16))
    assert sample.labels.tolist() == [1, 0, 1]
    assert sample.crowd.tolist() == [False, True, False]
    assert (sample.areas.dtype, sample.areas.tolist()) == (torch.float64, [12, 60, 17.5])
    assert sample.masks.dtype == torch.bool
    expected = np.zeros((12, 16), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert torch.equal(sample.masks[1], CROWD)
    polygons = content()["annotations"][2]["segmentation"]
    both = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, 12, 16)))
    np.testing.assert_array_equal(sample.masks[2], both)


def test_an_image_without_objects_is_a_sample(root):
    sample = opened(root, content())[1]
    assert sample.masks.shape == (0, 5, 7)
    assert (sample.labels.dtype, len(sample.labels)) == (torch.int64, 0)
    assert sample.crowd.dtype == torch.bool


def test_areas_are_left_out_where_one_is_missing(root):
    values = content()
    del values["annotations"][1]["area"]
    assert opened(root, values)[0].areas is None


def test_a_data_set_survives_the_way_to_a_worker(root):
    dataset = opened(root, content())
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].masks, dataset[0].masks)


def test_indices_beyond_the_end_raise_index_errors(root):
    dataset = opened(root, content())
    with pytest.raises(IndexError):
        dataset[2]
    assert [sample.name for sample in dataset] == ["a.png", "sub/b.png"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (annotation(9, image=11), "annotation 9 is of image 11, which is not listed"),
        (annotation(9, category=1), r"9 \(image 10, a.png\) has category_id 1, which is not"),
        (annotation(9, segmentation=[[1, 1, 2, 2]]), "9 .*polygon of 4 numbers"),
        (annotation(9, segmentation=[[1, 1, 2, 2, 3]]), "9 .*polygon of 5 numbers"),
        (annotation(9, segmentation=[[20, 1, 30, 1, 30, 9]]), "9 .*outside its image"),
        (annotation(9, segmentation=[]), "9 .*has no segmentation; a box alone"),
        (annotation(9, segmentation={"size": [16, 12], "counts": "0"}), r"9 .*for \[16, 12\]"),
        (annotation(9, segmentation="none"), "9 .*has no segmentation"),
        (annotation(9, segmentation=[1, 1, 2, 2, 3, 1]), r"9 .*a list of numbers \[x1.*, not 1\."),
        (annotation(9, segmentation=[[[1, 1], [2, 2], [3, 1]]]), r"9 .*, not \[\[1, 1"),
        (annotation(9, iscrowd="0"), "9 .*has '0' as 'iscrowd'"),
        (annotation(9, iscrowd=2), "9 .*has 2 as 'iscrowd'"),
        (annotation(9, bbox=[1, 1, -2, 3]), "9 .*has the bbox"),
        (annotation(9, bbox=[1, 1, 2]), "9 .*has the bbox"),
        (annotation(9, area=-1), "9 .*has the area -1"),
        (annotation(9, area=float("nan")), "9 .*has the area nan"),
        (annotation(9, area=10**400), "9 .*has the area 1000"),
        (annotation(9, segmentation=[[10**400, 0.5] * 3]), "9 .*not finite"),
        (annotation(9, category=[7]), r"9 .*has \[7\] as 'category_id'"),
        ({"id": 9, "image_id": 10}, "9 .*lacks 'category_id'"),
        ({"id": 9, "category_id": 7}, "annotation 9 lacks 'image_id'"),
        ({"image_id": 5}, "annotation number 3 is of image 5"),
        (None, "annotation number 3 must be an object"),
    ],
)
def test_a_bad_annotation_is_refused_or_left_out(root, record, reason):
    values = content()
    values["annotations"].append(record)
    with pytest.raises(DataError, match=f"instances_val.json: .*{reason}.*--skip-bad") as error:
        opened(root, values)
    assert str(error.value).count("--skip-bad") == 1
    dataset = opened(root, values, skip_bad=True)
    assert len(dataset[0].labels) == 3
    (sentence,) = dataset.skipped
    assert re.search(reason, sentence)


def test_good_polygons_stay_where_bad_ones_are_left_out(root):
    values = content()
    values["annotations"][0]["segmentation"] = [[1, 1, 2], SQUARE]
    dataset = opened(root, values, skip_bad=True)
    assert len(dataset.skipped) == 1
    assert dataset[0].masks[0].sum() == 12


def test_annotations_of_a_left_out_image_are_not_bad_themselves(root):
    (root / "val" / "a.png").unlink()
    dataset = opened(root, content(), skip_bad=True)
    assert len(dataset) == 1
    assert len(dataset.skipped) == 1
    assert "a.png" in dataset.skipped[0]


def test_crowds_may_be_marked_by_null_and_true(root):
    values = content()
    for one, mark in zip(values["annotations"], (None, True, 0), strict=True):
        one["iscrowd"] = mark
    assert opened(root, values)[0].crowd.tolist() == [False, True, False]


def test_run_lengths_whose_size_is_floating_point_are_read(root):
    values = content()
    values["annotations"][1]["segmentation"]["size"] = [12.0, 16.0]
    assert torch.equal(opened(root, values)[0].masks[1], CROWD)


def test_damage_that_only_reading_shows_names_image_and_annotation(root):
    values = content()
    values["annotations"][1]["segmentation"]["counts"] = "zz"
    dataset = opened(root, values)
    with pytest.raises(DataError, match=r"instances_val.json: annotation 2 \(a.png\): its mask"):
        dataset[0]


def test_an_image_of_another_size_than_the_file_says_is_refused(root):
    write_picture(root / "val" / "a.png", 16, 12)
    with pytest.raises(DataError, match=r"a.png is 16x12 .*instances_val.json is for 12x16"):
        opened(root, content())[0]


@pytest.mark.parametrize("text", ['{"images": [', "[]", "{}", '{"images": 5, "annotations": []}'])
def test_a_broken_file_is_named(root, text):
    file = root / "instances_val.json"
    file.write_text(text)
    with pytest.raises(DataError, match="instances_val.json"):
        CocoInstances(CocoFile(file))


def test_thousands_of_images_are_opened_without_a_look_at_each(root, monkeypatch):
    values = content()
    names = [f"{number}.png" for number in range(3000)]
    for name in names:
        (root / "val" / name).touch()
    values["images"] += [
        {"id": 100 + i, "file_name": name, "height": 5, "width": 7} for i, name in enumerate(names)
    ]
    looks = []
    stat = os.stat
    monkeypatch.setattr("os.stat", lambda *args, **more: looks.append(args) or stat(*args, **more))
    assert len(opened(root, values)) == 3002
    assert 20 < len(looks) < 200  # some in each candidate folder
