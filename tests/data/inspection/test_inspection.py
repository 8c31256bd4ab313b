import dataclasses
import json

import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.data.inspection.inspection import Spread, inspect, report
from mask2former.data.scene_dataset import SceneDataset
from tests.data.memory import CountingScenes, MemoryDataset, sample

THINGS = {"cat", "dog"}


def label_maps() -> MemoryDataset:
    first = sample([[0, 0, 1, VOID], [2, 2, 2, VOID]], [1, 0, 1], "first.png", [False, False, True])
    second = sample([[0, 0], [0, 0], [0, 0]], [2, 0], "second.png")  # the last has no pixel
    return MemoryDataset([first, "third.png is truncated.", second], things=THINGS)


def test_label_maps_are_counted():
    found = inspect(label_maps())
    assert (found.task, found.images, found.pixels, found.segments) == ("panoptic", 2, 14, 5)
    assert found.unlabelled_pixels == 2
    assert found.errors == ["third.png is truncated."]
    assert found.empty_masks == ["second.png: cat"]
    cat, dog, sky = found.classes
    assert (cat.images, cat.segments, cat.pixels, cat.crowds, cat.full) == (2, 2, 1, 0, 0)
    assert (dog.images, dog.segments, dog.pixels, dog.crowds, dog.full) == (1, 2, 5, 1, 0)
    assert (sky.images, sky.segments, sky.pixels, sky.crowds, sky.full) == (1, 1, 6, 0, 1)
    assert [count.is_thing for count in found.classes] == [True, True, False]
    assert (found.heights, found.widths) == (Spread(2, 2.5, 3), Spread(2, 3, 4))
    assert found.areas == Spread(1, 2.5, 6)  # 1, 2, 3, 6: the one without a pixel is left out


def test_overlapping_masks_are_counted_each():
    on, off = True, False
    overlapping = sample([[[on, on, off]], [[off, on, off]], [[off, off, off]]], [0, 1, 0])
    found = inspect(MemoryDataset([overlapping], "instance"))
    assert found.unlabelled_pixels == 1
    assert [count.pixels for count in found.classes] == [2, 1, 0]
    assert [count.images for count in found.classes] == [1, 1, 0]
    assert found.empty_masks == ["a.png: cat"]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_scenes_are_counted_as_their_masks_say(task):
    dataset = SceneDataset(range(8), 48, task)
    found = inspect(dataset)
    areas, labels, unlabelled = [], [], 0
    for one in dataset:
        masks = one.masks_of(torch.arange(len(one.labels)))
        areas.extend(int(mask.sum()) for mask in masks)
        labels.extend(one.labels.tolist())
        unlabelled += int((masks.sum(0) == 0).sum())
    for label, count in enumerate(found.classes):
        own = [area for area, other in zip(areas, labels, strict=True) if other == label]
        assert (count.segments, count.pixels) == (len(own), sum(own))
    assert found.unlabelled_pixels == unlabelled
    assert found.small_segments == sum(area < 1024 for area in areas)


def test_worker_processes_find_the_same():
    assert inspect(label_maps(), workers=1) == inspect(label_maps())


def test_records_left_out_while_opening_are_errors_too():
    dataset = MemoryDataset(["b.png is gone."], skipped=["annotation 7 has no segmentation."])
    found = inspect(dataset)
    assert found.errors == ["annotation 7 has no segmentation.", "b.png is gone."]
    assert found.images == 0 and found.heights is None and found.areas is None


def test_other_exceptions_are_not_swallowed():
    class Broken(MemoryDataset):
        def __getitem__(self, index):
            raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        inspect(Broken(["a"]))


def test_areas_that_the_annotation_file_has_otherwise():
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, :32], masks[2, :8, :8], masks[3, :40] = True, True, True, True
    one = sample(masks.tolist(), [0, 1, 0, 2])
    areas = torch.tensor([2048 * 0.55, 2048 * 0.45, 1, 2560 * 2.1], dtype=torch.float64)
    found = inspect(MemoryDataset([dataclasses.replace(one, areas=areas)], "instance"))
    assert found.wrong_areas == ["a.png: dog", "a.png: sky"]
    assert inspect(MemoryDataset([one], "instance")).wrong_areas == []


