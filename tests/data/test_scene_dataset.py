import pytest
import torch

from mask2former.data.dataset import VOID
from mask2former.data.scene_dataset import SceneDataset
from mask2former.scenes.scene import ID2LABEL, THING_LABEL_IDS, render_scene

SEEDS = [3, 5, 11]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_segments_come_from_the_scene(task):
    dataset = SceneDataset(SEEDS, 64, task)
    assert len(dataset) == 3
    for index, seed in enumerate(SEEDS):
        sample, scene = dataset[index], render_scene(seed, 64, 64)
        assert sample.name == dataset.name(index) == f"scene {seed}"
        assert sample.image.shape == (3, *sample.size) == (3, 64, 64)
        classes = torch.zeros(len(scene.segments_info) + 1, dtype=torch.int64)
        for segment in scene.segments_info:
            classes[segment["id"]] = segment["label_id"]
        truth = classes[torch.from_numpy(scene.segmentation).long()]
        masks = sample.masks_of(torch.arange(len(sample.labels)))
        for label in ID2LABEL:
            union = masks[sample.labels == label].any(0)
            left_out = task == "instance" and label not in THING_LABEL_IDS
            assert torch.equal(union, torch.zeros_like(union) if left_out else truth == label)


def test_only_instances_may_overlap():
    assert SceneDataset(SEEDS, 64, "instance")[0].masks.dtype == torch.bool
    for task in ("panoptic", "semantic"):
        masks = SceneDataset(SEEDS, 64, task)[0].masks
        assert masks.dtype == torch.int32
        assert masks.min() > VOID


def test_a_semantic_scene_has_each_class_once():
    labels = SceneDataset(SEEDS, 64, "semantic")[0].labels
    assert len(labels.unique()) == len(labels)


def test_segments_without_pixels_have_empty_masks():
    sample = SceneDataset(SEEDS, 64)[0]
    assert not sample.masks_of(torch.tensor([len(sample.labels)])).any()
