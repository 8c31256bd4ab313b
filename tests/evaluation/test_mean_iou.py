import math

import numpy as np
import pytest
import torch

from mask2former.evaluation import MeanIoU


def test_hand_computed():
    metric = MeanIoU(4)
    # Class 0: 2 of the 3 pixels of the union; 1: 1 of 3; 2: only predicted; 3: absent.
    metric.update(np.array([[0, 0, 1, 1, 2]]), np.array([[0, 0, 0, 1, 1]]))
    result = metric.compute()
    assert result["per_class"][:3] == pytest.approx([2 / 3, 1 / 3, 0])
    assert math.isnan(result["per_class"][3])
    assert result["miou"] == pytest.approx((2 / 3 + 1 / 3) / 3)
    assert result["pixel_accuracy"] == pytest.approx(3 / 5)


def test_ignored_truth_does_not_count():
    metric = MeanIoU(2)
    metric.update(np.array([0, 1, 1]), np.array([0, 255, 255], np.uint8))
    result = metric.compute()
    assert result["miou"] == result["pixel_accuracy"] == 1
    assert math.isnan(result["per_class"][1])


def test_unlabelled_predictions_count_as_missed():
    metric = MeanIoU(2, ignore_label=-1)
    metric.update(np.array([0, -1, 1, -1]), np.array([0, 0, 1, -1]))
    result = metric.compute()
    assert result["per_class"] == pytest.approx([1 / 2, 1])
    assert result["pixel_accuracy"] == pytest.approx(2 / 3)


def test_nothing_to_judge_is_nan():
    metric = MeanIoU(2)
    assert math.isnan(metric.compute()["miou"])
    metric.update(np.zeros((0, 4), int), np.zeros((0, 4), int))
    metric.update(np.array([0]), np.array([255]))
    result = metric.compute()
    assert math.isnan(result["miou"])
    assert math.isnan(result["pixel_accuracy"])


def test_random_maps_agree_with_masks_over_all_images():
    rng = np.random.default_rng(4)
    metric = MeanIoU(5)
    predictions, truths = [], []
    for shape in [(7, 9), (31, 2), (16, 16)]:
        truth = rng.integers(0, 5, shape)
        prediction = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, 5, shape))
        truth[rng.random(shape) < 0.1] = 255
        metric.update(torch.from_numpy(prediction), torch.from_numpy(truth.astype(np.uint8)))
        predictions.append(prediction[truth != 255])
        truths.append(truth[truth != 255])
    prediction, truth = np.concatenate(predictions), np.concatenate(truths)
    expected = [
        np.sum((prediction == label) & (truth == label))
        / np.sum((prediction == label) | (truth == label))
        for label in range(5)
    ]
    result = metric.compute()
    assert result["per_class"] == pytest.approx(expected)
    assert result["miou"] == pytest.approx(np.mean(expected))
    assert result["pixel_accuracy"] == pytest.approx(np.mean(prediction == truth))


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[0, 1]], [[0], [1]], r"is \(1, 2\) but truth_map is \(2, 1\)"),
        ([2], [0], "prediction_map holds 2: labels are 0 to 1"),
        ([0], [-1], "truth_map holds -1"),
        ([0.5], [0], "prediction_map holds float64"),
    ],
)
def test_bad_input_is_named(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(2).update(np.array(prediction), np.array(truth))


def test_an_ignore_label_that_is_a_label_is_named():
    with pytest.raises(ValueError, match="ignore_label 255 is also one of the 300 labels"):
        MeanIoU(300)
