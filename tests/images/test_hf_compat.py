"""`hf_compat=True` is bit-identical to the installed transformers."""

import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.images import hf_compat, post_processing
from mask2former.images.processor import Mask2FormerImageProcessor, Mask2FormerImageProcessorPil
from tests.samples import made_outputs, random_outputs

transformers = pytest.importorskip("transformers")

SEEDS = [*range(49), 103]  # 103: a ratio of areas equal to the threshold
TARGETS = [(57, 40), (33, 91)]


@pytest.fixture(scope="module")
def theirs():
    return transformers.Mask2FormerImageProcessor()


@pytest.fixture(scope="module")
def ours():
    return Mask2FormerImageProcessor(hf_compat=True)


def random_batch(seed):
    return random_outputs(seed, batch=2, queries=12, labels=6, logits_size=(24, 20))


def assert_same(results, references):
    assert len(results) == len(references)
    for result, reference in zip(results, references, strict=True):
        assert result["segments_info"] == reference["segments_info"]
        ours, theirs = result["segmentation"], reference["segmentation"]
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        else:
            assert ours == theirs


@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_semantic(seed, target_sizes, ours, theirs):
    outputs = random_batch(seed)
    result = ours.post_process_semantic_segmentation(outputs, target_sizes)
    reference = theirs.post_process_semantic_segmentation(outputs, target_sizes)
    assert all(torch.equal(a, b) for a, b in zip(result, reference, strict=True))


@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_instance(seed, target_sizes, ours, theirs):
    outputs = random_batch(seed)
    assert_same(
        ours.post_process_instance_segmentation(outputs, 0.3, target_sizes=target_sizes),
        theirs.post_process_instance_segmentation(outputs, 0.3, target_sizes=target_sizes),
    )


@pytest.mark.parametrize("form", ["return_coco_annotation", "return_binary_maps"])
@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS[-3:])
def test_other_forms_of_instances(seed, target_sizes, form, ours, theirs):
    outputs = random_batch(seed)
    arguments = {"threshold": 0.3, "target_sizes": target_sizes, form: True}
    assert_same(
        ours.post_process_instance_segmentation(outputs, **arguments),
        theirs.post_process_instance_segmentation(outputs, **arguments),
    )


@pytest.mark.parametrize("label_ids_to_fuse", [set(), {0, 2, 3}])
@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_panoptic(seed, target_sizes, label_ids_to_fuse, ours, theirs):
    outputs = random_batch(seed)
    arguments = {
        "threshold": 0.3,
        "overlap_mask_area_threshold": 0.2,
        "label_ids_to_fuse": label_ids_to_fuse,
        "target_sizes": target_sizes,
    }
    assert_same(
        ours.post_process_panoptic_segmentation(outputs, **arguments),
        theirs.post_process_panoptic_segmentation(outputs, **arguments),
    )


def test_the_random_outputs_have_instances_and_repeated_ids(ours):
    """Else the comparisons above would compare little."""
    outputs = random_batch(3)
    assert len(ours.post_process_instance_segmentation(outputs, 0.3)[0]["segments_info"]) > 5
    segments = ours.post_process_panoptic_segmentation(
        outputs, 0.3, overlap_mask_area_threshold=0.2, label_ids_to_fuse={0, 2, 3}
    )[0]["segments_info"]
    ids = [segment["id"] for segment in segments]
    assert len(ids) > len(set(ids))


def test_nothing_found(ours, theirs):
    outputs = random_batch(0)
    for task in ("instance", "panoptic"):
        name = f"post_process_{task}_segmentation"
        arguments = {"threshold": 1.1, "target_sizes": TARGETS}
        assert_same(
            getattr(ours, name)(outputs, **arguments), getattr(theirs, name)(outputs, **arguments)
        )


# ---- the differences, one by one ----------------------------------------------------------------


def both(task, outputs, **arguments):
    """The first image's result, after a check that all equal transformers'."""
    name = f"post_process_{task}_segmentation"
    processor = Mask2FormerImageProcessor(hf_compat=True)
    results = getattr(processor, name)(outputs, **arguments)
    references = getattr(transformers.Mask2FormerImageProcessor(), name)(outputs, **arguments)
    if task == "semantic":
        assert torch.equal(results[0], references[0])
    else:
        assert_same(results, references)
    return results[0]


