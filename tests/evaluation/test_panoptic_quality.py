import math

import numpy as np
import pytest
import torch

from mask2former.evaluation import PanopticQuality


def segments(*labels, **extra):
    """Segments 1, 2, ... of the given labels; `crowd=2` makes segment 2 a crowd."""
    return [
        {"id": i, "label_id": label} | ({"iscrowd": 1} if extra.get("crowd") == i else {})
        for i, label in enumerate(labels, start=1)
    ]


def quality(prediction, prediction_segments, truth, truth_segments, num_labels=3, things=(0,)):
    metric = PanopticQuality(num_labels, things)
    metric.update(np.array(prediction), prediction_segments, np.array(truth), truth_segments)
    return metric.compute()


def counts(result, label_id):
    return tuple(result["per_class"][label_id][name] for name in ("tp", "fp", "fn"))


def test_a_perfect_prediction_is_one():
    truth = [[1, 1, 2], [3, 3, 2]]
    result = quality(truth, segments(0, 0, 1), truth, segments(0, 0, 1))
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"):
        assert result[name] == 1
    assert counts(result, 0) == (2, 0, 0)
    assert counts(result, 2) == (0, 0, 0)
    assert math.isnan(result["per_class"][2]["pq"])


def test_hand_computed_match_miss_and_invention():
    # Label 0: truth 1 (4 pixels) and prediction 1 (3 of them): IoU 3/4, a match. Truth 2 (2 pixels)
    # is missed: prediction 2 covers one of them and two others, IoU 1/4.
    # Label 1: truth 3 (4 pixels), prediction 3 has 3 of them and one other: IoU 3/5.
    truth = [[1, 1, 2, 2, 3], [1, 1, 3, 3, 3]]
    predicted = [[1, 1, 3, 2, 3], [1, 2, 3, 2, 3]]
    result = quality(predicted, segments(0, 0, 1), truth, segments(0, 0, 1))
    assert counts(result, 0) == (1, 1, 1)
    assert counts(result, 1) == (1, 0, 0)
    first, second = result["per_class"][:2]
    assert (first["sq"], first["rq"], first["pq"]) == pytest.approx((3 / 4, 1 / 2, 3 / 8))
    assert (second["sq"], second["rq"], second["pq"]) == pytest.approx((3 / 5, 1, 3 / 5))
    assert first["iou"] == pytest.approx(3 / 4)
    assert result["pq"] == pytest.approx((3 / 8 + 3 / 5) / 2)
    assert result["sq"] == pytest.approx((3 / 4 + 3 / 5) / 2)
    assert result["rq"] == pytest.approx(3 / 4)
    assert result["pq_things"] == pytest.approx(3 / 8)
    assert result["pq_stuff"] == pytest.approx(3 / 5)


def test_an_overlap_of_exactly_half_is_no_match():
    result = quality([[1, 0]], segments(0), [[1, 1]], segments(0))
    assert counts(result, 0) == (0, 1, 1)
    assert result["pq"] == result["sq"] == result["rq"] == 0


def test_segments_of_different_classes_do_not_match():
    result = quality([[1, 1]], segments(1), [[1, 1]], segments(0))
    assert counts(result, 0) == (0, 0, 1)
    assert counts(result, 1) == (0, 1, 0)


def test_void_pixels_leave_the_union():
    # Prediction: 5 pixels, of which 2 in void; truth: 4 pixels, 3 shared. Union 5 + 4 - 3 - 2 = 4.
    result = quality([[1, 1, 1, 0, 1, 1]], segments(0), [[1, 1, 1, 1, 0, 0]], segments(0))
    assert result["pq"] == pytest.approx(3 / 4)


