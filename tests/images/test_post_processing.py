from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.images import mask_resizer, post_processing
from mask2former.images.post_processing import (
    instance_segmentation,
    panoptic_segmentation,
    semantic_segmentation,
)
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.run_length import mask_to_rle
from tests.reference import tiny_model
from tests.samples import made_outputs, random_outputs

TARGETS = [(64, 96), (37, 51)]


def full_logits(outputs, i, target):
    """The mask logits of image i as the paper's code resizes them."""
    valid_height, valid_width, height, width = outputs.image_sizes[i]
    resize = {"mode": "bilinear", "align_corners": False}
    logits = F.interpolate(outputs.masks_queries_logits[i, None], size=(height, width), **resize)
    return F.interpolate(logits[..., :valid_height, :valid_width], size=target, **resize)[0]


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.itemsize)
        return result


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_results_do_not_depend_on_the_bands_and_memory_is_bounded(task, monkeypatch):
    outputs = random_outputs(3, queries=40, labels=30)
    target = (90, 110)
    function = getattr(post_processing, f"{task}_segmentation")
    if task != "semantic":
        function = partial(function, threshold=0.2, overlap_mask_area_threshold=0.01)
    whole = function(outputs, target_sizes=[target])[0]
    monkeypatch.setattr(mask_resizer, "BAND_ELEMENTS", 40 * 110 * 4)
    with LargestTensor() as largest:
        banded = function(outputs, target_sizes=[target])[0]
    if task != "semantic":
        assert banded["segments_info"] == whole["segments_info"]
        assert len(whole["segments_info"]) > 1
        whole, banded = whole["segmentation"], banded["segmentation"]
    assert torch.equal(banded, whole)
    assert largest.numel <= 2 * 90 * 110 < 30 * 90 * 110


# ---- sizes --------------------------------------------------------------------------------------


def all_tasks(outputs, target_sizes=None):
    options = {"threshold": 0.3, "target_sizes": target_sizes}
    return (
        semantic_segmentation(outputs, target_sizes),
        instance_segmentation(outputs, **options),
        panoptic_segmentation(outputs, overlap_mask_area_threshold=0.3, **options),
    )


def test_maps_have_the_target_size_or_the_resolution_of_the_logits():
    outputs = random_outputs(batch=2)
    for sizes in ([(37, 51), (90, 23)], torch.tensor([[37, 51], [90, 23]])):
        semantic, instance, panoptic = all_tasks(outputs, sizes)
        assert [m.shape for m in semantic] == [(37, 51), (90, 23)]
        assert [r["segmentation"].shape for r in instance + panoptic] == [(37, 51), (90, 23)] * 2
    semantic, instance, panoptic = all_tasks(outputs)
    assert {m.shape for m in semantic} == {(16, 24)}
    assert {r["segmentation"].shape for r in instance + panoptic} == {(16, 24)}


def test_details_finer_than_384_pixels_survive():
    stripes = torch.zeros(1, 1, 4, 1200)
    stripes[..., ::2] = 40
    outputs = SimpleNamespace(
        class_queries_logits=torch.tensor([[[9.0, 0.0]]]), masks_queries_logits=stripes - 20
    )
    result = instance_segmentation(outputs, target_sizes=[(4, 1200)])[0]["segmentation"]
    assert torch.equal(result[0] == 1, torch.arange(1200) % 2 == 0)


