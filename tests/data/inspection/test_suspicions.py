"""Every suspicion is raised by the fault that it names, and by nothing in sound data."""

import dataclasses

import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.data.inspection.inspect_dataset import inspect_dataset
from mask2former.data.scene_dataset import SceneDataset
from tests.data.memory import MemoryDataset, sample


def warnings_of(*samples, **settings) -> list[str]:
    return inspect_dataset(MemoryDataset(list(samples), **settings)).warnings


def semantic(*samples, **settings) -> list[str]:
    return warnings_of(*samples, task="semantic", **settings)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_rendered_scenes_are_not_suspicious(task):
    assert inspect_dataset(SceneDataset(range(20), 64, task)).warnings == []


def test_numbers_with_gaps_are_not_suspicious():
    assert warnings_of(sample([[0, 1]], [0, 1]), classes={1: "cat", 90: "dog"}) == []


def test_a_first_class_that_never_occurs_is_an_off_by_one():
    for task in ("panoptic", "semantic"):
        (warning,) = warnings_of(sample([[0, 1]], [1, 2]), task=task)
        assert warning.startswith("The first class, 'cat' (number 0), never occurs")
        assert ("--reduce-labels" in warning) is (task == "semantic")


def test_a_background_that_never_occurs_is_a_class_too_many():
    masks = torch.eye(4, dtype=torch.bool)[:2, None].tolist()
    classes = {0: "_background_", 1: "cat", 2: "dog"}
    (warning,) = warnings_of(sample(masks, [1, 2]), task="instance", classes=classes)
    assert warning.startswith("1 class (_background_) is never seen; remove")


def test_a_first_class_that_never_occurs_in_label_maps_is_named_beside_others():
    classes = {i: f"class {i}" for i in range(7)}
    first, others = semantic(sample([[0, 1]], [2, 6]), classes=classes)
    assert first.startswith("The first class, 'class 0'")
    assert "4 classes (class 1, class 3, class 4, ...) are never seen" in others


def test_a_last_class_that_never_occurs_is_an_off_by_one():
    (warning,) = semantic(sample([[0, 1]], [0, 1]))
    assert "but the last, 'sky'" in warning and "too low" in warning


def test_classes_never_seen_are_named():
    classes = {i: f"class {i}" for i in range(7)}
    (warning,) = warnings_of(sample([[0, 1]], [0, 1]), classes=classes)
    assert "5 classes (class 2, class 3, class 4, ...) are never seen" in warning


def test_nothing_annotated_at_all():
    first, second = warnings_of(sample([[VOID, VOID]], [], "b.png"))
    assert "1 image (b.png) is without any segment" in first
    assert "No class ever occurs" in second


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "void"])
def test_a_class_that_means_nothing(name):
    classes = {0: name, 1: "cat", 2: "dog"}
    for task, remedy in (("panoptic", "leave it out."), ("semantic", "make it void (--reduce")):
        (warning,) = warnings_of(sample([[0, 1, 2]], [0, 1, 2]), task=task, classes=classes)
        assert repr(name) in warning and remedy in warning


def test_a_background_that_is_one_of_two_classes_of_label_maps_is_sound():
    assert semantic(sample([[0, 1]], [0, 1]), classes={0: "background", 255: "cat"}) == []


def test_things_that_are_crowds_mostly():
    masks = torch.eye(4, dtype=torch.bool)[:, None].tolist()
    for crowds, warnings in ((2, 0), (3, 1)):
        crowd = [index < crowds for index in range(4)]
        one = sample(masks, [0] * 4, crowd=crowd)
        found = warnings_of(one, task="instance", classes={1: "cat"}, things={"cat"})
        assert len(found) == warnings
    assert "3 of the 4 things are crowds" in found[0] and "iscrowd of 0" in found[0]


def test_binary_masks_of_0_and_255():
    (warning,) = semantic(sample([[0, 0, VOID]], [0]), classes={0: "paper"})
    assert "'paper'" in warning and "0 and 255" in warning


def test_mostly_void():
    (warning,) = semantic(sample([[0, 1, 2, *[VOID] * 5]], [0, 1, 2]))
    assert warning.startswith("62% of all pixels are void")


def test_pixels_outside_of_instances_are_not_void():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, 0, 0] = True
    assert warnings_of(sample(masks.tolist(), [0, 1, 2]), task="instance") == []


def test_one_class_everywhere():
    row = [0] * 198 + [1, 2]
    (warning,) = semantic(sample([row], [0, 1, 2]))
    assert warning.startswith("'cat' (number 0) fills 99%")


def test_things_that_cover_their_whole_image():
    images = [sample([[[True, True]]], [0]), sample([[[True, False]]], [0], "b.png")]
    (warning,) = warnings_of(*images, task="instance", classes={3: "cat"}, things={"cat"})
    assert "1 of the 2 segments of 'cat' (number 3) cover their whole image" in warning


def test_stuff_may_cover_a_whole_image():
    images = [sample([[0, 0]], [label], f"{label}.png") for label in range(3)]
    assert warnings_of(*images) == []


def test_images_listed_twice_and_masks_without_pixels():
    twice = [sample([[0, 1, 2]], [0, 1, 2]), sample([[0, 1, 2]], [0, 1, 2, 2])]
    first, second = warnings_of(*twice)
    assert "1 image (a.png) is listed more than once" in first
    assert "1 segment (a.png: sky) is without a pixel" in second


def test_areas_that_the_annotation_file_has_otherwise():
    masks = torch.ones(3, 40, 40, dtype=torch.bool)
    areas = torch.tensor([1600, 1600, 400], dtype=torch.float64)
    one = dataclasses.replace(sample(masks.tolist(), [0, 1, 2]), areas=areas)
    (warning,) = warnings_of(one, task="instance")
    assert "1 segment (a.png: sky) is not half" in warning and "images of this size" in warning


def test_every_warning_is_one_sentence():
    images = [sample([[VOID] * 9 + [0]], [0, 0], "a"), sample([[VOID]], [], "a")]
    classes = {0: "background", 1: "cat", 2: "dog"}
    found = warnings_of(*images, classes=classes, task="semantic")
    assert len(found) == 6
    for warning in found:
        assert warning.endswith(".") and ". " not in warning.replace("...", "")
