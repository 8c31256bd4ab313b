import json
import math

import numpy as np
import pytest
import torch

from mask2former.evaluation.dataset_predictor import DatasetPredictor
from mask2former.evaluation.evaluate import Results, evaluate
from mask2former.evaluation.report import (
    PANEL_SIDE,
    as_json,
    class_table,
    draw_worst_images,
    worst_images,
)
from tests.data import memory
from tests.data.memory import MemoryDataset
from tests.evaluation.oracle import OracleModel, right_answers, untouched_pixels

NAN = math.nan
NAMES = ("cat", "dog", "sky")  # of a `MemoryDataset`


def made_results(scores=(0.5,)):
    per_class = {"pq": 0.25, "sq": 0.5, "rq": 0.5, "tp": 1, "fp": 1, "fn": 1, "iou": 0.75}
    absent = {"pq": NAN, "sq": NAN, "rq": NAN, "tp": 0, "fp": 0, "fn": 0, "iou": NAN}
    return Results(
        figures={
            "pq": 0.25,
            "sq": 0.5,
            "rq": 0.5,
            "pq_things": 0.25,
            "pq_stuff": NAN,
            "miou": 0.75,
        },
        classes=[
            {"label_id": 0, "name": "dining table", **per_class},
            {"label_id": 1, "name": "sea", **absent},
        ],
        images=[
            {"index": i, "image": f"{i}.jpg", "score": score} for i, score in enumerate(scores)
        ],
        score="pq",
        skipped=["x.jpg is damaged."],
    )


def test_the_table_has_a_line_per_class_and_the_means():
    assert class_table(made_results()).splitlines() == [
        "class              PQ      SQ      RQ     IoU",
        "dining table    0.250   0.500   0.500   0.750",
        "sea                 -       -       -       -",
        "PQ 0.250  SQ 0.500  RQ 0.500  PQ things 0.250  PQ stuff -",
        "mIoU 0.750",
    ]


def test_json_holds_everything_and_null_for_what_is_not_known():
    about = {"model": "m", "size": {"shortest_edge": 8}}
    text = json.dumps(as_json(made_results([0.5, NAN]), about), allow_nan=False)
    report = json.loads(text)
    assert list(report)[:2] == ["model", "size"]
    assert {"mask2former", "python", "torch"} <= set(report["versions"])
    assert report["figures"]["pq"] == 0.25
    assert report["figures"]["pq_stuff"] is None
    assert report["classes"][0]["name"] == "dining table"
    assert report["classes"][1]["pq"] is None
    assert report["score_of_images"] == "pq"
    assert [image["score"] for image in report["images"]] == [0.5, None]
    assert report["skipped"] == ["x.jpg is damaged."]


def test_the_worst_images_come_first_and_those_without_score_never():
    worst = worst_images(made_results([0.5, NAN, 0.1, 0.9, 0.1]), 3)
    assert [image["index"] for image in worst] == [2, 4, 0]


def square_and_sky(name, size, seed):
    """A cat in the middle of the sky."""
    masks = torch.ones(size, dtype=torch.int32)
    masks[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 0
    return memory.sample(masks, [0, 2], name=name, noise=seed)


def evaluated(task, metrics, samples, answers):
    things = ("cat", "dog") if task == "panoptic" else ()
    dataset = MemoryDataset(samples, task, things=things)
    model = OracleModel(samples, answers, dict(enumerate(NAMES)))
    results = evaluate(model, untouched_pixels(), dataset, metrics, progress=False)
    return results, DatasetPredictor(model, untouched_pixels(), dataset), dataset


def panels(sheet, count, size):
    """Truth and prediction of each row: the pictures end above the gaps of `side_by_side`."""
    pixels = np.asarray(sheet).astype(int)
    height, gap = size[0], max(4, round(size[0] / 48))
    rows = np.split(pixels, count)
    return [
        (
            row[-gap - height : -gap, gap : gap + size[1]],
            row[-gap - height : -gap, 2 * gap + size[1] : 2 * (gap + size[1])],
        )
        for row in rows
    ]


@pytest.mark.parametrize(
    ("task", "metric"), [("panoptic", "pq"), ("semantic", "miou"), ("instance", "ap")]
)
def test_truth_stands_beside_prediction_with_the_worst_on_top(task, metric):
    if metric == "ap":
        pytest.importorskip("faster_coco_eval")
    size = (480, 640)
    samples = [square_and_sky(f"{i}.png", size, i) for i in range(3)]
    if task == "instance":
        samples = [
            memory.sample(sample.masks_of(torch.arange(2)), [0, 2], name=sample.name, noise=i)
            for i, sample in enumerate(samples)
        ]
    answers = [right_answers(sample) for sample in samples]
    shifted = [(label, probability, mask.roll(60, 1)) for label, probability, mask in answers[1]]
    answers[1] = shifted
    results, predictor, dataset = evaluated(task, (metric,), samples, answers)
    assert results.images[1]["score"] < min(results.images[0]["score"], 0.99)
    sheet = draw_worst_images(results, predictor, dataset, count=2)
    first, second = panels(sheet, 2, size)
    # Except for the tags, a right prediction looks like the truth, and a wrong one does not.
    assert (np.abs(second[0] - second[1]).max(axis=2) > 3).mean() < 0.05
    assert (np.abs(first[0] - first[1]).max(axis=2) > 3).mean() > 0.05


def test_large_images_are_shown_small():
    samples = [square_and_sky("a.png", (900, 2000), 0)]
    results, predictor, dataset = evaluated(
        "semantic", ("miou",), samples, [right_answers(samples[0])]
    )
    sheet = draw_worst_images(results, predictor, dataset)
    assert 2 * PANEL_SIDE < sheet.width < 2.1 * PANEL_SIDE


def test_without_scores_there_is_no_picture():
    assert draw_worst_images(made_results([NAN]), None, None) is None