def test_without_target_sizes_the_padding_is_cropped_from_the_logits():
    outputs = random_outputs(image_sizes=[(33, 70, 64, 96)])
    for result in all_tasks(outputs):
        segmentation = (
            result[0] if isinstance(result[0], torch.Tensor) else result[0]["segmentation"]
        )
        assert segmentation.shape == (9, 18)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_gives_the_same_alone_and_in_a_padded_batch(seed):
    alone = random_outputs(seed, logits_size=(8, 16), image_sizes=[(28, 59, 32, 64)])
    padded = torch.randn(1, 9, 24, 16) * 20  # whatever the model makes of the padding
    padded[:, :, :7, :15] = alone.masks_queries_logits[:, :, :7, :15]
    other = random_outputs(seed + 10, logits_size=(24, 16), image_sizes=[(96, 64, 96, 64)])
    batch = SimpleNamespace(
        class_queries_logits=torch.cat([other.class_queries_logits, alone.class_queries_logits]),
        masks_queries_logits=torch.cat([other.masks_queries_logits, padded]),
        image_sizes=[(96, 64, 96, 64), (28, 59, 96, 64)],
    )
    for target in [(28, 59), (101, 44)]:
        semantic, instance, panoptic = all_tasks(batch, [(20, 20), target])
        expected = all_tasks(alone, [target])
        assert torch.equal(semantic[1], expected[0][0])
        for result, reference in ((instance[1], expected[1][0]), (panoptic[1], expected[2][0])):
            assert result["segments_info"] == reference["segments_info"]
            assert torch.equal(result["segmentation"], reference["segmentation"])


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_a_picture_gives_the_same_segmentation_alone_and_in_a_padded_batch(backbone):
    """From pixels to maps; in float64, for in float32 a pixel at a threshold may flip."""
    model = tiny_model(backbone).double()
    with torch.no_grad():
        model.class_predictor.weight.mul_(30)  # or no segment would reach a threshold
    generator = np.random.default_rng(7)
    shapes = [(70, 90), (128, 61), (40, 150)]
    pictures = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    processor = Mask2FormerImageProcessor(do_resize=False)

    def segmented(images, sizes):
        batch = processor(images, return_tensors="pt").to(torch.float64)
        with torch.no_grad():
            return all_tasks(model(**batch), sizes)

    together = segmented(pictures, shapes)
    assert max(len(result["segments_info"]) for result in together[2]) > 1
    for i, (picture, shape) in enumerate(zip(pictures, shapes, strict=True)):
        alone = segmented([picture], [shape])
        assert torch.equal(together[0][i], alone[0][0])
        for results, references in zip(together[1:], alone[1:], strict=True):
            assert results[i]["segments_info"] == references[0]["segments_info"]
            assert torch.equal(results[i]["segmentation"], references[0]["segmentation"])


def test_a_result_has_the_shape_of_its_map():
    assert instance_segmentation(random_outputs(), target_sizes=[(11, 13)])[0].shape == (11, 13)
    maps = instance_segmentation(random_outputs(), 0.3, return_binary_maps=True)[0]
    assert maps.shape == (len(maps["segments_info"]), 16, 24)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_size_per_image_is_needed(task):
    function = getattr(post_processing, f"{task}_segmentation")
    with pytest.raises(ValueError, match="target_sizes has 1 entries for a batch of 2"):
        function(random_outputs(batch=2), target_sizes=[(5, 5)])


# ---- semantic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_semantic_is_the_best_sum_of_class_times_mask_probability(target):
    outputs = random_outputs(1, image_sizes=[(64, 96, 64, 96)])
    class_probs = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    mask_probs = full_logits(outputs, 0, target).sigmoid()
    scores = torch.einsum("qc,qhw->chw", class_probs, mask_probs)
    result = semantic_segmentation(outputs, [target])[0]
    assert result.dtype == torch.int64
    assert len(result.unique()) > 2
    best_two = scores.topk(2, dim=0).values
    clear = best_two[0] - best_two[1] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(result[clear], scores.argmax(0)[clear])


def test_semantic_at_384_is_what_transformers_gives():
    transformers = pytest.importorskip("transformers")
    outputs = random_outputs(2, batch=2, logits_size=(384, 384))
    expected = transformers.Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs)
    result = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs)
    for ours, theirs in zip(result, expected, strict=True):
        assert (ours == theirs).float().mean() > 0.9999


# ---- panoptic -----------------------------------------------------------------------------------