def test_a_prediction_mostly_in_void_is_no_false_positive():
    truth = [[0, 0, 1, 1, 1, 1]]
    mostly = quality([[1, 1, 1, 2, 2, 2]], segments(1, 0), truth, segments(0))
    assert counts(mostly, 1) == (0, 0, 0)
    half = quality([[0, 1, 1, 2, 2, 2]], segments(1, 0), truth, segments(0))
    assert counts(half, 1) == (0, 1, 0)


def test_a_crowd_is_neither_missed_nor_matched():
    truth = segments(0, 0, crowd=2)
    result = quality([[1, 1, 0, 0]], segments(0), [[1, 1, 2, 2]], truth)
    assert counts(result, 0) == (1, 0, 0)
    result = quality([[1, 1, 2, 2]], segments(0, 0), [[1, 1, 2, 2]], truth)
    assert counts(result, 0) == (1, 0, 0)


def test_a_crowd_excuses_predictions_of_its_own_class_only():
    truth = segments(0, 0, crowd=2)
    result = quality([[1, 1, 2, 2]], segments(0, 1), [[1, 1, 2, 2]], truth)
    assert counts(result, 1) == (0, 1, 0)


def test_void_and_crowd_add_up():
    # One pixel of the prediction in void, one in a crowd of its class, one on another class.
    truth = segments(1, 0, crowd=2)
    result = quality([[1, 1, 1, 0]], segments(0), [[0, 2, 1, 1]], truth)
    assert counts(result, 0) == (0, 0, 0)


def test_empty_maps_count_nothing():
    result = quality([[0, 0]], [], [[0, 0]], [])
    assert math.isnan(result["pq"])
    assert math.isnan(result["pq_things"])
    assert all(counts(result, label) == (0, 0, 0) for label in range(3))
    result = quality([[0, 0]], [], [[1, 1]], segments(0))
    assert result["pq"] == 0
    assert counts(result, 0) == (0, 0, 1)


def test_nothing_yet_is_nan():
    result = PanopticQuality(2, [0]).compute()
    assert all(math.isnan(value) for name, value in result.items() if name != "per_class")


def test_tensors_of_any_integer_type_are_accepted():
    metric = PanopticQuality(3, [0])
    predicted = torch.tensor([[1, 1, 7]], dtype=torch.int32)
    truth = torch.tensor([[200, 200, 200]], dtype=torch.uint8)
    metric.update(
        predicted,
        [{"id": 1, "label_id": 2, "score": 0.5}, {"id": 7, "label_id": 0}],
        truth,
        [{"id": 200, "label_id": 2}],
    )
    result = metric.compute()
    assert counts(result, 2) == (1, 0, 0)
    assert result["per_class"][2]["sq"] == pytest.approx(2 / 3)
    assert counts(result, 0) == (0, 1, 0)


def brute_force(prediction, predicted_segments, truth, true_segments, num_labels):
    """Counts by the definition, one pair of masks at a time."""
    tp, fp, fn = ([0] * num_labels for _ in range(3))
    iou = [0.0] * num_labels
    void = truth == 0
    matched = set()
    for wanted in true_segments:
        mask = truth == wanted["id"]
        if wanted.get("iscrowd"):
            continue
        found = False
        for offered in predicted_segments:
            other = (prediction == offered["id"]) & ~void
            overlap = np.sum(mask & other) / np.sum(mask | other)
            if offered["label_id"] == wanted["label_id"] and overlap > 0.5:
                tp[wanted["label_id"]] += 1
                iou[wanted["label_id"]] += overlap
                matched.add(offered["id"])
                found = True
        fn[wanted["label_id"]] += not found
    for offered in predicted_segments:
        mask = prediction == offered["id"]
        excused = void.copy()
        for wanted in true_segments:
            if wanted.get("iscrowd") and wanted["label_id"] == offered["label_id"]:
                excused |= truth == wanted["id"]
        if offered["id"] not in matched and np.mean(excused[mask]) <= 0.5:
            fp[offered["label_id"]] += 1
    return tp, fp, fn, iou


