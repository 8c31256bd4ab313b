import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.dataset import VOID
from mask2former.data.formats.coco_json import CocoFile
from mask2former.data.formats.coco_panoptic import CocoPanoptic, index_map
from mask2former.images.visualization import id_map_to_rgb, save_png
from mask2former.io.errors import DataError
from tests.data.files import write_json, write_picture

# Ids with all three colours; 0 is void.
IDS = np.array([[0, 70000, 70000, 5], [300, 70000, 300, 5]])


def segment(number, category, area, **more):
    return {"id": number, "category_id": category, "area": area, "bbox": [0, 0, 2, 2], **more}


def content():
    return {
        "images": [{"id": "x", "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [
            {
                "image_id": "x",
                "file_name": "a.png",
                "segments_info": [
                    segment(300, 40, 2),
                    segment(5, 1, 2, iscrowd=1),
                    segment(70000, 1, 3, iscrowd=0),
                ],
            }
        ],
        "categories": [
            {"id": 40, "name": "sky", "isthing": 0},
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 3, "name": "car", "isthing": 1},
        ],
    }


@pytest.fixture
def root(tmp_path):
    write_picture(tmp_path / "val" / "a.jpg", 2, 4)
    (tmp_path / "annotations" / "panoptic_val").mkdir(parents=True)
    save_png(id_map_to_rgb(IDS), tmp_path / "annotations" / "panoptic_val" / "a.png")
    return tmp_path


def opened(root, values, skip_bad=False):
    file = write_json(root / "annotations" / "panoptic_val.json", values)
    return CocoPanoptic(CocoFile(file), skip_bad=skip_bad)


def test_segments_come_from_the_files(root):
    dataset = opened(root, content())
    assert dataset.task == "panoptic"
    assert dataset.id2label == {0: "person", 1: "car", 2: "sky"}
    assert dataset.category_ids == [1, 3, 40]
    assert dataset.thing_label_ids == [0, 1]
    assert dataset.name(0) == "a.jpg"
    sample = dataset[0]
    assert sample.masks.dtype == torch.int32
    assert sample.masks.tolist() == [[VOID, 2, 2, 1], [0, 2, 0, 1]]
    assert sample.labels.tolist() == [2, 0, 0]
    assert sample.crowd.tolist() == [False, True, False]
    assert sample.areas.tolist() == [2, 2, 3]
    counted = sample.masks_of(torch.arange(3)).sum((1, 2))
    assert counted.tolist() == sample.areas.tolist()


def test_a_map_without_void_has_none(root):
    ids = np.where(IDS == 0, 5, IDS)
    save_png(id_map_to_rgb(ids), root / "annotations" / "panoptic_val" / "a.png")
    assert opened(root, content())[0].masks.min() == 0


def test_an_image_of_void_has_no_segments(root):
    values = content()
    values["annotations"][0]["segments_info"] = []
    save_png(id_map_to_rgb(0 * IDS), root / "annotations" / "panoptic_val" / "a.png")
    sample = opened(root, values)[0]
    assert (sample.masks == VOID).all()
    assert len(sample.labels) == 0


@pytest.mark.parametrize(
    ("ids", "listed", "reason"),
    [
        ([[0, 5, 6]], [5], "segment 6 has pixels in a.png but is not listed"),
        ([[0, 5, 5]], [5, 6], "segment 6 is listed but has no pixel in a.png"),
    ],
)
def test_ids_must_be_in_both_files(ids, listed, reason):
    with pytest.raises(DataError, match=f"x.json: image 3: {reason}"):
        index_map(np.array(ids), listed, "a.png", "x.json: image 3")


def set_segment(key, value):
    def change(values):
        values["annotations"][0]["segments_info"][1][key] = value

    return change


def set_annotation(key, value):
    def change(values):
        values["annotations"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_segment("category_id", 2), "image x: segment 5 has category_id 2, which is not"),
        (set_segment("id", 300), "image x: segment 300 is there twice"),
        (set_segment("id", 0), "segment 0 is out of range"),
        (set_segment("id", 2**24), "is out of range, 1 to 16777215"),
        (set_segment("area", -1), "segment 5 has the area -1"),
        (set_segment("bbox", [0, 0, -1, 2]), "segment 5 has the bbox"),
        (set_segment("iscrowd", "0"), "segment 5 has '0' as 'iscrowd'"),
        (set_annotation("file_name", "b.png"), "image x: there is no file .*b.png"),
        (set_annotation("image_id", "y"), "image y is of an image that is not listed"),
        (set_annotation("segments_info", None), "image x has None as 'segments_info'"),
        (lambda values: values["annotations"].append(values["annotations"][0]), "not its only one"),
        (lambda values: values["annotations"].clear(), r"image x \(a.jpg\) has no annotation"),
    ],
)
def test_a_bad_record_is_refused_or_its_image_left_out(root, change, reason):
    values = content()
    write_picture(root / "val" / "good.jpg", 2, 4)
    values["images"].append({**values["images"][0], "id": 7, "file_name": "good.jpg"})
    good = {**content()["annotations"][0], "image_id": 7}
    change(values)
    values["annotations"].append(good)
    with pytest.raises(DataError, match=f"panoptic_val.json: .*{reason}.*--skip-bad"):
        opened(root, values)
    dataset = opened(root, values, skip_bad=True)
    assert "good.jpg" in [dataset.name(i) for i in range(len(dataset))]
    assert len(dataset.skipped) in (1, 2)  # an annotation without image leaves one without it


def test_names_of_maps_may_be_paths_of_windows(root):
    values = content()
    values["annotations"][0]["file_name"] = r"C:\annotations\panoptic_val\a.png"
    assert len(opened(root, values)[0].labels) == 3


def test_things_must_be_told_from_stuff(root):
    values = content()
    del values["categories"][0]["isthing"]
    with pytest.raises(DataError, match="category 40 has None as 'isthing'"):
        opened(root, values)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_map_without_colours_is_refused(root, mode):
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).convert(mode).save(
        root / "annotations" / "panoptic_val" / "a.png"
    )
    with pytest.raises(DataError, match=f"a.png is an image of mode {mode}"):
        opened(root, content())[0]


def test_a_map_of_another_size_is_refused(root):
    save_png(id_map_to_rgb(IDS.T), root / "annotations" / "panoptic_val" / "a.png")
    with pytest.raises(DataError, match="a.png is 4x2 .* its image is 2x4"):
        opened(root, content())[0]


def test_the_folder_of_maps_must_be_there(tmp_path):
    file = write_json(tmp_path / "panoptic_val.json", content())
    with pytest.raises(DataError, match="has no folder panoptic_val beside it"):
        CocoPanoptic(CocoFile(file))


def test_the_files_may_lie_in_the_folder_itself_under_any_name(tmp_path):
    write_picture(tmp_path / "input_images" / "a.jpg", 2, 4)
    (tmp_path / "examples").mkdir()
    save_png(id_map_to_rgb(IDS), tmp_path / "examples" / "a.png")
    file = write_json(tmp_path / "examples.json", content())
    assert CocoPanoptic(CocoFile(file))[0].size == (2, 4)