def paper_panoptic(outputs, target, threshold, overlap, stuff):
    """The paper's procedure on full-size masks: a map and (id, label) of its segments."""
    scores, labels = outputs.class_queries_logits[0].softmax(-1).max(-1)
    masks = full_logits(outputs, 0, target).sigmoid()
    kept = [
        q
        for q in range(len(scores))
        if labels[q] < outputs.class_queries_logits.shape[-1] - 1 and scores[q] >= threshold
    ]
    owner = (masks[kept] * scores[kept, None, None]).argmax(0)
    segmentation, segments, stuff_ids = torch.zeros(target, dtype=torch.int32), [], {}
    for i, q in enumerate(kept):
        own, mask = masks[q] >= 0.5, (owner == i) & (masks[q] >= 0.5)
        if not mask.any() or (owner == i).sum().item() / own.sum().item() < overlap:
            continue
        label = labels[q].item()
        if label not in stuff_ids:
            segments.append((len(segments) + 1, label))
        number = stuff_ids.get(label, len(segments))
        if label in stuff:
            stuff_ids[label] = number
        segmentation[mask] = number
    return segmentation, segments


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", TARGETS)
def test_panoptic_is_the_papers_procedure(seed, target):
    outputs = random_outputs(seed, queries=14, image_sizes=[(64, 96, 64, 96)])
    processor = Mask2FormerImageProcessor(thing_label_ids=[0, 1])
    result = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.4, overlap_mask_area_threshold=0.4, target_sizes=[target]
    )[0]
    expected, segments = paper_panoptic(outputs, target, 0.4, 0.4, {2, 3, 4})
    assert [(s["id"], s["label_id"]) for s in result["segments_info"]] == segments
    assert len(segments) > 1
    assert (result["segmentation"] == expected).float().mean() > 0.999


def test_areas_are_tested_on_unweighted_probabilities():
    # 0.6 * 0.7 is under the threshold, but the mask itself is not
    outputs = made_outputs((1, 0.6, [0.7, 0.7, 0.7, 0.01]))
    result = panoptic_segmentation(outputs)[0]
    assert result["segmentation"].tolist() == [[1, 1, 1, 0]]


def test_pixels_under_the_mask_threshold_are_void():
    outputs = made_outputs((1, 0.9, [0.9, 0.8, 0.45, 0.3]))
    assert panoptic_segmentation(outputs, overlap_mask_area_threshold=0)[0][
        "segmentation"
    ].tolist() == [[1, 1, 0, 0]]
    lower = panoptic_segmentation(outputs, mask_threshold=0.4, overlap_mask_area_threshold=0)
    assert lower[0]["segmentation"].tolist() == [[1, 1, 1, 0]]


def test_the_weighted_probability_decides_who_owns_a_pixel():
    outputs = made_outputs((0, 0.95, [0.9, 0.9, 0.7, 0.01]), (1, 0.6, [0.01, 0.01, 0.9, 0.9]))
    result = panoptic_segmentation(outputs, overlap_mask_area_threshold=0.5)[0]
    assert result["segmentation"].tolist() == [[1, 1, 1, 2]]


def test_a_query_that_lost_most_of_its_mask_is_dropped():
    outputs = made_outputs((0, 0.95, [0.9, 0.9, 0.9, 0.01]), (1, 0.9, [0.9, 0.9, 0.9, 0.9]))
    strict = panoptic_segmentation(outputs)[0]
    assert strict["segmentation"].tolist() == [[1, 1, 1, 0]]
    assert [s["label_id"] for s in strict["segments_info"]] == [0]
    equal = panoptic_segmentation(outputs, overlap_mask_area_threshold=0.25)[0]
    assert equal["segmentation"].tolist() == [[1, 1, 1, 2]]


def test_pixels_won_under_the_mask_threshold_count_as_won():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.6, 0.3]), (1, 0.95, [0.01, 0.01, 0.9, 0.01]))
    assert panoptic_segmentation(outputs)[0]["segmentation"].tolist() == [[1, 1, 2, 0]]


def test_fused_segments_have_unique_ids_and_one_entry():
    wide = [[0.99 if i == j else 0.01 for j in range(5)] for i in range(5)]
    outputs = made_outputs(
        (0, 0.7, wide[0]),
        (1, 0.9, wide[1]),
        (0, 0.8, wide[2]),
        (1, 0.9, wide[3]),
        (2, 0.9, wide[4]),
        shape=(1, 5),
    )
    result = panoptic_segmentation(outputs, label_ids_to_fuse={0})[0]
    assert result["segmentation"].tolist() == [[1, 2, 1, 3, 4]]
    assert result["segments_info"] == [
        {"id": 1, "label_id": 0, "was_fused": True, "score": pytest.approx(0.8, abs=1e-5)},
        {"id": 2, "label_id": 1, "was_fused": False, "score": pytest.approx(0.9, abs=1e-5)},
        {"id": 3, "label_id": 1, "was_fused": False, "score": pytest.approx(0.9, abs=1e-5)},
        {"id": 4, "label_id": 2, "was_fused": False, "score": pytest.approx(0.9, abs=1e-5)},
    ]


