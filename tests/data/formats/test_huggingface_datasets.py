import pickle

import numpy as np
import pytest
from PIL import Image

from mask2former.data.dataset import VOID
from mask2former.data.formats.huggingface_datasets import find_splits
from mask2former.data.open_dataset import find_dataset, open_dataset
from mask2former.io.errors import DataError

datasets = pytest.importorskip("datasets")

NUMBERS = np.array([[0, 2, 255], [1, 1, 2]], np.uint8)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
SQUARE = [1.0, 1, 4, 1, 4, 3, 1, 3]


def semantic_rows(numbers=NUMBERS, map_column="annotation", image_column="image"):
    rows = {
        image_column: [Image.fromarray(PIXELS)],
        map_column: [Image.fromarray(np.asarray(numbers, np.uint8))],
        "scene": ["hall"],
    }
    features = datasets.Features(
        {
            image_column: datasets.Image(),
            map_column: datasets.Image(),
            "scene": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


def instance_rows(category=1, polygon=SQUARE):
    objects = {
        "category": datasets.ClassLabel(names=["cat", "dog"]),
        "segmentation": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        "iscrowd": datasets.Value("bool"),
        "area": datasets.Value("float32"),
        "bbox": datasets.Sequence(datasets.Value("float32")),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": [objects]})
    entry = {
        "category": category,
        "segmentation": [polygon],
        "iscrowd": True,
        "area": 6.0,
        "bbox": [1.0, 1, 3, 2],
    }
    image = Image.new("RGB", (6, 5))
    return datasets.Dataset.from_dict(
        {"image": [image, image], "objects": [[entry], []]}, features=features
    )


def test_label_maps_are_read(tmp_path):
    datasets.DatasetDict(
        {"train": semantic_rows(), "validation": semantic_rows(NUMBERS % 254)}
    ).save_to_disk(tmp_path)
    splits = find_splits(tmp_path)
    assert list(splits) == ["train", "validation"]
    dataset = splits["train"]()
    assert dataset.task == "semantic"
    assert dataset.id2label == {0: "0", 1: "1", 2: "2"}
    sample = dataset[0]
    assert sample.name == dataset.name(0) == "train 0"
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0), PIXELS)
    assert sample.masks.tolist() == [[0, 2, VOID], [1, 1, 2]]
    assert sample.labels.tolist() == [0, 1, 2]
    reduced = open_dataset(tmp_path, "validation", reduce_labels=True)
    assert reduced.category_ids == [1, 2]
    assert reduced[0].masks.tolist() == [[VOID, 1, 0], [0, 0, 1]]


def test_other_names_of_columns_are_known_and_names_of_classes_read(tmp_path):
    semantic_rows(map_column="label", image_column="pixel_values").save_to_disk(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    assert list(find_dataset(tmp_path).splits) == ["all"]
    dataset = open_dataset(tmp_path)
    assert dataset.id2label == {0: "sky", 1: "road", 2: "car"}
    assert pickle.loads(pickle.dumps(dataset))[0].labels.tolist() == [0, 1, 2]


def test_objects_are_read(tmp_path):
    instance_rows().save_to_disk(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.task == "instance"
    assert dataset.id2label == {0: "cat", 1: "dog"}
    sample = dataset[0]
    expected = np.zeros((1, 5, 6), bool)
    expected[0, 1:3, 1:4] = True
    np.testing.assert_array_equal(sample.masks, expected)
    assert sample.labels.tolist() == [1]
    assert sample.crowd.tolist() == [True]
    assert sample.areas.tolist() == [6]
    assert dataset[1].masks.shape == (0, 5, 6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"polygon": [1.0, 1, 4, 1]}, "row 0, object 0: a polygon of 4 numbers"),
        ({"polygon": [50.0, 1, 60, 1, 60, 9]}, "row 0, object 0: .* lies outside"),
        ({"category": None}, "row 0, object 0 has the category None, but there are 0 to 1"),
    ],
)
def test_bad_objects_are_named(tmp_path, change, reason):
    instance_rows(**change).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=reason):
        open_dataset(tmp_path)[0]


def rows_of_lists(**objects):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "category": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"])),
                "segmentation": datasets.Sequence(
                    datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
                ),
                "iscrowd": datasets.Sequence(datasets.Value("bool")),
            },
        }
    )
    rows = {"image": [Image.new("RGB", (6, 5))], "objects": [objects]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_objects_may_be_a_record_of_lists(tmp_path):
    both = [[SQUARE], [SQUARE]]
    rows_of_lists(category=[1, 0], segmentation=both, iscrowd=None).save_to_disk(tmp_path / "a")
    sample = open_dataset(tmp_path / "a")[0]
    assert sample.labels.tolist() == [1, 0]
    assert sample.masks.sum((1, 2)).tolist() == [6, 6]
    rows_of_lists(category=[1], segmentation=both, iscrowd=[True]).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match="all, row 0 has objects .*1 of category, 2 of segment"):
        open_dataset(tmp_path / "b")[0]


def test_a_bad_polygon_beside_a_good_one_is_not_passed_over_in_silence(tmp_path):
    lists = {"category": [1], "segmentation": [[SQUARE, [1.0, 1, 2]]], "iscrowd": [False]}
    rows_of_lists(**lists).save_to_disk(tmp_path)
    for skip_bad in (False, True):
        with pytest.raises(DataError, match="all, row 0, object 0: a polygon of 3 numbers"):
            open_dataset(tmp_path, skip_bad=skip_bad)[0]


def test_bad_label_maps_are_named(tmp_path):
    semantic_rows(np.zeros((5, 5))).save_to_disk(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="label map of .*, all, row 0 is 5x5 .* image is 2x3"):
        open_dataset(tmp_path)[0]
    semantic_rows(NUMBERS + 5).save_to_disk(tmp_path / "other")
    (tmp_path / "other" / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="all, row 0 has the number 7"):
        open_dataset(tmp_path / "other")[0]


def test_damaged_images_are_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    damaged = {"bytes": b"no image", "path": None}
    rows = datasets.Dataset.from_dict({"image": [damaged], "label": [damaged]}, features=features)
    rows.save_to_disk(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="all, row 0 cannot be decoded"):
        open_dataset(tmp_path)[0]


def test_images_too_large_to_decode_are_named(tmp_path, monkeypatch):
    instance_rows().save_to_disk(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="all, row 0 cannot be decoded .*exceeds limit"):
        open_dataset(tmp_path)[0]


def test_other_columns_are_listed(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="has the columns text, label; wanted are an image"):
        open_dataset(tmp_path)


def test_objects_without_names_need_a_file_of_them(tmp_path):
    rows = datasets.Dataset.from_dict(
        {
            "image": [Image.new("RGB", (6, 5))],
            "objects": [{"category_id": [0], "segmentation": [[SQUARE]]}],
        }
    )
    rows = rows.cast_column("image", datasets.Image())
    rows.save_to_disk(tmp_path)
    with pytest.raises(DataError, match="objects.category_id has no names.*classes.txt"):
        open_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n")
    assert open_dataset(tmp_path)[0].masks.sum() == 6


def test_missing_datasets_are_said_with_the_remedy(tmp_path, monkeypatch):
    semantic_rows().save_to_disk(tmp_path)
    monkeypatch.setattr("mask2former.io.optional.find_spec", lambda package: None)
    with pytest.raises(DataError, match="needs the package datasets.*pip install"):
        open_dataset(tmp_path)
