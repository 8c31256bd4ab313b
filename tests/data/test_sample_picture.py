import numpy as np
import torch

from mask2former.data.dataset import VOID
from mask2former.data.sample_picture import named, panoptic_map, shrunk
from mask2former.losses.annotations import IGNORED
from tests.data.memory import sample

INDEX_MAP = [[0, 0, VOID, 2], [0, 3, IGNORED, 2]]  # segment 1 has no pixel


def test_segments_are_numbered_from_one_and_void_is_zero():
    ids, segments = panoptic_map(sample(INDEX_MAP, [5, 4, 5, 1], crowd=[False, False, True, False]))
    assert ids.tolist() == [[1, 1, 0, 3], [1, 4, 0, 3]]
    assert segments == [
        {"id": 1, "label_id": 5, "iscrowd": 0},
        {"id": 3, "label_id": 5, "iscrowd": 1},
        {"id": 4, "label_id": 1, "iscrowd": 0},
    ]


def test_an_image_without_segments_is_void():
    for masks in ([[VOID, VOID]], torch.zeros(0, 1, 2, dtype=torch.bool)):
        ids, segments = panoptic_map(sample(masks, []))
        assert ids.tolist() == [[0, 0]]
        assert segments == []


def test_large_pictures_are_shrunk_and_ids_stay_ids():
    ids = torch.tensor([3, 70000]).repeat_interleave(100).repeat(50, 1)
    one = sample(ids.tolist(), [])
    picture, small = shrunk(one.image, ids, 60)
    assert picture.size == (60, 15)
    assert np.array_equal(small, np.repeat([[3, 70000]], 30, axis=1).repeat(15, axis=0))
    picture, same = shrunk(one.image, ids, 200)
    assert picture.size == (200, 50)
    assert np.array_equal(same, ids)


def test_segments_are_named_and_crowds_say_so():
    segments = [{"id": 7, "label_id": 1, "iscrowd": 1}, {"id": 8, "label_id": 0, "score": 0.5}]
    assert named(segments, {0: "cat", 1: "dog"}) == [
        {"id": 7, "label_id": 1, "iscrowd": 1, "label": "dog (crowd)"},
        {"id": 8, "label_id": 0, "score": 0.5, "label": "cat"},
    ]