# ---- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 1.1])
def test_panoptic_is_int32_with_void_0_and_ids_from_1(threshold):
    result = panoptic_segmentation(random_outputs(2), threshold, 0.5, 0.1, target_sizes=[(11, 13)])[
        0
    ]
    assert result["segmentation"].dtype == torch.int32
    ids = {s["id"] for s in result["segments_info"]}
    assert ids == set(range(1, len(ids) + 1)) == set(result["segmentation"].unique().tolist()) - {0}
    assert bool(ids) == (threshold < 1)
    assert result["segmentation"].shape == (11, 13)


@pytest.mark.parametrize("threshold", [0.3, 1.1])
def test_instance_is_int32_with_void_0_and_ids_from_1(threshold):
    result = instance_segmentation(random_outputs(), threshold, target_sizes=[(11, 13)])[0]
    assert result["segmentation"].dtype == torch.int32
    ids = {s["id"] for s in result["segments_info"]}
    assert ids == set(range(1, len(ids) + 1)) == set(result["segmentation"].unique().tolist()) - {0}
    assert bool(ids) == (threshold < 1)
    assert result["segmentation"].shape == (11, 13)


def test_where_nothing_is_found_other_forms_are_empty():
    outputs = random_outputs()
    binary = instance_segmentation(outputs, 1.1, return_binary_maps=True)[0]
    assert binary["segmentation"].shape == (0, 16, 24)
    assert binary["segmentation"].dtype == torch.bool
    assert instance_segmentation(outputs, 1.1, return_coco_annotation=True)[0] == {
        "segmentation": [],
        "segments_info": [],
    }


# ---- instance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask_threshold", "expected", "mean"),
    [(0.3, [1, 1, 1, 0], 2.05 / 3), (0.5, [1, 1, 0, 0], 1.65 / 2), (0.9, [1, 0, 0, 0], 0.95)],
)
def test_instance_masks_honour_the_mask_threshold(mask_threshold, expected, mean):
    outputs = made_outputs((1, 0.9, [0.95, 0.7, 0.4, 0.1]))
    result = instance_segmentation(outputs, 0.1, mask_threshold)[0]
    assert result["segmentation"].tolist() == [expected]
    assert result["segments_info"][0]["score"] == pytest.approx(0.9 * mean, abs=1e-5)


def test_as_many_pairs_of_query_and_label_are_candidates_as_are_asked_for():
    outputs = made_outputs((0, 0.9, [0.9] * 4), (1, 0.5, [0.9] * 4))
    outputs.class_queries_logits[0, 0, 2] = outputs.class_queries_logits[0, 0, 0] - 1
    for count, labels in ((1, [0]), (None, [0, 1]), (3, [0, 1, 2]), (100, [0, 1, 2, 0, 1, 2])):
        found = instance_segmentation(outputs, 0.0, return_coco_annotation=True, candidates=count)[
            0
        ]["segments_info"]
        assert sorted(s["label_id"] for s in found) == sorted(labels), count


def test_instances_hidden_by_others_are_left_out_of_the_map():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.9, 0.01]), (1, 0.8, [0.01, 0.9, 0.9, 0.9]))
    assert instance_segmentation(outputs)[0]["segmentation"].tolist() == [[1, 1, 1, 0]]
    third = instance_segmentation(outputs, overlap_mask_area_threshold=1 / 3)[0]
    assert third["segmentation"].tolist() == [[1, 1, 1, 2]]


def test_an_instance_left_out_hides_nothing():
    outputs = made_outputs(
        (0, 0.9, [0.9, 0.9, 0.01, 0.01]),
        (1, 0.8, [0.9, 0.9, 0.9, 0.01]),
        (2, 0.7, [0.01, 0.01, 0.9, 0.9]),
    )
    result = instance_segmentation(outputs)[0]
    assert result["segmentation"].tolist() == [[1, 1, 2, 2]]
    assert [s["label_id"] for s in result["segments_info"]] == [0, 2]


