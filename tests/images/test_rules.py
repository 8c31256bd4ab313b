import pytest
import torch

from mask2former.images.hf_compat import TransformersRules
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.rules import Rules
from tests.samples import made_outputs


def named(rules):
    return {name for name in vars(rules) if not name.startswith("_")}


def test_both_sides_have_the_same_methods():
    assert named(TransformersRules) == named(Rules)


def test_without_hf_compat_sizes_follow_the_papers_code():
    rules = Rules()
    assert rules.shortest_edge_size((480, 640), 800, 1333) == (800, 1067)
    assert rules.stretched_size((45, 61), 32) == (45, 61)
    assert rules.padded_size((45, 61), 32) == (64, 64)
    for asked in (False, True):
        assert rules.crops(asked) is rules.pads(asked) is asked


@pytest.mark.parametrize(("things", "expected"), [(None, set()), ([], {0, 1, 2}), ([1], {0, 2})])
def test_what_is_no_thing_is_fused_if_things_are_known(things, expected):
    assert Rules().labels_to_fuse(3, things) == expected


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
