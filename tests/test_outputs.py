import pytest
import torch

from mask2former import Mask2FormerForUniversalSegmentationOutput


def test_absent_fields_are_left_out_and_the_rest_is_in_order():
    output = Mask2FormerForUniversalSegmentationOutput(
        masks_queries_logits=torch.ones(1), class_queries_logits=torch.zeros(1)
    )
    assert list(output.keys()) == ["class_queries_logits", "masks_queries_logits"]
    assert output[1] is output.masks_queries_logits is output["masks_queries_logits"]
    assert output.to_tuple() == (output.class_queries_logits, output.masks_queries_logits)
    assert len(output[:1]) == 1
    with pytest.raises(KeyError):
        output["loss"]


def test_image_sizes_are_reached_by_name_only():
    output = Mask2FormerForUniversalSegmentationOutput(image_sizes=[(1, 2, 3, 4)])
    assert output.image_sizes == [(1, 2, 3, 4)]
    assert output.to_tuple() == ()