def ids_and_labels(result):
    return [(segment["id"], segment["label_id"]) for segment in result["segments_info"]]


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_masks_have_384_pixels_and_lose_what_is_finer(task):
    stripes = torch.zeros(1, 1, 4, 1200)
    stripes[..., ::2] = 40
    classes = torch.tensor([[[9.0, 0.0]]])
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=stripes - 20)
    result = both(task, outputs)
    assert (result if task == "semantic" else result["segmentation"]).shape == (384, 384)
    if task != "semantic":
        result = both(task, outputs, target_sizes=[(4, 1200)])["segmentation"][0]
        assert (result[1:] == result[:-1]).sum() > 600


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_padding_is_not_cropped(task):
    outputs = random_batch(3)
    whole = both(task, outputs)
    outputs.image_sizes = [(48, 30, 96, 80)] * 2
    cropped = both(task, outputs)
    if task != "semantic":
        whole, cropped = whole["segmentation"], cropped["segmentation"]
    assert torch.equal(whole, cropped)


def test_areas_are_tested_on_weighted_probabilities():
    outputs = made_outputs((1, 0.6, [0.7, 0.7, 0.7, 0.01]))
    result = both("panoptic", outputs, target_sizes=[(1, 4)])
    assert result["segments_info"] == []
    assert result["segmentation"].tolist() == [[0, 0, 0, 0]]


def test_pixels_under_the_mask_threshold_are_kept():
    outputs = made_outputs((1, 0.9, [0.9, 0.8, 0.45, 0.3]))
    result = both("panoptic", outputs, target_sizes=[(1, 4)], overlap_mask_area_threshold=0)
    assert result["segmentation"].tolist() == [[1, 1, 1, 1]]


def test_ids_repeat_and_fused_segments_have_many_entries():
    wide = [[0.99 if i == j else 0.01 for j in range(5)] for i in range(5)]
    labels = [0, 1, 0, 1, 2]
    outputs = made_outputs(*((label, 0.9, wide[i]) for i, label in enumerate(labels)), shape=(1, 5))
    result = both("panoptic", outputs, label_ids_to_fuse={0}, target_sizes=[(1, 5)])
    assert ids_and_labels(result) == [(1, 0), (2, 1), (1, 0), (2, 1), (3, 2)]
    assert result["segmentation"].tolist() == [[1, 2, 1, 2, 3]]


def test_where_nothing_is_found_the_map_is_minus_one_in_floats():
    outputs = made_outputs((1, 0.9, [0.9, 0.9, 0.1, 0.1]))
    found = both("panoptic", outputs, target_sizes=[(1, 4)])["segmentation"]
    assert (found.dtype, found.tolist()) == (torch.int32, [[1, 1, 1, 1]])
    nothing = both("panoptic", outputs, threshold=0.95, target_sizes=[(1, 4)])["segmentation"]
    assert (nothing.dtype, nothing.tolist()) == (torch.float32, [[-1, -1, -1, -1]])
    instances = both("instance", outputs, target_sizes=[(1, 4)])["segmentation"]
    assert (instances.dtype, instances.tolist()) == (torch.float32, [[0, 0, -1, -1]])


def test_instances_have_no_mask_and_overlap_thresholds():
    outputs = made_outputs((1, 0.9, [0.95, 0.9, 0.6, 0.1]), (1, 0.95, [0.9, 0.9, 0.1, 0.1]))
    arguments = {"target_sizes": [(1, 4)], "threshold": 0.1}
    result = both("instance", outputs, **arguments)
    thresholds = {"mask_threshold": 0.99, "overlap_mask_area_threshold": 0.99}
    ignored = both("instance", outputs, **arguments, **thresholds)
    assert torch.equal(result["segmentation"], ignored["segmentation"])
    assert result["segments_info"] == ignored["segments_info"]
    assert len(result["segments_info"]) == 2


def test_a_low_score_can_cover_a_high_one():
    """Masks are painted in the order of class probabilities, rising or falling as topk has it."""
    sure_mask, sure_class = (0, 0.7, [0.01, 0.99, 0.99, 0.99]), (1, 0.95, [0.9, 0.55, 0.55, 0.01])
    sure_both, unsure = (0, 0.95, [0.01, 0.99, 0.99, 0.99]), (1, 0.7, [0.9, 0.9, 0.9, 0.01])
    covered = []
    for queries in ((sure_mask, sure_class), (sure_both, unsure)):
        result = both("instance", made_outputs(*queries), threshold=0.3, target_sizes=[(1, 4)])
        best, worst = sorted(result["segments_info"], key=lambda segment: -segment["score"])
        assert best["label_id"] == 0
        covered.append(result["segmentation"][0, 1] == worst["id"])
    assert any(covered)


