"""A predictor in the classes of a data set."""

import pytest
import torch
from torch.nn import functional as F

from mask2former import Thresholds
from mask2former.evaluation.dataset_predictor import DatasetPredictor
from mask2former.images import post_processing
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.predictor import Logits, Predictor
from tests.data import memory
from tests.data.memory import MemoryDataset
from tests.evaluation.oracle import OracleModel, untouched_pixels
from tests.reference import tiny_model

NAMES = ("cat", "dog", "sky")  # of a `MemoryDataset`


def make_predictor(model, size, **options) -> DatasetPredictor:
    """A predictor on panoptic data, for images that are not resized but padded."""
    dataset = MemoryDataset([memory.sample(torch.zeros(size).int(), [0])], things=NAMES[:2])
    return DatasetPredictor(model, Mask2FormerImageProcessor(do_resize=False), dataset, **options)


@pytest.fixture(scope="module")
def model():
    return tiny_model(id2label=dict(enumerate(NAMES)))


def image(height, width):
    """Noise, uint8 (3, H, W)."""
    numbers = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, height, width), generator=numbers, dtype=torch.uint8)


def test_labels_and_their_names_are_the_data_sets(model):
    other_order = tiny_model(id2label=dict(enumerate(("sky", "cat", "dog"))))
    other_order.load_state_dict(model.state_dict())
    plain = Predictor(model, Mask2FormerImageProcessor(do_resize=False), "panoptic")
    expected = plain.logits(image(64, 96)).class_queries_logits
    predictor = make_predictor(other_order, (64, 96))
    found = predictor.logits(image(64, 96)).class_queries_logits
    assert torch.equal(found, expected[..., [1, 2, 0, 3]])
    assert predictor.id2label == dict(enumerate(NAMES))


def test_instances_that_reach_the_threshold_are_shown_with_the_likelier_on_top():
    sample = memory.sample([[0, 0, 0, 0]], [0])
    left, right = (
        torch.tensor([[True, True, True, False]]),
        torch.tensor([[False, True, True, True]]),
    )
    answers = [[(0, 0.9, left), (1, 0.95, right), (2, 0.99, right), (1, 0.5, left)]]
    model = OracleModel([sample], answers, dict(enumerate(NAMES)))
    dataset = MemoryDataset([sample], things=("cat", "dog"))
    predictor = DatasetPredictor(model, untouched_pixels(), dataset)
    found = predictor.instance(predictor.logits(sample.image))
    assert found.ids.tolist() == [[2, 1, 1, 1]]
    assert [(s["id"], s["label"]) for s in found.segments] == [(1, "dog"), (2, "cat")]


def original_logits(model, pixels, padded_size) -> Logits:
    """Masks as the `forward` of the paper's code makes them: nothing tells the model what is
    padding, and masks are resized to the padded size and cropped."""
    height, width = pixels.shape[-2:]
    padding = (0, padded_size[1] - width, 0, padded_size[0] - height)
    mean, std = (
        torch.tensor(values)[:, None, None] * 255
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.inference_mode():
        outputs = model(pixel_values=F.pad((pixels - mean) / std, padding)[None])
    masks = F.interpolate(
        outputs.masks_queries_logits, padded_size, mode="bilinear", align_corners=False
    )
    return Logits(
        outputs.class_queries_logits, masks[..., :height, :width], None, [(height, width)]
    )


def test_padding_takes_part_as_in_the_papers_code_on_request(model):
    pixels = image(50, 75)
    predictor = make_predictor(model, (50, 75), paper_padding=True)
    found, expected = predictor.logits(pixels), original_logits(model, pixels, (64, 96))
    torch.testing.assert_close(  # measured: 0
        found.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        found.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-5
    )
    options = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0, "target_sizes": [(50, 75)]}
    (segments,) = post_processing.panoptic_segmentation(expected, label_ids_to_fuse={2}, **options)
    predictor.thresholds = Thresholds(threshold=0, overlap_threshold=0)
    assert torch.equal(torch.from_numpy(predictor.panoptic(found).ids), segments["segmentation"])


def test_padding_changes_the_logits_in_the_papers_code_and_not_here(model):
    def class_logits(size, paper_padding):
        predictor = make_predictor(model, size, paper_padding=paper_padding)
        return predictor.logits(image(*size)).class_queries_logits

    without, with_padding = (class_logits((50, 75), switch) for switch in (False, True))
    assert (without - with_padding).abs().max() > 1e-2  # measured: 0.11
    without, with_padding = (class_logits((64, 96), switch) for switch in (False, True))
    torch.testing.assert_close(without, with_padding, rtol=0, atol=1e-5)  # no padding; measured: 0
