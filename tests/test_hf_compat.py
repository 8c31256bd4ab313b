"""`hf_compat=True` against the installed transformers, to the bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mask2former import hf_compat
from mask2former.image_processing import Mask2FormerImageProcessor

transformers = pytest.importorskip("transformers")

SEEDS = [0, 3, 103]  # 103: a ratio of areas equal to the threshold
TARGETS = [(57, 40), (33, 91)]


@pytest.fixture(scope="module")
def theirs():
    return transformers.Mask2FormerImageProcessor()


@pytest.fixture(scope="module")
def ours():
    return Mask2FormerImageProcessor(hf_compat=True)


def random_outputs(seed, queries=12, labels=6):
    """Blobs that overlap, with some queries sure of their label and some of seeing no object."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, queries, 4, 4, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=(24, 20), mode="bicubic") * 8 - 1
    classes = torch.randn(2, queries, labels + 1, generator=generator) * 4
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


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
    outputs = random_outputs(seed)
    result = ours.post_process_semantic_segmentation(outputs, target_sizes)
    reference = theirs.post_process_semantic_segmentation(outputs, target_sizes)
    assert all(torch.equal(a, b) for a, b in zip(result, reference, strict=True))


@pytest.mark.parametrize("form", [None, "return_coco_annotation", "return_binary_maps"])
@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_instance(seed, target_sizes, form, ours, theirs):
    outputs = random_outputs(seed)
    arguments = {"threshold": 0.3, "target_sizes": target_sizes, **({form: True} if form else {})}
    assert_same(
        ours.post_process_instance_segmentation(outputs, **arguments),
        theirs.post_process_instance_segmentation(outputs, **arguments),
    )


@pytest.mark.parametrize("label_ids_to_fuse", [set(), {0, 2, 3}])
@pytest.mark.parametrize("target_sizes", [None, TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_panoptic(seed, target_sizes, label_ids_to_fuse, ours, theirs):
    outputs = random_outputs(seed)
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
    outputs = random_outputs(3)
    assert len(ours.post_process_instance_segmentation(outputs, 0.3)[0]["segments_info"]) > 5
    segments = ours.post_process_panoptic_segmentation(
        outputs, 0.3, overlap_mask_area_threshold=0.2, label_ids_to_fuse={0, 2, 3}
    )[0]["segments_info"]
    ids = [segment["id"] for segment in segments]
    assert len(ids) > len(set(ids))


def test_nothing_found(ours, theirs):
    outputs = random_outputs(0)
    for task in ("instance", "panoptic"):
        name = f"post_process_{task}_segmentation"
        arguments = {"threshold": 1.1, "target_sizes": TARGETS}
        assert_same(
            getattr(ours, name)(outputs, **arguments), getattr(theirs, name)(outputs, **arguments)
        )


def test_things_are_no_matter_to_transformers():
    processor = Mask2FormerImageProcessor(hf_compat=True, thing_label_ids=[1])
    outputs = random_outputs(1)
    segments = processor.post_process_instance_segmentation(outputs, 0.3)[0]["segments_info"]
    assert {segment["label_id"] for segment in segments} - {1}
    panoptic = processor.post_process_panoptic_segmentation(outputs, 0.3)[0]["segments_info"]
    assert not any(segment["was_fused"] for segment in panoptic)


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


def test_instances_of_the_lost_id_are_lost():
    """Row 14 as it is in transformers."""
    ids = torch.tensor([[1, 256]])
    masks, labels = hf_compat.masks_and_labels(ids, {1: 3, 256: 7}, 255, True, 0)
    assert labels.tolist() == [2]
    assert masks.tolist() == [[[1.0, 0.0]]]


def test_instance_mappings_are_those_of_transformers():
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
