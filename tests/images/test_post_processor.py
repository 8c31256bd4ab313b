import inspect

import pytest
import torch

from mask2former.images.processor import Mask2FormerImageProcessor
from tests.samples import made_outputs, random_outputs


@pytest.mark.parametrize(
    ("things", "argument", "fused"), [([1], None, {0, 2}), (None, None, set()), ([1], {1}, {1})]
)
def test_row_11_stuff_is_fused_unless_told_otherwise(things, argument, fused):
    outputs = random_outputs(5, queries=20, labels=3)
    result = Mask2FormerImageProcessor(thing_label_ids=things).post_process_panoptic_segmentation(
        outputs, overlap_mask_area_threshold=0, label_ids_to_fuse=argument
    )[0]["segments_info"]
    assert {s["label_id"] for s in result if s["was_fused"]} == fused
    labels = [s["label_id"] for s in result]
    assert {label for label in labels if labels.count(label) > 1} == {0, 1, 2} - fused


@pytest.mark.parametrize("things", [None, [0], [1, 2], []])
def test_row_11_only_things_are_instances_when_they_are_known(things):
    outputs = random_outputs(5, queries=20, labels=3)
    processor = Mask2FormerImageProcessor(thing_label_ids=things)
    for form in ({}, {"return_binary_maps": True}, {"return_coco_annotation": True}):
        result = processor.post_process_instance_segmentation(
            outputs, 0.3, overlap_mask_area_threshold=0, **form
        )[0]
        found = {s["label_id"] for s in result["segments_info"]}
        assert found == ({0, 1, 2} if things is None else set(things))


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_row_12_thresholds_default_to_the_documentation(task):
    method = getattr(Mask2FormerImageProcessor, f"post_process_{task}_segmentation")
    parameters = inspect.signature(method).parameters
    assert parameters["threshold"].default == 0.5
    assert parameters["mask_threshold"].default == 0.5
    assert parameters["overlap_mask_area_threshold"].default == 0.8


def test_documented_instance_ids_count_from_0_and_void_is_minus_1():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.01, 0.01]), (1, 0.8, [0.01, 0.01, 0.9, 0.01]))
    processor = Mask2FormerImageProcessor()
    result = processor.post_process_instance_segmentation(outputs)[0]
    assert result["segmentation"].tolist() == [[0, 0, 1, -1]]
    for form in ({}, {"return_binary_maps": True}, {"return_coco_annotation": True}):
        result = processor.post_process_instance_segmentation(outputs, **form)[0]
        assert [segment["id"] for segment in result["segments_info"]] == [0, 1]
    assert len(result["segmentation"]) == 2


def test_without_instances_the_documented_map_is_void():
    result = Mask2FormerImageProcessor().post_process_instance_segmentation(
        made_outputs((0, 0.9, [0.9] * 4)), threshold=0.95
    )[0]
    assert result["segmentation"].dtype == torch.int32
    assert result == {"segmentation": result["segmentation"], "segments_info": []}
    assert result["segmentation"].tolist() == [[-1] * 4]
