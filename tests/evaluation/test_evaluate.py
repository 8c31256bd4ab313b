import math

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

pytest.importorskip("faster_coco_eval")

from mask2former import BUNDLED_MODEL, Mask2FormerForUniversalSegmentation, Thresholds
from mask2former.data.dataset import VOID
from mask2former.data.sample_picture import panoptic_map
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation import AveragePrecision, MeanIoU, PanopticQuality
from mask2former.evaluation.average_precision import Instances
from mask2former.evaluation.evaluate import evaluate, mean_best_overlap
from mask2former.evaluation.truth import semantic_truth, true_instances
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.run_length import mask_to_rle
from mask2former.io.errors import DataError
from mask2former.scenes.scene import ID2LABEL
from tests.data import memory
from tests.data.memory import CountingScenes, MemoryDataset
from tests.evaluation.oracle import OracleModel, right_answers, untouched_pixels
from tests.evaluation.test_panoptic_quality import brute_force, random_case
from tests.reference import tiny_model

ALL = ("pq", "ap", "boundary-ap", "miou")
NAMES = ("cat", "dog", "sky")  # of a `MemoryDataset`


def measure(samples, answers, metrics=ALL, *, task="panoptic", model_names=NAMES, **options):
    """Results on samples of cats and dogs, things, and sky."""
    things = ("cat", "dog") if task == "panoptic" else ()
    dataset = MemoryDataset(samples, task, things=things)
    readable = [sample for sample in samples if not isinstance(sample, str)]
    model = OracleModel(readable, answers, dict(enumerate(model_names)))
    return evaluate(model, untouched_pixels(), dataset, metrics, progress=False, **options)


@pytest.fixture(scope="module")
def scenes():
    return SceneDataset(range(4), size=64)


@pytest.fixture(scope="module")
def random_model():
    model = tiny_model(id2label=ID2LABEL, num_labels=7, num_queries=20)
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return model, processor


def test_right_answers_measure_one_whatever_the_order_of_the_classes(scenes):
    order = [3, 0, 6, 1, 5, 2, 4]  # the model's label of every class
    id2label = {order[label]: name for label, name in ID2LABEL.items()}
    samples = [scenes[i] for i in range(len(scenes))]
    model = OracleModel(samples, [right_answers(s, order) for s in samples], id2label)
    results = evaluate(model, untouched_pixels(), scenes, ALL, progress=False)
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "boundary_ap", "miou"):
        assert results.figures[name] == pytest.approx(1), name
    assert [image["score"] for image in results.images] == [1.0] * 4
    assert [image["image"] for image in results.images] == [f"scene {i}" for i in range(4)]
    assert results.score == "pq"
    assert [row["name"] for row in results.classes] == list(ID2LABEL.values())


def test_hand_computed_figures_with_void_crowd_and_an_empty_class():
    # 4 x 10: a cat (8 pixels), a crowd of cats (8), void (4), sky (20); dogs do not occur.
    truth = [[0] * 4 + [1] * 4 + [VOID] * 2, [0] * 4 + [1] * 4 + [VOID] * 2, [2] * 10, [2] * 10]
    sample = memory.sample(truth, [0, 0, 2], crowd=[False, True, False])
    cat, crowd, sky = sample.masks_of(torch.arange(3))
    lost = torch.zeros_like(cat)
    lost[:2, 0] = True  # 2 of the cat's pixels are taken for sky
    results = measure([sample], [[(0, 0.95, cat & ~lost), (0, 0.9, crowd), (2, 0.95, sky | lost)]])
    cats, dogs, skies = results.classes
    assert (cats["tp"], cats["fp"], cats["fn"]) == (1, 0, 0)
    assert cats["pq"] == pytest.approx(6 / 8)
    assert skies["pq"] == pytest.approx(20 / 22)
    assert math.isnan(dogs["pq"]) and math.isnan(dogs["ap"])
    assert results.figures["pq"] == pytest.approx((6 / 8 + 20 / 22) / 2)
    # IoU 0.75 passes 6 of the 10 overlaps; the prediction in the crowd is no mistake.
    assert results.figures["ap"] == pytest.approx(0.6)
    assert math.isnan(skies["ap"])  # stuff is no instance
    # The crowd's pixels are the class's too; void counts for nothing.
    assert cats["iou"] == pytest.approx(14 / 16)
    assert skies["iou"] == pytest.approx(20 / 22)
    assert results.figures["pixel_accuracy"] == pytest.approx(34 / 36)