@pytest.mark.parametrize("order", [1, -1])
def test_the_higher_score_wins_in_any_order_of_queries(order):
    queries = [(0, 0.9, [0.9, 0.9, 0.01, 0.01]), (1, 0.7, [0.01, 0.9, 0.9, 0.9])]
    result = instance_segmentation(made_outputs(*queries[::order]), overlap_mask_area_threshold=0.5)
    assert result[0]["segmentation"].tolist() == [[1, 1, 2, 2]]
    assert [s["label_id"] for s in result[0]["segments_info"]] == [0, 1]


def test_logits_are_resized_before_the_mask_threshold():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.3, 0.01]))
    result = instance_segmentation(outputs, target_sizes=[(3, 40)])[0]["segmentation"]
    expected = F.interpolate(
        outputs.masks_queries_logits, size=(3, 40), mode="bilinear", align_corners=False
    )
    assert torch.equal(result == 1, expected[0, 0] >= 0)
    assert (result == 1).sum().item() != 3 * 20  # what resizing the binary mask would give


def test_a_score_is_class_probability_times_mean_mask_probability_inside():
    outputs = made_outputs((2, 0.8, [0.9, 0.7, 0.2, 0.1]))
    (segment,) = instance_segmentation(outputs, threshold=0.6)[0]["segments_info"]
    assert segment["score"] == pytest.approx(0.8 * 0.8, abs=1e-5)
    assert segment == {"id": 1, "label_id": 2, "was_fused": False, "score": segment["score"]}
    assert instance_segmentation(outputs, threshold=0.65)[0]["segments_info"] == []


def test_a_query_can_be_an_instance_of_two_labels():
    outputs = made_outputs((0, 0.5, [0.99] * 4), (1, 1e-4, [0.99] * 4))
    outputs.class_queries_logits[0, 0, 1] = outputs.class_queries_logits[0, 0, 0]
    result = instance_segmentation(outputs, threshold=0.3, return_binary_maps=True)[0]
    assert {s["label_id"] for s in result["segments_info"]} == {0, 1}
    assert result["segmentation"].all()


def test_there_are_no_more_candidates_than_queries():
    outputs = made_outputs((0, 0.55, [0.99] * 4))
    outputs.class_queries_logits[0, 0, 1] = outputs.class_queries_logits[0, 0, 0] - 0.1
    assert len(instance_segmentation(outputs, 0.3)[0]["segments_info"]) == 1
    two = instance_segmentation(outputs, 0.3, return_binary_maps=True)[0]["segments_info"]
    assert [s["label_id"] for s in two] == [0]


def test_both_return_forms_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        instance_segmentation(
            random_outputs(), return_coco_annotation=True, return_binary_maps=True
        )


def test_binary_maps_and_run_lengths_keep_overlaps_whole():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.9, 0.01]), (1, 0.8, [0.9, 0.9, 0.9, 0.9]))
    maps = instance_segmentation(outputs, return_binary_maps=True)[0]
    runs = instance_segmentation(outputs, return_coco_annotation=True)[0]
    assert maps["segmentation"].int().tolist() == [[[1, 1, 1, 0]], [[1, 1, 1, 1]]]
    assert maps["segments_info"] == runs["segments_info"]
    assert runs["segmentation"] == [mask_to_rle(mask) for mask in maps["segmentation"]]


def test_for_run_lengths_every_mask_is_resized_once(monkeypatch):
    sizes = []
    resize = mask_resizer.MaskResizer.__call__

    def counted(self, logits, *rows):
        sizes.append(len(logits))
        return resize(self, logits, *rows)

    monkeypatch.setattr(mask_resizer.MaskResizer, "__call__", counted)
    outputs = random_outputs(5, queries=20, labels=3)
    result = instance_segmentation(outputs, 0.0, return_coco_annotation=True, candidates=60)
    assert len(result[0]["segmentation"]) > 20  # queries under several labels
    assert sizes == [1] * 20 * len(result)


