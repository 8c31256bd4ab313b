import numpy as np
import pytest

from mask2former.data.dataset import VOID
from mask2former.evaluation.truth import semantic_truth, true_instances
from mask2former.losses.annotations import IGNORED
from tests.data import memory

INDEX_MAP = [[0, 0, VOID, 2], [0, 3, IGNORED, 2]]  # segment 1 has no pixel


@pytest.fixture
def sample():
    return memory.sample(INDEX_MAP, [5, 4, 5, 1], crowd=[False, False, True, False])


def test_pixels_have_the_label_of_their_segment(sample):
    assert semantic_truth(sample).tolist() == [[5, 5, VOID, 5], [5, 1, VOID, 5]]


def test_an_image_without_segments_is_void():
    sample = memory.sample([[VOID, VOID]], [])
    assert semantic_truth(sample).tolist() == [[VOID, VOID]]
    assert true_instances(sample, {0}).masks == []


def test_instances_are_the_things_with_areas_of_the_file(sample):
    decode = pytest.importorskip("faster_coco_eval").mask.decode
    found = true_instances(sample, {4, 5})
    assert (found.labels, found.crowd, found.areas) == ([5, 4, 5], [False, False, True], None)
    masks = [decode(rle) for rle in found.masks]
    for segment, mask in zip((0, 1, 2), masks, strict=True):
        assert np.array_equal(mask, np.array(INDEX_MAP) == segment)
    sample = memory.sample(INDEX_MAP, [5, 4, 5, 1], areas=[3.5, 0, 2, 9])
    assert true_instances(sample, {1, 5}).areas == [3.5, 2.0, 9.0]
