import dataclasses
import json

import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.data.inspection.findings import Spread
from mask2former.data.inspection.inspect_dataset import inspect_dataset
from mask2former.data.scene_dataset import SceneDataset
from tests.data.memory import CountingScenes, MemoryDataset, flawed_dataset, sample


def test_segments_of_index_maps_are_counted():
    found = inspect_dataset(flawed_dataset())
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
    found = inspect_dataset(MemoryDataset([overlapping], "instance"))
    assert found.unlabelled_pixels == 1
    assert [count.pixels for count in found.classes] == [2, 1, 0]
    assert [count.images for count in found.classes] == [1, 1, 0]
    assert found.empty_masks == ["a.png: cat"]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_scenes_are_counted_as_their_masks_say(task):
    dataset = SceneDataset(range(8), 48, task)
    found = inspect_dataset(dataset)
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
    assert inspect_dataset(flawed_dataset(), workers=1) == inspect_dataset(flawed_dataset())


def test_records_left_out_while_opening_are_errors_too():
    dataset = MemoryDataset(["b.png is gone."], skipped=["annotation 7 has no segmentation."])
    found = inspect_dataset(dataset)
    assert found.errors == ["annotation 7 has no segmentation.", "b.png is gone."]
    assert found.images == 0 and found.heights is None and found.areas is None


def test_other_exceptions_are_not_swallowed():
    class Broken(MemoryDataset):
        def __getitem__(self, index):
            raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake"):
        inspect_dataset(Broken(["a"]))


def test_areas_that_the_annotation_file_has_otherwise():
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, :32], masks[2, :8, :8], masks[3, :40] = True, True, True, True
    one = sample(masks.tolist(), [0, 1, 0, 2])
    areas = torch.tensor([2048 * 0.55, 2048 * 0.45, 1, 2560 * 2.1], dtype=torch.float64)
    found = inspect_dataset(MemoryDataset([dataclasses.replace(one, areas=areas)], "instance"))
    assert found.wrong_areas == ["a.png: dog", "a.png: sky"]
    assert inspect_dataset(MemoryDataset([one], "instance")).wrong_areas == []


def test_images_without_segments_are_counted_in_both_forms():
    empty = torch.zeros(0, 3, 5, dtype=torch.bool)
    one = dataclasses.replace(sample([[VOID] * 5] * 3, []), masks=empty)
    for dataset in (MemoryDataset([one], "instance"), MemoryDataset([sample([[-1] * 15], [])])):
        found = inspect_dataset(dataset)
        assert found.unlabelled_images == ["a.png"]
        assert found.unlabelled_pixels == found.pixels == 15


def test_names_and_category_numbers():
    images = [sample([[0]], [0], name) for name in ("a", "b", "a")] + [sample([[-1]], [], "c")]
    found = inspect_dataset(MemoryDataset(images, classes={1: "cat", 2: "dog", 5: "sky", 7: "sea"}))
    assert found.duplicate_names == ["a"]
    assert found.category_gaps == [(3, 4), (6, 6)]
    assert found.unlabelled_images == ["c"]


def test_the_json_has_everything():
    found = inspect_dataset(flawed_dataset())
    content = json.loads(json.dumps(dataclasses.asdict(found)))
    assert content["classes"][1]["name"] == "dog" and content["classes"][1]["segments"] == 2
    assert content["areas"] == {"min": 1, "median": 2.5, "max": 6}
    assert content["errors"] == found.errors and content["warnings"] == found.warnings
    assert content["unlabelled_pixels"] == 2


def test_warnings_from_opening_the_data_set_come_first():
    found = inspect_dataset(flawed_dataset(), notes=["255 is taken as class 1."])
    assert found.warnings[0] == "255 is taken as class 1." and len(found.warnings) == 2


def test_one_sample_at_a_time_is_in_memory():
    dataset = CountingScenes(range(12), 32)
    inspect_dataset(dataset)
    assert 1 <= dataset.most_alive <= 2  # the next is read before the last is forgotten