def random_case(rng, num_labels):
    """A truth of rectangles on a mosaic, with void and crowds, and a prediction like it."""
    truth = rng.integers(0, 3, (4, 4)).repeat(6, 0).repeat(6, 1)
    for i in range(3, 7):
        row, column, height, width = rng.integers(2, 14, 4)
        truth[row : row + height, column : column + width] = i
    prediction = truth.copy()
    for _ in range(4):
        row, column, height, width = rng.integers(2, 14, 4)
        prediction[row : row + height, column : column + width] = rng.integers(0, 9)
    true_labels = rng.integers(num_labels, size=9)
    labels = np.where(rng.random(9) < 0.8, true_labels, rng.integers(num_labels, size=9))
    renamed = rng.permutation(np.arange(1, 1000))[:9]
    renamed[0] = 0
    true_segments = [
        {"id": int(i), "label_id": int(true_labels[i]), "iscrowd": int(rng.random() < 0.2)}
        for i in np.unique(truth[truth > 0])
    ]
    predicted_segments = [
        {"id": int(renamed[i]), "label_id": int(labels[i])}
        for i in np.unique(prediction[prediction > 0])
    ]
    return renamed[prediction], predicted_segments, truth, true_segments


def test_random_maps_agree_with_brute_force():
    rng = np.random.default_rng(8)
    num_labels = 3
    metric = PanopticQuality(num_labels, [0, 1])
    totals = np.zeros((4, num_labels))
    for _ in range(150):
        case = random_case(rng, num_labels)
        metric.update(*case)
        totals += brute_force(*case, num_labels)
    assert totals.min() > 20  # the cases hold everything
    result = metric.compute()
    for label, row in enumerate(result["per_class"]):
        np.testing.assert_allclose(
            [row[name] for name in ("tp", "fp", "fn", "iou")], totals[:, label]
        )
    tp, fp, fn, iou = totals
    pq = iou / (tp + fp / 2 + fn / 2)
    assert result["pq"] == pytest.approx(pq.mean())
    assert result["pq_things"] == pytest.approx(pq[:2].mean())
    assert result["pq_stuff"] == pytest.approx(pq[2])
    assert result["sq"] == pytest.approx((iou / tp).mean())


@pytest.mark.parametrize(
    ("prediction", "predicted", "truth", "true", "message"),
    [
        ([[1, 1]], segments(0), [[1], [1]], segments(0), r"is \(1, 2\) but truth_map is \(2, 1\)"),
        ([[1, 4]], segments(0), [[1, 1]], segments(0), "prediction_map holds segment 4"),
        ([[1, 1]], segments(0), [[-1, 1]], segments(0), "truth_map holds segment -1"),
        ([[1, 1]], segments(0, 1), [[1, 1]], segments(0), "prediction_segments lists segment 2"),
        ([[1, 1]], segments(3), [[1, 1]], segments(0), "prediction_segments has label_id 3"),
        ([[1, 1]], segments(0), [[1, 1]], segments(-1), "truth_segments has label_id -1"),
        ([[1, 1]], segments(0) * 2, [[1, 1]], segments(0), "is listed twice"),
        ([[0, 1]], [{"id": 0, "label_id": 1}], [[1, 1]], segments(0), "is void"),
        ([1, 1], segments(0), [[1, 1]], segments(0), r"prediction_map is int64 of shape \(2,\)"),
        ([[1.0]], segments(0), [[1]], segments(0), "prediction_map is float64"),
    ],
)
def test_bad_input_is_named_and_counts_nothing(prediction, predicted, truth, true, message):
    metric = PanopticQuality(3, [0])
    with pytest.raises(ValueError, match=message):
        metric.update(np.array(prediction), predicted, np.array(truth), true)
    assert math.isnan(metric.compute()["pq"])


def test_a_thing_label_out_of_range_is_named():
    with pytest.raises(ValueError, match="thing_label_ids holds 3"):
        PanopticQuality(3, [0, 3])
