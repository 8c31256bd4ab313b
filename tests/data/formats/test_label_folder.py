import numpy as np
import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.data.formats.label_folder import find_splits
from mask2former.io.errors import DataError
from tests.data.files import write_map, write_picture

NUMBERS = np.array([[0, 0, 2], [2, 255, 1]])


def write_pair(root, images="images", labels="annotations", name="a", end="", numbers=NUMBERS):
    write_picture(root / images / f"{name}.jpg", *np.shape(numbers))
    write_map(root / labels / f"{name}{end}.png", numbers)


def opened(root, split="all", reduce_labels=False, skip_bad=False):
    return find_splits(root)[split](reduce_labels=reduce_labels, skip_bad=skip_bad)


def test_a_sample_has_a_segment_for_each_class(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    dataset = opened(tmp_path)
    assert dataset.task == "semantic"
    assert dataset.id2label == {0: "sky", 1: "road", 2: "car", 3: "tree"}
    assert dataset.category_ids == [0, 1, 2, 3]
    assert dataset.thing_label_ids == []
    assert [dataset.name(i) for i in range(len(dataset))] == ["a.jpg"]
    sample = dataset[0]
    assert sample.masks.dtype == torch.int32
    assert sample.masks.tolist() == [[0, 0, 2], [2, VOID, 1]]
    assert sample.labels.tolist() == [0, 1, 2]
    assert not sample.crowd.any()
    assert sample.areas is None


def test_reduced_labels_are_as_in_ade20k(tmp_path):
    write_pair(tmp_path)
    dataset = opened(tmp_path, reduce_labels=True)
    assert dataset.id2label == {0: "1", 1: "2"}
    assert dataset.category_ids == [1, 2]
    sample = dataset[0]
    assert sample.labels.tolist() == [0, 1]
    assert sample.masks.tolist() == [[VOID, VOID, 1], [1, VOID, 0]]


def test_masks_of_0_and_255_have_a_foreground_in_every_split(tmp_path):
    write_pair(tmp_path, "train/images", "train/masks", numbers=[[0, 255, 255]])
    write_pair(tmp_path, "val/images", "val/masks", numbers=[[0, 0, 0]])
    for split, masks in (("train", [[0, 1, 1]]), ("val", [[0, 0, 0]])):
        with pytest.warns(UserWarning, match="255 is taken as class 1"):
            dataset = opened(tmp_path, split)
        assert dataset.id2label == {0: "background", 1: "foreground"}
        assert dataset[0].masks.tolist() == masks
    assert dataset.category_ids == [0, 255]


def test_splits_have_the_classes_of_all_splits(tmp_path):
    write_pair(tmp_path, "images/training", "annotations/training", numbers=[[0, 3]])
    write_pair(tmp_path, "images/validation", "annotations/validation", numbers=[[0, 6]])
    assert list(find_splits(tmp_path)) == ["training", "validation"]
    assert len(opened(tmp_path, "training").id2label) == 7
    assert len(opened(tmp_path, "validation").id2label) == 7


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images", "annotations", "all"),
        ("imgs", "labels", "all"),
        ("JPEGImages", "SegmentationClass", "all"),
        ("images/val", "masks/val", "val"),
        ("img_dir/val", "ann_dir/val", "val"),
        ("val/images", "val/masks", "val"),
    ],
)
def test_layouts_are_found(tmp_path, images, labels, split):
    write_pair(tmp_path, images, labels)
    assert list(find_splits(tmp_path)) == [split]
    assert len(opened(tmp_path, split)) == 1


def test_files_in_subfolders_and_with_ends_are_paired(tmp_path):
    write_pair(tmp_path, name="a", labels="masks")
    write_pair(tmp_path, name="x/a", labels="masks")
    write_pair(tmp_path, name="x/y/a", labels="masks", end="_mask", numbers=[[0, 1]])
    write_picture(tmp_path / "images" / ".hidden.png")
    dataset = opened(tmp_path)  # images beside the subfolders: these are no splits
    assert [dataset.name(i) for i in range(len(dataset))] == ["a.jpg", "x/a.jpg", "x/y/a.jpg"]
    assert [dataset[i].size for i in range(3)] == [(2, 3), (2, 3), (1, 2)]


def test_a_folder_of_text_labels_is_not_one_of_label_maps(tmp_path):
    write_picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").touch()
    assert find_splits(tmp_path) == {}


def test_splits_whose_files_are_behind_links_are_splits(tmp_path):
    write_pair(tmp_path, "images/val", "annotations/val")
    for folder in ("images", "annotations"):
        (tmp_path / folder / "train").mkdir()
        (tmp_path / folder / "train" / "site1").symlink_to(tmp_path / folder / "val")
    assert list(find_splits(tmp_path)) == ["train", "val"]
    assert opened(tmp_path, "train").name(0) == "site1/a.jpg"


def test_label_maps_are_found_beside_labels_of_another_kind(tmp_path):
    write_pair(tmp_path, labels="masks")
    for folder in ("annotations", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").touch()
    assert len(opened(tmp_path)) == 1


def test_an_image_may_be_named_like_the_map_of_another(tmp_path):
    write_pair(tmp_path)
    write_pair(tmp_path, name="a_label", numbers=[[0, 1]])
    dataset = opened(tmp_path)
    assert [dataset[i].size for i in range(2)] == [(2, 3), (1, 2)]


def test_files_without_a_partner_are_refused_or_left_out(tmp_path):
    write_pair(tmp_path)
    write_picture(tmp_path / "images" / "b.png")
    with pytest.raises(DataError, match=r"b.png must have one label map b.png .* none"):
        opened(tmp_path)
    write_map(tmp_path / "annotations" / "c.png", NUMBERS)
    dataset = opened(tmp_path, skip_bad=True)
    assert len(dataset) == 1
    assert "b.png must have" in dataset.skipped[0]
    assert "c.png has no image" in dataset.skipped[1]
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="c.png has no image"):
        opened(tmp_path)


def test_ambiguous_partners_are_refused(tmp_path):
    write_pair(tmp_path)
    write_map(tmp_path / "annotations" / "a_mask.png", NUMBERS)
    with pytest.raises(DataError, match="more than one: a.png, a_mask.png"):
        opened(tmp_path)
    (tmp_path / "annotations" / "a_mask.png").unlink()
    write_picture(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="a.jpg and a.png, which would share a label map"):
        opened(tmp_path)


def test_bad_maps_are_named_when_they_are_read(tmp_path):
    (tmp_path / "classes.txt").parent.mkdir(exist_ok=True)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    write_pair(tmp_path)
    dataset = opened(tmp_path)
    write_map(tmp_path / "annotations" / "a.png", [[0, 7, 0], [0, 0, 0]])
    with pytest.raises(DataError, match="a.png has the number 7"):
        dataset[0]
    write_map(tmp_path / "annotations" / "a.png", [[0, 1]])
    with pytest.raises(DataError, match="a.png is 1x2 .* its image is 2x3"):
        dataset[0]
    write_picture(tmp_path / "annotations" / "a.png", 2, 3)
    with pytest.raises(DataError, match="a.png is an image of mode RGB"):
        dataset[0]
