import contextlib
import io
import math

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval")

from mask2former.evaluation import AveragePrecision
from mask2former.evaluation.average_precision import Instances
from mask2former.images.run_length import mask_to_rle
from mask2former.io.errors import DataError

# The order of pycocotools' twelve figures.
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
# Both take the same means of the same table; 1e-12 is rounding (measured: 0).
TOLERANCE = 1e-12


def encoded(masks):
    return [mask_to_rle(torch.as_tensor(mask)) for mask in masks]


def rectangle(size, top, left, height, width):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truths(masks, labels, crowd=None, areas=None):
    return Instances(encoded(masks), labels, crowd=crowd or [False] * len(labels), areas=areas)


def predictions(masks, labels, scores):
    return Instances(encoded(masks), labels, scores=scores)


def ellipse(rng, size):
    """A random ellipse, from a few pixels to most of the image, with a ragged edge."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    scale = np.exp(rng.uniform(np.log(0.02), np.log(0.5)))
    height, width = np.maximum(scale * np.array(size) * rng.uniform(0.6, 1.6, 2), 1)
    row, column = rng.uniform(0, size[0]), rng.uniform(0, size[1])
    distance = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2
    return distance + rng.normal(0, 0.05, size) < 1


def shifted(rng, mask):
    """The mask shifted a little, with some rows lost."""
    moved = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
    moved[: rng.integers(0, 6)] = False
    return moved


def random_image(rng, num_labels, objects, extras):
    size = tuple(int(n) for n in rng.integers(60, 260, 2))
    masks = [ellipse(rng, size) for _ in range(objects)]
    labels = rng.integers(num_labels, size=objects).tolist()
    crowd = (rng.random(objects) < 0.2).tolist()
    true_areas = [float(mask.sum() * rng.uniform(0.7, 1.3)) for mask in masks]
    found = [shifted(rng, mask) for mask in masks for _ in range(2)]
    found_labels = [label for label in labels for _ in range(2)]
    found += [ellipse(rng, size) for _ in range(extras)]
    found_labels += rng.integers(num_labels, size=extras).tolist()
    scores = (rng.integers(0, 12, len(found)) / 12).tolist()  # many ties
    return truths(masks, labels, crowd, true_areas), predictions(found, found_labels, scores)


def pycocotools_figures(images, num_labels):
    """The twelve figures and the precision of every class, by pycocotools."""
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    annotations, results = [], []
    for number, (true, predicted) in enumerate(images):
        for i, mask in enumerate(true.masks):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": true.labels[i],
                    "segmentation": mask,
                    "area": true.areas[i],
                    "iscrowd": int(true.crowd[i]),
                }
            )
        results += [
            {"image_id": number, "category_id": label, "segmentation": mask, "score": score}
            for mask, label, score in zip(
                predicted.masks, predicted.labels, predicted.scores, strict=True
            )
        ]
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [
            {"id": number, "height": true.masks[0]["size"][0], "width": true.masks[0]["size"][1]}
            for number, (true, _) in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": label} for label in range(num_labels)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [math.nan if value == -1 else value for value in evaluation.stats]
    per_class = evaluation.eval["precision"][:, :, :, 0, -1]
    means = [
        per_class[:, :, label].mean() if per_class[0, 0, label] > -1 else math.nan
        for label in range(num_labels)
    ]
    return dict(zip(STATS, figures, strict=True)), means


@pytest.mark.parametrize(
    ("seed", "images", "objects", "extras"), [(0, 8, 6, 4), (1, 8, 3, 0), (2, 2, 9, 250)]
)
def test_figures_equal_pycocotools(seed, images, objects, extras):
    rng = np.random.default_rng(seed)
    num_labels = 3
    cases = [random_image(rng, num_labels - 1, objects, extras) for _ in range(images)]
    metric = AveragePrecision(num_labels)  # the last class never occurs
    for number, (true, predicted) in enumerate(cases):
        metric.update(number, predicted, true)
    if extras > 200:  # more than 100 of a class in an image
        assert max(np.bincount(predicted.labels).max() for _, predicted in cases) > 110
    expected, per_class = pycocotools_figures(cases, num_labels)
    result = metric.compute()
    np.testing.assert_allclose(
        [result[name] for name in STATS], [expected[name] for name in STATS], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(
        [row["ap"] for row in result["per_class"]], per_class, rtol=0, atol=TOLERANCE
    )
    assert 0.01 < result["ap"] < 0.95
    assert math.isnan(result["per_class"][-1]["ap"])


def test_hand_computed_precision():
    # Two squares of 100 pixels. The surest prediction is one of them exactly; the second overlaps
    # nothing; the third has 80 of the other's pixels and no more, IoU 0.8. Up to the overlap 0.80
    # (7 of 10; 0.8 itself counts) recall 1 is reached with precision 2/3, above it recall 1/2.
    size = (30, 60)
    first, second = rectangle(size, 0, 0, 10, 10), rectangle(size, 0, 20, 10, 10)
    found = [first, rectangle(size, 15, 40, 10, 10), rectangle(size, 0, 20, 8, 10)]
    metric = AveragePrecision(1)
    metric.update(
        7, predictions(found, [0, 0, 0], [0.9, 0.8, 0.7]), truths([first, second], [0, 0])
    )
    result = metric.compute()
    # Precision is 1 at the 51 recalls 0, 0.01, ..., 0.50 and then 2/3, or 0, at 50.
    assert result["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result["ap"] == pytest.approx((7 * (51 + 50 * 2 / 3) / 101 + 3 * 51 / 101) / 10)
    assert result["ar1"] == pytest.approx(1 / 2)
    assert result["ar100"] == pytest.approx((7 * 1 + 3 / 2) / 10)
    assert result["ap_small"] == pytest.approx(result["ap"])
    assert math.isnan(result["ap_large"])


def test_a_crowd_excuses_what_lies_in_it():
    size = (20, 20)
    thing, region = rectangle(size, 0, 0, 5, 5), rectangle(size, 10, 0, 10, 20)
    inside = rectangle(size, 12, 2, 3, 3)
    found = predictions([inside, thing], [0, 0], [0.9, 0.8])
    for crowd, expected in ((True, 1.0), (False, 51 / 101 / 2)):
        metric = AveragePrecision(1)
        metric.update(0, found, truths([thing, region], [0, 0], [False, crowd]))
        assert metric.compute()["ap"] == pytest.approx(expected)


def test_areas_of_the_file_decide_what_is_small():
    size = (20, 20)
    mask = rectangle(size, 0, 0, 10, 10)
    metric = AveragePrecision(1)
    metric.update(0, predictions([mask], [0], [1.0]), truths([mask], [0], areas=[5000.0]))
    result = metric.compute()
    assert math.isnan(result["ap_small"])
    assert result["ap_medium"] == 1


def test_nothing_true_is_nan_and_nothing_found_is_zero():
    assert math.isnan(AveragePrecision(2).compute()["ap"])
    mask = rectangle((9, 9), 0, 0, 3, 3)
    metric = AveragePrecision(2)
    metric.update(0, predictions([mask], [0], [0.5]), truths([], []))
    assert math.isnan(metric.compute()["ap"])
    metric.update(1, predictions([], [], []), truths([mask], [1]))
    result = metric.compute()
    assert result["ap"] == result["ar100"] == 0
    assert math.isnan(result["per_class"][0]["ap"])
    assert math.isnan(metric.compute("boundaries")["ap_large"])
    assert metric.compute("boundaries")["ap"] == 0


def boundary(mask):
    """Pixels of a mask from which one outside it, or outside the image, is at most d steps of a
    king away, d = 0.02 diagonals: the region G_d of the paper, one pixel at a time."""
    distance = max(1, round(0.02 * math.hypot(*mask.shape)))
    padded = np.pad(mask, distance)
    result = np.zeros_like(mask)
    for row, column in zip(*np.nonzero(mask), strict=True):
        window = padded[row : row + 2 * distance + 1, column : column + 2 * distance + 1]
        result[row, column] = not window.all()
    return result


def overlap(first, second):
    return np.sum(first & second) / np.sum(first | second)


def test_boundaries_by_hand():
    # The diagonal of 60 x 80 is 100, so boundaries are 2 pixels wide. The square of 20 x 20 has a
    # boundary of 400 - 16^2 = 144 pixels. Shifted by one column, the masks share 19 of 21 columns:
    # IoU 0.905. Boundaries: rows 0, 1, 18, 19 share 19 pixels each; in the other 16 rows columns
    # {0, 1, 18, 19} and {1, 2, 19, 20} share 2. Together 76 + 32 = 108 of 144 + 144 - 108 = 180:
    # IoU 0.6, which the overlaps 0.50, 0.55 and 0.60 accept.
    size = (60, 80)
    true, found = rectangle(size, 10, 10, 20, 20), rectangle(size, 10, 11, 20, 20)
    assert overlap(boundary(true), boundary(found)) == pytest.approx(108 / 180)
    metric = AveragePrecision(1)
    metric.update(0, predictions([found], [0], [0.5]), truths([true], [0]))
    assert metric.compute("masks")["ap"] == pytest.approx(0.9)
    assert metric.compute("boundaries")["ap"] == pytest.approx(0.3)


@pytest.mark.parametrize("seed", range(3))
def test_boundaries_equal_a_direct_computation(seed):
    """One object and one prediction in each of several images: the recall at every overlap is the
    share of images whose smaller IoU, of masks and of boundaries, reaches it."""
    rng = np.random.default_rng(seed)
    metric = AveragePrecision(1)
    overlaps = []
    for number in range(20):
        size = tuple(int(n) for n in rng.integers(40, 130, 2))
        true = ellipse(rng, size)
        true[: size[0] // 2, : size[1] // 2] |= rng.random() < 0.3  # reaches the image's border
        true[-1, -1] = True
        found = shifted(rng, true)
        found[0, 0] = True
        metric.update(number, predictions([found], [0], [0.5]), truths([true], [0]))
        overlaps.append(min(overlap(true, found), overlap(boundary(true), boundary(found))))
    thresholds = np.linspace(0.5, 0.95, 10)
    expected = np.mean([np.mean(np.array(overlaps) >= threshold) for threshold in thresholds])
    assert metric.compute("boundaries")["ar100"] == pytest.approx(expected, abs=TOLERANCE)
    assert expected < metric.compute()["ar100"]


def test_two_halves_added_are_the_whole():
    rng = np.random.default_rng(5)
    cases = [random_image(rng, 2, 4, 3) for _ in range(6)]
    whole, first, second = (AveragePrecision(2) for _ in range(3))
    for number, (true, predicted) in enumerate(cases):
        whole.update(number, predicted, true)
        (second if number % 2 else first).update(number, predicted, true)
    second.add(first)
    np.testing.assert_equal(second.compute(), whole.compute())


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (([[[True]]], [2], [0.5]), ([], []), "predictions holds the label 2"),
        (([[[True]]], [0, 1], [0.5]), ([], []), "predictions has 1 masks"),
        (([[[True]]], [0], []), ([], []), "an entry of scores"),
        (([[[True]]], [0], [0.5]), ([[[True, True]]], [0]), "at the size of the truth"),
        (([], [], []), ([[[True]]], [-1]), "truths holds the label -1"),
        (([], [], []), ([[[True]]], [0], [False], [1.0, 2.0]), "truths has 1 masks"),
    ],
)
def test_bad_input_is_named_and_counts_nothing(predicted, true, message):
    metric = AveragePrecision(2)
    with pytest.raises(ValueError, match=message):
        metric.update(0, predictions(*predicted), truths(*true))
    assert not metric.truths


def test_an_image_counts_once():
    metric = AveragePrecision(1)
    metric.update(3, predictions([], [], []), truths([], []))
    with pytest.raises(ValueError, match="Image 3 was added before"):
        metric.update(3, predictions([], [], []), truths([], []))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("mask2former.io.optional.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install mask2former\[eval\]"):
        AveragePrecision(1)