def test_panoptic_quality_with_voids_and_crowds_equals_the_definition():
    rng = np.random.default_rng(11)
    samples, answers, totals = [], [], np.zeros((4, 3))
    for number in range(30):
        prediction, found, truth, true = random_case(rng, num_labels=3)
        index = {segment["id"]: i for i, segment in enumerate(true)}
        masks = [[index.get(value, VOID) for value in row] for row in truth.tolist()]
        labels = [segment["label_id"] for segment in true]
        crowd = [segment["iscrowd"] == 1 for segment in true]
        samples.append(memory.sample(masks, labels, crowd=crowd, noise=number))
        answers.append(
            [(s["label_id"], 0.95, torch.from_numpy(prediction == s["id"])) for s in found]
        )
        totals += brute_force(prediction, found, truth, true, num_labels=3)
    assert totals.min() > 5  # the cases hold everything
    dataset = MemoryDataset(samples, things=NAMES)
    model = OracleModel(samples, answers, dict(enumerate(NAMES)))
    results = evaluate(model, untouched_pixels(), dataset, ("pq",), progress=False)
    counted = [[row[name] for row in results.classes] for name in ("tp", "fp", "fn")]
    assert np.array_equal(counted, totals[:3])
    tp, fp, fn, iou = totals
    expected = (iou / (tp + fp / 2 + fn / 2)).mean()
    assert results.figures["pq"] == pytest.approx(expected, rel=1e-12)


