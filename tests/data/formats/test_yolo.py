import numpy as np
import pytest
import torch

from mask2former.data.formats.yolo import find_splits, read_polygons
from mask2former.io.errors import DataError
from tests.data.files import write_picture

YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data.yaml").write_text(YAML)
    for name in ("a", "b"):
        write_picture(tmp_path / "images" / "train" / f"{name}.png", 10, 20)
    write_picture(tmp_path / "images" / "val" / "c.png", 10, 20)
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(
        "1 0.1 0.2 0.5 0.2 0.5 0.7 0.1 0.7\n\n0 0.5 0.0 1.0 0.0 1.0 1.0 0.5 1.0\n"
    )
    (labels / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def opened(root, split, skip_bad=False):
    return find_splits(root / "data.yaml")[split](skip_bad=skip_bad)


def test_polygons_are_scaled_to_the_image(root):
    dataset = opened(root, "train")
    assert dataset.task == "instance"
    assert dataset.id2label == {0: "cat", 1: "dog"}
    assert dataset.category_ids == dataset.thing_label_ids == [0, 1]
    assert [dataset.name(i) for i in range(2)] == ["images/train/a.png", "images/train/b.png"]
    sample = dataset[0]
    assert sample.labels.tolist() == [1, 0]
    assert not sample.crowd.any()
    assert sample.areas is None
    expected = np.zeros((2, 10, 20), bool)
    expected[0, 2:7, 2:10] = True
    expected[1, :, 10:] = True
    np.testing.assert_array_equal(sample.masks, expected)


def test_images_without_a_label_file_or_with_an_empty_one_have_no_objects(root):
    (root / "labels" / "train" / "b.txt").touch()
    for sample in (opened(root, "train")[1], opened(root, "val")[0]):
        assert sample.masks.shape == (0, 10, 20)
        assert sample.labels.dtype == torch.int64
        assert len(sample.labels) == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0 0 1 0 1 1", "class 2, but the classes are 0 to 1"),
        ("-1 0 0 1 0 1 1", "class -1"),
        ("0.5 0 0 1 0 1 1", "class 0.5"),
        ("cat 0 0 1 0 1 1", "not numbers"),
        ("0 0 0 1 x 1 1", "not numbers"),
        ("0 0.5 0.5 1 1", "a box"),
        ("0 0 0 1 0 1 1 0.5", "7 coordinates"),
        ("0 0 0", "2 coordinates"),
        ("0", "0 coordinates"),
        ("0 0 0 20 0 20 10", "must be fractions"),
        ("0 0 0 nan 0 1 1", "must be fractions"),
        ("0 -0.5 0 1 0 1 1", "must be fractions"),
    ],
)
def test_a_bad_line_is_named(root, line, reason):
    file = root / "labels" / "train" / "a.txt"
    file.write_text(f"0 0 0 1 0 1 1\n{line}\n")
    with pytest.raises(DataError, match=f"a.txt, line 2: .*{reason}"):
        opened(root, "train")[0]


def test_rounding_beyond_the_image_is_cut_off(tmp_path):
    (tmp_path / "a.txt").write_text("0.0 -0.005 0 1.005 0 1 1\n")
    ((line, label, points),) = read_polygons(tmp_path / "a.txt", 1)
    assert (line, label) == (1, 0)
    assert points.tolist() == [[0, 0], [1, 0], [1, 1]]


def test_label_files_without_images_are_refused_or_left_out(root):
    (root / "labels" / "train" / "z.txt").write_text("0 0 0 1 0 1 1\n")
    with pytest.raises(DataError, match="z.txt has no image"):
        opened(root, "train")
    dataset = opened(root, "train", skip_bad=True)
    assert len(dataset) == 2
    assert len(dataset.skipped) == 1


def test_images_may_be_listed_in_a_file(root):
    (root / "train.txt").write_text("./images/train/b.png\n./images/val/c.png\n")
    (root / "data.yaml").write_text("train: [train.txt]\nval: images/val\nnames: [cat, dog]\n")
    dataset = opened(root, "train")
    assert [dataset.name(i) for i in range(2)] == ["images/train/b.png", "images/val/c.png"]
    (root / "train.txt").write_text("./images/train/b.png\n./images/train/q.png\n")
    with pytest.raises(DataError, match="train lists .*q.png, but there is no such file"):
        opened(root, "train")
    assert len(opened(root, "train", skip_bad=True)) == 1


def test_files_that_are_no_text_are_named(root):
    for name in ("labels/train/a.txt", "train.txt", "data.yaml"):
        file = root / name
        file.write_bytes(b"\xff\xfe\xfa")
        with pytest.raises(DataError, match=file.name):
            if name == "train.txt":
                (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
            opened(root, "train")[0]


def test_paths_of_another_machine_and_of_roboflow_are_found(tmp_path):
    write_picture(tmp_path / "train" / "images" / "a.jpg", 10, 20)
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("0 0 0 1 0 1 1\n")
    (tmp_path / "data.yaml").write_text(
        "path: /nowhere/at/all\ntrain: ../train/images\nnames: ['cat']\n"
    )
    dataset = opened(tmp_path, "train")
    assert len(dataset[0].labels) == 1


def test_files_of_windows_are_read(root):
    (root / "list.txt").write_bytes(b"\xef\xbb\xbfimages\\train\\a.png\r\n")
    (root / "data.yaml").write_bytes(
        b"\xef\xbb\xbfnames: [cat, dog]\r\npath: .\\\r\ntrain: images\\train\r\nval: list.txt\r\n"
    )
    labels = root / "labels" / "train" / "a.txt"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes().replace(b"\n", b"\r\n"))
    assert list(find_splits(root)) == ["train", "val"]
    for split, images in (("train", 2), ("val", 1)):
        dataset = opened(root, split)
        assert len(dataset) == images
        assert dataset[0].labels.tolist() == [1, 0]


def test_hidden_files_are_no_images_and_links_to_folders_are_followed(root):
    (root / "images" / "train" / "._a.png").write_bytes(b"of macOS")
    (root / "images" / "train" / "more").symlink_to(root / "images" / "val")
    dataset = opened(root, "train")
    names = [dataset.name(i).removeprefix("images/train/") for i in range(len(dataset))]
    assert names == ["a.png", "b.png", "more/c.png"]


def test_splits_come_from_the_yaml_file(root):
    assert list(find_splits(root)) == list(find_splits(root / "data.yaml")) == ["train", "val"]
    (root / "data.yaml").write_text("learning_rate: 3\n")
    assert find_splits(root) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: images/train\nnames: [a, a]\n", "name 'a' twice"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "numbered 0 to 1"),
        ("train: images/train\nnames:\n", "must list the names"),
        ("train: images/nowhere\nnames: [a]\n", "there is no .*nowhere"),
        ("train: labels/train\nnames: [a]\n", "no images in train"),
        ("train: [images/train\nnames: [a]\n", "not valid YAML"),
        ("- train\n", "is no mapping"),
    ],
)
def test_a_bad_yaml_file_is_named(root, text, reason):
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=f"data.yaml.*{reason}"):
        opened(root, "train")
