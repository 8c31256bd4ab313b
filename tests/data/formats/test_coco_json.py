from pathlib import Path

import pytest

from mask2former.data.formats.coco_json import find_images, read_categories, read_images, split_of
from mask2former.data.records import BadRecords
from mask2former.io.errors import DataError
from tests.data.files import write_json, write_picture

FILE = Path("x.json")


def image(number=1, name="a.png", height=12, width=16):
    return {"id": number, "file_name": name, "height": height, "width": width}


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/panoptic_train.json", "train"),
        ("valid/_annotations.coco.json", "valid"),
        ("labels.json", "labels"),
        ("my_cats.json", "my_cats"),
    ],
)
def test_splits_are_named_by_their_files(file, split):
    assert split_of(Path(file)) == split


def test_classes_are_in_the_order_of_category_ids():
    categories = [{"id": 7, "name": "b"}, {"id": 2, "name": "a"}]
    assert [c["id"] for c in read_categories(categories, set(), FILE)] == [2, 7]


def test_roboflows_project_is_no_category_unless_it_has_annotations():
    categories = [
        {"id": 0, "name": "cats", "supercategory": "none"},
        {"id": 1, "name": "cats", "supercategory": "cats"},
    ]
    assert [c["id"] for c in read_categories(categories, {1}, FILE)] == [1]
    categories[0]["name"] = categories[1]["supercategory"] = "animals"
    assert [c["id"] for c in read_categories(categories, {1}, FILE)] == [1]
    assert [c["id"] for c in read_categories(categories, {0, 1}, FILE)] == [0, 1]


@pytest.mark.parametrize(
    ("categories", "reason"),
    [
        ([], "has no categories"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "the id 1 for two"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "the name 'a' for two"),
        ([{"name": "a"}], "a category lacks 'id'"),
        ([{"id": 1}], "category 1 lacks 'name'"),
        ([{"id": "1", "name": "a"}], "has '1' as 'id'"),
        ([{"id": True, "name": "a"}], "has True as 'id'"),
    ],
)
def test_bad_categories_are_refused(categories, reason):
    with pytest.raises(DataError, match=f"x.json.*{reason}"):
        read_categories(categories, set(), FILE)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (image(1, "b.png"), r"image 1 \(b.png\) has the id of a.png"),
        (image(2, "a.png"), "image 2 is a.png, as another image is"),
        (image(2, "c.png"), "image 2: there is no file .*c.png"),
        (image(2, "./a.png"), r"image 2 is ./a.png, as another image is \(a.png\)"),
        (image(2, "../x/a.png"), r"image 2 is ../x/a.png, as another image is \(a.png\)"),
        (image(2, "x/b.png"), "there is no file .*x/b.png"),
        (image(2, "../c.png"), "there is no file"),
        (image(2, ""), "there is no file"),
        (image(2, "x" * 5000), "there is no file"),
        (image([2], "b.png"), r"has \[2\] as 'id', not a whole number or text\."),
        (image(2, "b.png", height=0), "0 high and 16 wide"),
        (image(2, "b.png", height=12.0), "image 2 has 12.0 as 'height', not a whole number"),
        ({"id": 2, "file_name": "b.png", "height": 12}, "image 2 lacks 'width'"),
        ({"id": 2, "height": 12, "width": 16}, "image 2 lacks 'file_name'"),
        ({"file_name": "b.png"}, "an image lacks 'id'"),
        ("b.png", "an image must be an object, not a str"),
    ],
)
def test_bad_images_are_refused_or_left_out(tmp_path, record, reason):
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=f"x.json: .*{reason}"):
        read_images([image(), record], tmp_path, FILE, BadRecords(skip=False))
    bad = BadRecords(skip=True)
    entries = read_images([record, image()] if "id of" not in reason else [image(), record],
                          tmp_path, FILE, bad)  # fmt: skip
    if "as another" not in reason:
        assert [entry.name for entry in entries.values()] == ["a.png"]
        assert entries[1].path == tmp_path / "a.png"
        assert entries[1].size == (12, 16)
    assert len(bad.reasons) == 1


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_val.json", "val"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_val.json", "val/images"),
        ("annotations/instances_val.json", "images"),
        ("val/_annotations.coco.json", "val"),
        ("labels.json", "images"),
        ("labels.json", "."),
        ("labels.json", "input_images"),
    ],
)
def test_images_are_found_beside_their_file(tmp_path, file, folder):
    file = write_json(tmp_path / file, {})
    write_picture(tmp_path / folder / "a.png")
    (tmp_path / "other").mkdir()
    assert find_images([image()], file).resolve() == (tmp_path / folder).resolve()


@pytest.mark.parametrize(
    "name",
    [
        r"images\val\a.png",
        "../../label-studio/media/upload/4/a.png",
        r"..\..\label-studio\media\upload\4\a.png",
        "/home/somebody/pictures/a.png",
        r"C:\pictures\a.png",
    ],
)
def test_paths_of_windows_and_of_another_machine_are_found(tmp_path, name):
    file = write_json(tmp_path / "labels.json", {})
    write_picture(tmp_path / "images" / "val" / "a.png")
    write_picture(tmp_path / "images" / "a.png")
    folder = find_images([image(name=name)], file)
    (entry,) = read_images([image(name=name)], folder, FILE, BadRecords(skip=False)).values()
    assert entry.name == name
    in_val = name.startswith("images")
    assert entry.path == tmp_path / "images" / ("val/a.png" if in_val else "a.png")


def test_the_folder_with_most_of_the_images_is_theirs(tmp_path):
    file = write_json(tmp_path / "annotations" / "instances_v.json", {})
    names = [f"{number}.png" for number in range(50)]
    write_picture(tmp_path / "early" / "0.png")
    for name in names:
        write_picture(tmp_path / "later" / name, 2, 2)
    assert find_images([image(name=name) for name in names], file).name == "later"


def test_the_folder_of_label_maps_is_not_taken_for_the_images(tmp_path):
    file = write_json(tmp_path / "panoptic_x.json", {})
    for folder in ("panoptic_x", "pictures"):
        write_picture(tmp_path / folder / "a.png")
    assert find_images([image()], file, not_here=tmp_path / "panoptic_x").name == "pictures"


def test_names_too_long_for_a_file_are_no_images(tmp_path):
    file = write_json(tmp_path / "labels.json", {})
    write_picture(tmp_path / "a.png")
    assert find_images([image(name="x" * 5000), image()], file) == tmp_path


def test_a_file_without_images_is_said_to_be_one(tmp_path):
    file = write_json(tmp_path / "labels.json", {})
    with pytest.raises(DataError, match="labels.json lists no images; export it again."):
        find_images([], file)


def test_missing_images_are_named_with_the_remedy(tmp_path):
    file = write_json(tmp_path / "labels.json", {})
    with pytest.raises(DataError, match="labels.json .*none has a.png.* --images"):
        find_images([image()], file)