def original_instances(outputs, size, num_queries, things):
    """`instance_inference` of the paper's code, on masks resized as its `forward` does."""
    height, width, padded_height, padded_width = outputs.image_sizes[0]
    masks = torch.nn.functional.interpolate(
        outputs.masks_queries_logits, (padded_height, padded_width), mode="bilinear"
    )[..., :height, :width]
    masks = torch.nn.functional.interpolate(masks, size, mode="bilinear")[0]
    scores = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    num_classes = scores.shape[1]
    labels = torch.arange(num_classes).repeat(num_queries)
    best, pairs = scores.flatten().topk(100, sorted=False)
    found = []
    for score, label, mask in zip(
        best,
        labels[pairs],
        masks[torch.div(pairs, num_classes, rounding_mode="floor")],
        strict=True,
    ):
        if int(label) in things:
            inside = (mask > 0).float()
            mean = (mask.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
            found.append((float(score * mean), int(label), mask > 0))
    return sorted(found, key=lambda instance: -instance[0])


def test_a_model_is_measured_as_the_paper_does(scenes, random_model):
    model, processor = random_model
    things = scenes.thing_label_ids
    thresholds = Thresholds(threshold=0.1, overlap_threshold=0.1)
    results = evaluate(model, processor, scenes, ALL, thresholds=thresholds, progress=False)
    pq, miou, ap = PanopticQuality(7, things), MeanIoU(7, VOID), AveragePrecision(7)
    documented = Mask2FormerImageProcessor(size=processor.size, thing_label_ids=things)
    for index in range(len(scenes)):
        sample = scenes[index]
        with torch.no_grad():
            outputs = model(**documented(sample.image, return_tensors="pt"))
        found = documented.post_process_panoptic_segmentation(
            outputs, 0.1, 0.5, 0.1, target_sizes=[(64, 64)]
        )[0]
        pq.update(found["segmentation"], found["segments_info"], *panoptic_map(sample))
        miou.update(
            documented.post_process_semantic_segmentation(outputs, [(64, 64)])[0],
            semantic_truth(sample),
        )
        instances = original_instances(outputs, (64, 64), 20, things)
        ap.update(
            index,
            Instances(
                [mask_to_rle(mask) for _, _, mask in instances],
                [label for _, label, _ in instances],
                [score for score, _, _ in instances],
            ),
            true_instances(sample, things),
        )
    for result, prefix in (
        (pq.compute(), ""),
        (ap.compute(), ""),
        (ap.compute("boundaries"), "boundary_"),
        (miou.compute(), ""),
    ):
        for name, value in result.items():
            if name != "per_class":
                # Scores are rounded to 1e-6 and masks are equal; measured: 0
                np.testing.assert_allclose(results.figures[prefix + name], value, atol=1e-6)
    assert results.figures["miou"] > 0


def test_the_papers_padding_is_measured_on_request(random_model):
    model, _ = random_model
    scene = SceneDataset(range(1), size=64)
    figures = {}
    for size in (70, 96):  # padded to 96; without padding
        processor = Mask2FormerImageProcessor(size={"height": size, "width": size})
        for paper_padding in (False, True):
            results = evaluate(
                model, processor, scene, ("miou",), paper_padding=paper_padding, progress=False
            )
            figures[size, paper_padding] = results.figures["pixel_accuracy"]
    assert figures[70, True] != figures[70, False]
    assert figures[96, True] == figures[96, False]


def test_metrics_follow_the_task_unless_asked_for():
    sample = memory.sample([[0, 1]], [0, 2])
    answers = [right_answers(sample)]
    assert set(measure([sample], answers, None).figures) >= {"pq", "miou"}
    semantic = measure([sample], answers, None, task="semantic")
    assert set(semantic.figures) == {"miou", "pixel_accuracy"}
    assert semantic.score == "miou"
    masks = memory.sample(torch.tensor([[[True, False]], [[True, True]]]), [0, 2])
    instance = measure([masks], [right_answers(masks)], None, task="instance")
    assert instance.figures["ap"] == 1  # all classes of a data set of instances are things
    assert "pq" not in instance.figures
    assert instance.score == "overlap"


def test_a_model_of_things_and_stuff_is_measured_on_instances(scenes):
    instances = SceneDataset(range(2), size=64, task="instance")
    samples = [scenes[i] for i in range(2)]
    model = OracleModel(samples, [right_answers(s) for s in samples], ID2LABEL)
    results = evaluate(model, untouched_pixels(), instances, ("ap",), progress=False)
    assert results.figures["ap"] == 1
    assert len(results.classes) < len(ID2LABEL)


@pytest.mark.parametrize(
    ("task", "metrics", "message"),
    [
        ("semantic", ("pq",), "pq cannot be measured on a data set of semantic annotations"),
        ("semantic", ("miou", "ap"), "ap cannot be measured .* ask for miou"),
        ("instance", ("miou",), "miou cannot be measured .* ask for ap or boundary-ap"),
    ],
)
def test_metrics_that_the_annotations_cannot_give_are_named(task, metrics, message):
    sample = memory.sample([[0, 1]], [0, 2])
    with pytest.raises(DataError, match=message):
        measure([sample], [[]], metrics, task=task)


def test_bad_input_is_named():
    sample = memory.sample([[0, 1]], [0, 2])
    with pytest.raises(ValueError, match="metrics holds 'map'"):
        measure([sample], [[]], ("map",))
    with pytest.raises(DataError, match="has no images"):
        measure([], [])
    with pytest.raises(DataError, match="only the data set has 'sky'; only the model has 'cow'"):
        measure([sample], [[]], model_names=("cat", "dog", "cow"))
    nothing = MemoryDataset([sample])
    with pytest.raises(DataError, match="ap is measured on things, and the data set has none"):
        evaluate(tiny_model(), untouched_pixels(), nothing, ("ap",))
    other = memory.sample([[0, 1, 1]], [0, 2])
    wrong = type(sample)("b.png", sample.image, other.masks, other.labels, other.crowd)
    with pytest.raises(DataError, match=r"masks of b.png are \(1, 3\) .* image is \(1, 2\)"):
        measure([wrong], [[]])
    dataset = MemoryDataset([sample])
    small = untouched_pixels(pad_size={"height": 1, "width": 1})
    model = OracleModel([sample], [[]], dict(enumerate(NAMES)))
    with pytest.raises(DataError, match=r"preprocessor_config.json do not suit a.png: .*pad_size"):
        evaluate(model, small, dataset, progress=False)


def test_samples_that_cannot_be_read_are_left_out_on_request():
    good = memory.sample([[0, 1]], [0, 2])
    samples = ["b.png is damaged.", good]
    with pytest.raises(DataError, match="b.png is damaged"):
        measure(samples, [right_answers(good)])
    results = measure(samples, [right_answers(good)], skip_bad=True)
    assert results.skipped == ["b.png is damaged."]
    assert [(image["index"], image["score"]) for image in results.images] == [(1, 1.0)]
    assert results.figures["pq"] == 1


def test_images_read_ahead_measure_the_same_and_their_errors_stay_one_sentence():
    samples = [memory.sample([[0, 1], [2, VOID]], [0, 1, 2], noise=i) for i in range(3)]
    answers = [right_answers(sample)[i:] for i, sample in enumerate(samples)]
    alone = measure(samples, answers)
    assert alone.figures["pq"] < 1
    ahead = measure(["b.png is damaged.", *samples], answers, skip_bad=True, workers=1)
    assert ahead.skipped == ["b.png is damaged."]
    assert [image["index"] for image in ahead.images] == [1, 2, 3]
    np.testing.assert_equal([ahead.figures, ahead.classes], [alone.figures, alone.classes])


def test_images_are_not_kept():
    dataset = CountingScenes(range(6), size=32)
    samples = [SceneDataset(range(6), size=32)[i] for i in range(6)]
    model = OracleModel(samples, [right_answers(sample) for sample in samples], ID2LABEL)
    evaluate(model, untouched_pixels(), dataset, ALL, progress=False)
    assert dataset.most_alive <= 2  # one is read before the previous one is released


def test_evaluating_does_not_change_the_random_numbers_of_a_training():
    sample = memory.sample([[0, 1]], [0, 2])
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    measure([sample], [[]])
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_evaluates_and_is_left_in_its_mode(training):
    sample = memory.sample([[0, 1]], [0, 2])
    model = OracleModel([sample], [[]], dict(enumerate(NAMES))).train(training)
    evaluate(model, untouched_pixels(), MemoryDataset([sample]), progress=False)
    assert model.modes == [False]
    assert model.training is training


def instances(masks, labels, **columns):
    return Instances(
        [mask_to_rle(torch.tensor([mask]).bool()) for mask in masks], labels, **columns
    )


def test_mean_best_overlap_by_hand():
    truth = instances([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]], [0, 1], crowd=[False, False])
    # Half right; right, but of the wrong class; and below the threshold.
    found = instances(
        [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
        [0, 0, 1],
        scores=[0.9, 0.9, 0.2],
    )
    assert mean_best_overlap(found, truth, 0.5) == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4)
    assert mean_best_overlap(found, truth, 0.1) == pytest.approx((1 / 2 + 1 + 1 / 2 + 0 + 1) / 5)
    assert mean_best_overlap(found, truth, 0.95) == 0
    nothing = instances([], [], crowd=[])
    assert mean_best_overlap(found, nothing, 0.5) == 0
    assert math.isnan(mean_best_overlap(found, nothing, 0.95))