def test_images_without_segments_are_counted_in_both_forms():
    empty = torch.zeros(0, 3, 5, dtype=torch.bool)
    one = dataclasses.replace(sample([[VOID] * 5] * 3, []), masks=empty)
    for dataset in (MemoryDataset([one], "instance"), MemoryDataset([sample([[-1] * 15], [])])):
        found = inspect(dataset)
        assert found.unlabelled_images == ["a.png"]
        assert found.unlabelled_pixels == found.pixels == 15


def test_names_and_category_numbers():
    images = [sample([[0]], [0], name) for name in ("a", "b", "a")] + [sample([[-1]], [], "c")]
    found = inspect(MemoryDataset(images, classes={1: "cat", 2: "dog", 5: "sky", 7: "sea"}))
    assert found.duplicate_names == ["a"]
    assert found.category_gaps == [(3, 4), (6, 6)]
    assert "4, numbered 1 to 7 without 3-4, 6\n" in report(found)
    assert found.unlabelled_images == ["c"]


def test_the_report_is_a_table_a_summary_errors_and_warnings():
    text = report(inspect(label_maps()))
    assert (
        text
        == """\
errors:
third.png is truncated.

label     id  class  kind     images  segments  crowds   pixels
    0      0  cat    thing         2         2       0    7.14%
    1      1  dog    thing         1         2       1   35.71%
    2      2  sky    stuff         1         1       0   42.86%

task:          panoptic
images:        2
errors:        1 (listed first)
image size:    height 2 to 3 (median 2.5), width 2 to 4 (median 3)
classes:       3, numbered 0 to 2
segments:      5, area 1 to 6 pixels (median 2.5); 4 smaller than 32x32, 1 without a pixel
in no segment: 14.29% of all pixels

warnings:
1 segment (second.png: cat) is without a pixel; training leaves them out; remove or redraw them."""
    )


def many_classes(present: int) -> list[str]:
    """The table of 200 classes of which some are present, class i (i % 60 + 1) times."""
    classes = {3 * i: f"class {i}" for i in range(200)}
    images = [sample([[0]], [i]) for i in range(present) for _ in range(i % 60 + 1)]
    text = report(inspect(MemoryDataset(images, classes=classes)))
    assert "0 to 597 without 1-2, 4-5, 7-8, 10-11, 13-14, 16-17, ... (199 gaps)\n" in text
    return text.split("\n\n")[0].splitlines()[1:]


def test_a_report_of_many_classes_shows_the_most_and_the_least_frequent():
    lines = many_classes(150)
    counts = [int(line.split()[6]) for line in lines if "more" not in line]
    assert counts == sorted(counts, reverse=True)
    assert (len(counts), counts[0], counts[-1]) == (28, 60, 1)
    assert lines[20] == "  ... 172 more classes, 50 of them without a segment"


def test_a_report_of_many_classes_leaves_out_those_that_never_occur():
    lines = many_classes(3)
    assert [line.split()[0] for line in lines[:3]] == ["2", "1", "0"]
    assert lines[3:] == ["  ... 197 more classes, 197 of them without a segment"]
    lines = many_classes(25)
    assert [line.split()[6] for line in lines[:25]] == [str(k) for k in range(25, 0, -1)]
    assert lines[25:] == ["  ... 175 more classes, 175 of them without a segment"]


def test_a_data_set_without_images_has_a_report():
    assert "images:        0" in report(inspect(MemoryDataset([])))


def test_the_json_has_everything():
    found = inspect(label_maps())
    content = json.loads(json.dumps(found.as_json()))
    assert content["classes"][1]["name"] == "dog" and content["classes"][1]["segments"] == 2
    assert content["areas"] == {"min": 1, "median": 2.5, "max": 6}
    assert content["errors"] == found.errors and content["warnings"] == found.warnings
    assert content["unlabelled_pixels"] == 2


def test_what_was_said_when_the_data_set_was_opened_is_a_warning():
    found = inspect(label_maps(), notes=["255 is taken as class 1."])
    assert found.warnings[0] == "255 is taken as class 1." and len(found.warnings) == 2


def test_one_sample_at_a_time_is_in_memory():
    dataset = CountingScenes(range(12), 32)
    inspect(dataset)
    assert 1 <= dataset.most_alive <= 2  # the next is read before the last is forgotten