def test_masks_are_resized_by_nearest():
    """Three pixels at a time belong to the mask or not."""
    outputs = made_outputs((1, 0.95, [0.9, 0.65, 0.3, 0.1]))
    result = both("instance", outputs, threshold=0.3, target_sizes=[(1, 1152)])["segmentation"][0]
    right = post_processing.instance_segmentation(outputs, 0.3, target_sizes=[(1, 1152)])
    assert int((result == 0).sum()) % 3 == 0
    assert abs(int((result == 0).sum()) - int((right[0]["segmentation"] == 1).sum())) in (1, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_instance_map_is_on_the_cpu():
    outputs = random_batch(3)
    for name, logits in vars(outputs).items():
        setattr(outputs, name, logits.cuda())
    result = Mask2FormerImageProcessor(hf_compat=True).post_process_instance_segmentation(outputs)
    assert result[0]["segmentation"].device.type == "cpu"


def test_run_lengths_follow_the_rows_start_at_one_and_include_the_background():
    outputs = made_outputs((1, 0.95, [0.9, 0.9, 0.1, 0.1] * 2), shape=(2, 4))
    result = both("instance", outputs, target_sizes=[(2, 4)], return_coco_annotation=True)
    assert result["segmentation"] == [[3, 2, 7, 2], [1, 2, 5, 2]]


def test_stuff_is_an_instance_and_nothing_is_fused():
    processor = Mask2FormerImageProcessor(hf_compat=True, thing_label_ids=[1])
    outputs = random_batch(1)
    segments = processor.post_process_instance_segmentation(outputs, 0.3)[0]["segments_info"]
    assert {segment["label_id"] for segment in segments} - {1}
    panoptic = processor.post_process_panoptic_segmentation(outputs, 0.3)[0]["segments_info"]
    assert not any(segment["was_fused"] for segment in panoptic)


# ---- images -------------------------------------------------------------------------------------


def test_sizes_equal_transformers():
    transforms = pytest.importorskip("transformers.image_transforms")
    generator = np.random.default_rng(3)
    for _ in range(500):
        size = tuple(int(n) for n in generator.integers(1, 2500, 2))
        shortest, longest = (int(n) for n in generator.integers(200, 1500, 2))
        expected = transforms.get_size_with_aspect_ratio(size, shortest, longest)
        assert hf_compat.shortest_edge_size(size, shortest, longest) == expected


@pytest.mark.parametrize(("size", "expected"), [(None, (800, 1088)), ((70, 40), (96, 64))])
def test_edges_are_truncated_and_then_stretched_to_the_divisor(size, expected):
    """640 * 800 / 480 is 1066.7; a pair of lengths is (height, width)."""
    processor = Mask2FormerImageProcessor(hf_compat=True, size=size)
    assert processor.resized_size((480, 640)) == expected
    assert hf_compat.shortest_edge_size((480, 640), 800, 1333) == (800, 1066)


def test_padding_and_cropping_cannot_be_chosen():
    rules = hf_compat.TransformersRules()
    assert rules.pads(False)
    assert not rules.crops(True)
    assert rules.padded_size((45, 61), 32) == (45, 61)
    assert (rules.mask_padding(255), rules.mask_padding(None)) == (255, 0)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_preprocessing(seed, reduce, theirs):
    pytest.importorskip("torchvision")  # what transformers calls its reference needs it
    generator = np.random.default_rng(seed)
    shapes = [(50, 70), (91, 43)]
    images = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    maps = [generator.integers(0, 260, shape) for shape in shapes]
    settings = {
        "size": {"shortest_edge": int(generator.integers(30, 90)), "longest_edge": 100},
        "ignore_index": 255,
        "do_reduce_labels": reduce,
    }
    ours = Mask2FormerImageProcessor(hf_compat=True, **settings)
    result = ours(images, maps, return_tensors="pt")
    reference = transformers.Mask2FormerImageProcessor(**settings)(
        images, maps, return_tensors="pt"
    )
    assert torch.equal(result.pixel_values, reference["pixel_values"])
    assert torch.equal(result.pixel_mask, reference["pixel_mask"])
    for name in ("mask_labels", "class_labels"):
        for a, b in zip(result[name], reference[name], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("resample", list(Image.Resampling)[:6])
def test_preprocessing_in_pillow(resample):
    generator = np.random.default_rng(5)
    shapes = [(50, 70), (91, 43)]
    images = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    maps = [generator.integers(0, 256, shape) for shape in shapes]
    settings = {
        "size": {"shortest_edge": 60, "longest_edge": 100},
        "resample": resample,
        "ignore_index": 255,
        "do_reduce_labels": True,
    }
    ours = Mask2FormerImageProcessorPil(hf_compat=True, **settings)
    result = ours(images, maps, return_tensors="pt")
    theirs = transformers.Mask2FormerImageProcessorPil(**settings)
    reference = theirs(images, maps, return_tensors="pt")
    # the reference rescales and normalizes in two steps; measured 2.4e-7
    torch.testing.assert_close(result.pixel_values, reference["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(result.pixel_mask, reference["pixel_mask"])
    for name in ("mask_labels", "class_labels"):
        for a, b in zip(result[name], reference[name], strict=True):
            assert torch.equal(a, torch.as_tensor(b))


def test_the_instance_whose_reduced_id_is_the_ignore_index_is_lost():
    ids = torch.tensor([[1, 256]])
    masks, labels = hf_compat.masks_and_labels(ids, {1: 3, 256: 7}, 255, True, 0)
    assert labels.tolist() == [2]
    assert masks.tolist() == [[[1.0, 0.0]]]


def test_instance_mappings_equal_transformers():
    pytest.importorskip("torchvision")  # what transformers calls its reference needs it
    ids = np.random.default_rng(0).integers(0, 5, (40, 40))
    mapping = {0: 0, 1: 4, 2: 1, 3: 4, 4: 2}
    settings = {"do_resize": False, "ignore_index": 0, "do_reduce_labels": True}
    image = np.zeros((40, 40, 3), np.uint8)
    result = Mask2FormerImageProcessor(hf_compat=True, **settings)(
        image, ids, instance_id_to_semantic_id=mapping
    )
    reference = transformers.Mask2FormerImageProcessor(**settings)(image, ids, mapping)
    assert torch.equal(result.class_labels[0], reference["class_labels"][0])
    assert torch.equal(result.mask_labels[0], reference["mask_labels"][0])


def test_reducing_without_an_ignore_index_is_refused():
    with pytest.raises(ValueError, match="ignore_index"):
        hf_compat.masks_and_labels(torch.zeros(2, 2).long(), None, None, True, 0)


@pytest.mark.parametrize("resample", list(hf_compat.RESIZE_MODES))
@pytest.mark.parametrize("shape", [(50, 70), (200, 61)])
def test_every_filter_equals_torchvision(resample, shape):
    pytest.importorskip("torchvision")  # what transformers calls its reference needs it
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    settings = {"size": {"height": 70, "width": 90}, "resample": resample}
    ours = Mask2FormerImageProcessor(hf_compat=True, **settings)(image, return_tensors="pt")
    theirs = transformers.Mask2FormerImageProcessor(**settings)(image, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])


def test_bytes_are_resized_as_floats_where_torchvision_does_so(monkeypatch):
    """On CPUs without vector instructions that it knows."""
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    settings = {"size": {"height": 70, "width": 90}}
    ours = Mask2FormerImageProcessor(hf_compat=True, **settings)(image, return_tensors="pt")
    theirs = transformers.Mask2FormerImageProcessor(**settings)(image, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])


@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.HAMMING])
def test_filters_that_tensors_lack_are_refused(resample):
    pytest.importorskip("torchvision")
    image, settings = np.zeros((50, 70, 3), np.uint8), {"size": 40, "resample": resample}
    with pytest.raises(ValueError, match=f"{resample.name}.*choose NEAREST, BILINEAR"):
        Mask2FormerImageProcessor(hf_compat=True, **settings)(image)
    with pytest.raises((NotImplementedError, ValueError)):
        transformers.Mask2FormerImageProcessor(**settings)(image)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_pad": False},
        {"do_center_crop": True, "crop_size": {"height": 20, "width": 20}},
        {"size": (70, 40)},
        {"pad_size": {"height": 100, "width": 120}},
        {"size": {"max_height": 60, "max_width": 60}},
        {"do_rescale": False},
        {"do_normalize": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_arguments_do_what_they_do_in_transformers(settings):
    pytest.importorskip("torchvision")
    images = [np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)] * 2
    settings = {"size": {"shortest_edge": 40, "longest_edge": 90}, **settings}
    ours = Mask2FormerImageProcessor(hf_compat=True, **settings)
    theirs = transformers.Mask2FormerImageProcessor(**settings)
    result = ours(images, return_tensors="pt")
    reference = theirs(images, return_tensors="pt")
    assert torch.equal(result.pixel_values, reference["pixel_values"])
    assert torch.equal(result.pixel_mask, reference["pixel_mask"])