def test_instances_at_384_equal_transformers():
    transformers = pytest.importorskip("transformers")
    outputs = random_outputs(4, batch=2, logits_size=(384, 384))
    arguments = {"threshold": 0.3, "return_binary_maps": True}
    theirs = transformers.Mask2FormerImageProcessor()
    expected = theirs.post_process_instance_segmentation(outputs, **arguments)
    for ours, reference in zip(instance_segmentation(outputs, **arguments), expected, strict=True):
        order = np.argsort([-s["score"] for s in reference["segments_info"]])
        assert len(order) > 2
        for i, j in enumerate(order):
            mine, other = ours["segments_info"][i], reference["segments_info"][j]
            assert mine["label_id"] == other["label_id"]
            assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
            assert torch.equal(ours["segmentation"][i].float(), reference["segmentation"][j])


# ---- thresholds ---------------------------------------------------------------------------------


def half_and_half():
    """One query whose class and mask probabilities are 0.5, exactly."""
    return SimpleNamespace(
        class_queries_logits=torch.tensor([[[0.0, 0.0]]]),
        masks_queries_logits=torch.zeros(1, 1, 1, 2),
    )


def test_a_panoptic_score_and_a_mask_probability_equal_to_their_threshold_reach_it():
    def result(threshold, mask_threshold):
        return panoptic_segmentation(half_and_half(), threshold, mask_threshold)[0]["segmentation"]

    # of two equal class probabilities the first is taken, which is not "no object"
    assert result(0.5, 0.5).tolist() == [[1, 1]]
    assert result(0.500001, 0.5).tolist() == [[0, 0]]
    assert result(0.5, 0.500001).tolist() == [[0, 0]]


@pytest.mark.parametrize("form", ["map", "return_binary_maps", "return_coco_annotation"])
def test_an_instance_score_and_a_mask_probability_equal_to_their_threshold_reach_it(form):
    def found(threshold, mask_threshold):
        arguments = {} if form == "map" else {form: True}
        results = instance_segmentation(half_and_half(), threshold, mask_threshold, **arguments)
        return len(results[0]["segments_info"])

    assert found(0.25, 0.5) == 1
    assert found(0.250001, 0.5) == 0
    assert found(0.25, 0.500001) == 0


def test_a_visible_share_equal_to_the_overlap_threshold_reaches_it():
    outputs = made_outputs((0, 0.9, [0.9, 0.9, 0.9, 0.01]), (1, 0.8, [0.9, 0.9, 0.9, 0.9]))
    for segmentation in (instance_segmentation, panoptic_segmentation):
        for overlap, expected in ((0.25, [[1, 1, 1, 2]]), (0.250001, [[1, 1, 1, 0]])):
            result = segmentation(outputs, overlap_mask_area_threshold=overlap)[0]
            assert result["segmentation"].tolist() == expected


# ---- devices and dtypes -------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_stay_on_the_device_of_the_logits():
    outputs = random_outputs(2)
    expected = all_tasks(outputs, [(37, 51)])
    outputs.class_queries_logits = outputs.class_queries_logits.cuda()
    outputs.masks_queries_logits = outputs.masks_queries_logits.cuda()
    for results, references in zip(all_tasks(outputs, [(37, 51)]), expected, strict=True):
        result, reference = (
            r[0] if isinstance(r[0], torch.Tensor) else r[0]["segmentation"]
            for r in (results, references)
        )
        assert result.device.type == "cuda"
        assert (result.cpu() == reference).float().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_what_their_float32_values_give(dtype):
    outputs = random_outputs(6)
    halves = {k: v.to(dtype) for k, v in vars(outputs).items() if v is not None}
    floats = {k: v.float() for k, v in halves.items()}
    results = [all_tasks(SimpleNamespace(**values), [(30, 40)]) for values in (halves, floats)]
    assert torch.equal(results[0][0][0], results[1][0][0])
    for half, full in zip(
        results[0][1] + results[0][2], results[1][1] + results[1][2], strict=True
    ):
        assert half["segments_info"] == full["segments_info"]
        assert torch.equal(half["segmentation"], full["segmentation"])


def test_no_graph_is_kept():
    outputs = random_outputs()
    outputs.masks_queries_logits.requires_grad_()
    maps = instance_segmentation(outputs, 0.3, return_binary_maps=True)[0]["segmentation"]
    assert not maps.requires_grad
