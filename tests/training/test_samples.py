import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.dataset import VOID, Sample
from mask2former.data.synthetic import SceneDataset
from mask2former.training.samples import SamplePictures, truth_of
from mask2former.visualization import draw_segments, side_by_side


def sample(masks: torch.Tensor, labels: list[int]) -> Sample:
    image = torch.zeros(3, *masks.shape[-2:], dtype=torch.uint8)
    crowd = torch.zeros(len(labels), dtype=torch.bool)
    return Sample("x", image, masks, torch.tensor(labels), crowd)


def test_the_truth_of_a_label_map():
    ids, segments = truth_of(sample(torch.tensor([[0, 1], [VOID, 0]], dtype=torch.int32), [7, 3]))
    assert ids.tolist() == [[1, 2], [0, 1]]
    assert segments == [{"id": 1, "label_id": 7}, {"id": 2, "label_id": 3}]


def test_of_overlapping_masks_the_smaller_lies_on_top():
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, :, :2] = True  # the third is empty
    ids, segments = truth_of(sample(masks, [4, 5, 6]))
    assert ids.tolist() == [[1, 2, 0], [2, 2, 0]]
    assert [segment["label_id"] for segment in segments] == [4, 5, 6]


@pytest.mark.parametrize(("count", "places"), [(3, [0, 2, 4]), (1, [0]), (9, [0, 1, 2, 3, 4])])
def test_samples_are_spread_over_the_data_set(count, places):
    assert SamplePictures(SceneDataset(range(5), 64), None, count).places == places


def test_an_empty_data_set_has_no_pictures():
    assert SamplePictures(SceneDataset(range(0), 64), None)(None) == {}


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_truth_lies_beside_the_prediction(task):
    dataset = SceneDataset(range(10, 12), 64, task)
    found = np.zeros((64, 64), dtype=np.int32)
    found[:32] = 1
    segments = [{"id": 1, "label_id": 2, "score": 0.5}]
    asked = []

    def segment(model, image):
        asked.append(np.asarray(image))
        return found, segments

    pictures = SamplePictures(dataset, segment)("model")
    assert list(pictures) == ["scene 10", "scene 11"]
    for name, pixels, scene in zip(pictures, asked, dataset, strict=True):
        assert np.array_equal(pixels, scene.image.permute(1, 2, 0))
        image = Image.fromarray(pixels)
        truth = draw_segments(image, *truth_of(scene), dataset.id2label)
        prediction = draw_segments(image, found, segments, dataset.id2label)
        panels = [(f"truth: {name}", truth), ("prediction", prediction)]
        assert pictures[name].tobytes() == side_by_side(panels).tobytes()