def test_crowds_need_not_be_found_and_predictions_in_them_are_no_mistake():
    crowd = instances([[1, 1, 1, 0]], [0], crowd=[True])
    inside = instances([[0, 1, 0, 0]], [0], scores=[0.9])
    outside = instances([[0, 0, 1, 1]], [0], scores=[0.9])
    other = instances([[0, 1, 0, 0]], [1], scores=[0.9])
    assert math.isnan(mean_best_overlap(inside, crowd, 0.5))
    assert mean_best_overlap(outside, crowd, 0.5) == 0
    assert mean_best_overlap(other, crowd, 0.5) == 0


def _evaluate_a_share(rank, address, out):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    processor = Mask2FormerImageProcessor.from_pretrained(BUNDLED_MODEL)
    results = evaluate(model, processor, SceneDataset(range(5)), ALL, gather=True, progress=False)
    torch.save(vars(results), f"{out}.{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    out = str(tmp_path / "results")
    address = f"file://{tmp_path / 'meeting'}"
    multiprocessing.spawn(_evaluate_a_share, (address, out), nprocs=2)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    processor = Mask2FormerImageProcessor.from_pretrained(BUNDLED_MODEL)
    alone = evaluate(model, processor, SceneDataset(range(5)), ALL, progress=False)
    assert 0.5 < alone.figures["pq"] < 1
    for rank in range(2):
        shared = torch.load(f"{out}.{rank}", weights_only=True)
        assert shared["images"] == alone.images
        # Sums of the matches' IoU are taken in another order; measured: 1e-16
        for name, value in alone.figures.items():
            np.testing.assert_allclose(shared["figures"][name], value, rtol=1e-12)
        assert [row["tp"] for row in shared["classes"]] == [row["tp"] for row in alone.classes]
