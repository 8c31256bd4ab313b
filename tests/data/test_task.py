import pytest
import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset
from mask2former.data.scene_dataset import SceneDataset
from mask2former.data.task import as_task


class Given(SegmentationDataset):
    """One sample, with classes 0 to 3 of which 1 and 3 are things."""

    def __init__(self, task, masks, labels, crowd, areas=None):
        self.task = task
        self.id2label = {0: "sky", 1: "cat", 2: "road", 3: "dog"}
        self.category_ids = [5, 6, 8, 9]
        self.thing_label_ids = {"panoptic": [1, 3], "instance": [0, 1, 2, 3], "semantic": []}[task]
        self.skipped = ["one"]
        image = torch.zeros(3, *masks.shape[-2:], dtype=torch.uint8)
        self.sample = Sample(
            "a", image, masks, torch.tensor(labels), torch.tensor(crowd, dtype=torch.bool), areas
        )

    def __len__(self):
        return 1

    def name(self, index):
        return "a"

    def __getitem__(self, index):
        return self.sample


@pytest.fixture
def panoptic():
    masks = torch.tensor([[0, 1, VOID], [2, 3, 4]], dtype=torch.int32)
    areas = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    return Given("panoptic", masks, [3, 0, 3, 1, 3], [0, 0, 0, 0, 1], areas)


def test_panoptic_as_semantic_joins_classes_and_keeps_void(panoptic):
    view = as_task(panoptic, "semantic")
    assert view.task == "semantic"
    assert (view.id2label, view.category_ids) == (panoptic.id2label, [5, 6, 8, 9])
    assert view.thing_label_ids == []
    assert (len(view), view.name(0), view.skipped) == (1, "a", ["one"])
    sample = view[0]
    assert sample.labels.tolist() == [0, 1, 3]
    assert sample.masks.tolist() == [[2, 0, VOID], [2, 1, 2]]
    assert sample.masks.dtype == torch.int32
    assert sample.crowd.tolist() == [False] * 3
    assert sample.areas is None


def test_panoptic_as_instance_drops_stuff_and_renumbers(panoptic):
    view = as_task(panoptic, "instance")
    assert view.id2label == {0: "cat", 1: "dog"}
    assert view.category_ids == [6, 9]
    assert view.thing_label_ids == [0, 1]
    sample = view[0]
    assert sample.labels.tolist() == [1, 1, 0, 1]
    assert sample.crowd.tolist() == [False, False, False, True]
    assert sample.areas.tolist() == [1, 3, 4, 5]
    pixels = [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert sample.masks.dtype == torch.bool
    assert sample.masks.nonzero().tolist() == [[i, *pixel] for i, pixel in enumerate(pixels)]


def test_an_image_without_things_has_no_instances():
    dataset = Given("panoptic", torch.zeros(2, 3, dtype=torch.int32), [2], [0])
    sample = as_task(dataset, "instance")[0]
    assert sample.masks.shape == (0, 2, 3)
    assert sample.labels.dtype == torch.int64


def test_instance_as_semantic_has_small_objects_on_top_and_crowds_below():
    masks = torch.zeros(3, 2, 4, dtype=torch.bool)
    masks[0, :, :3] = True  # a cat
    masks[1, 0, :2] = True  # a dog before it
    masks[2, 0, 0] = masks[2, 0, 3] = True  # a crowd of sky
    view = as_task(Given("instance", masks, [1, 3, 0], [0, 0, 1]), "semantic")
    sample = view[0]
    assert view.thing_label_ids == []
    assert sample.labels.tolist() == [0, 1, 3]
    assert sample.masks.tolist() == [[2, 2, 1, 0], [1, 1, 1, VOID]]
    assert not sample.crowd.any()


def test_no_objects_are_void():
    empty = Given("instance", torch.zeros(0, 2, 3, dtype=torch.bool), [], [])
    sample = as_task(empty, "semantic")[0]
    assert (sample.masks == VOID).all()


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_scenes_are_converted_to_what_they_are_rendered_as(task):
    view = as_task(SceneDataset([3, 5], 48), task)
    rendered = SceneDataset([3, 5], 48, task)
    assert list(view.id2label.values()) == list(rendered.id2label.values())
    for ours, theirs in zip(view, rendered, strict=True):
        assert torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.labels, theirs.labels)


def test_the_same_task_is_the_same_data_set(panoptic):
    assert as_task(panoptic, "panoptic") is panoptic


@pytest.mark.parametrize(
    ("task", "wanted", "reason"),
    [
        ("semantic", "instance", "objects are not told apart"),
        ("semantic", "panoptic", "objects are not told apart"),
        ("instance", "panoptic", "stuff is not annotated"),
    ],
)
def test_what_annotations_do_not_tell_is_refused(task, wanted, reason):
    dataset = Given(task, torch.zeros(1, 2, 3, dtype=torch.bool), [0], [0])
    with pytest.raises(ValueError, match=f"{task} annotations does not suit {wanted}: {reason}"):
        as_task(dataset, wanted)


def test_without_things_there_are_no_instances(panoptic):
    panoptic.thing_label_ids = []
    with pytest.raises(ValueError, match="has no things"):
        as_task(panoptic, "instance")
