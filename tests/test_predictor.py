"""A predictor: what it finds, and what decides how."""

import inspect
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former import (
    DataError,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Predictor,
    Thresholds,
)
from mask2former.images import post_processing
from mask2former.predictor import default_device

EVERYTHING = Thresholds(threshold=0, overlap_threshold=0)  # scores of random weights are low
TASKS = ["panoptic", "instance", "semantic"]


@pytest.fixture
def model(tiny_model):
    return Mask2FormerForUniversalSegmentation.from_pretrained(tiny_model)


@pytest.fixture
def processor(tiny_model):
    return Mask2FormerImageProcessor.from_pretrained(tiny_model)


def load(folder, task=None, **options) -> Predictor:
    return Predictor.from_pretrained(folder, task, device="cpu", **options)


def test_without_a_name_the_device_is_one_that_works():
    assert torch.zeros(1, device=default_device()).item() == 0


@pytest.mark.parametrize("task", TASKS)
def test_segments_cover_the_map_at_the_resolution_of_the_image(tiny_model, picture, task):
    found = load(tiny_model, task, thresholds=EVERYTHING)(picture)
    assert found.ids.dtype == np.int32
    assert found.ids.shape == (picture.height, picture.width)
    areas = {segment["id"]: segment["area"] for segment in found.segments}
    ids, counts = np.unique(found.ids[found.ids > 0], return_counts=True)
    assert areas == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert areas
    for segment in found.segments:
        rows, columns = np.nonzero(found.ids == segment["id"])
        x, y, width, height = segment["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert type(segment["label_id"]) is int
        assert segment["label"] == ["cat", "dog", "sky"][segment["label_id"]]
        assert ("score" in segment) == (task != "semantic")


@pytest.mark.parametrize("task", TASKS)
def test_the_segments_come_from_the_documented_post_processing(model, processor, picture, task):
    found = Predictor(model, processor, task, thresholds=EVERYTHING)(picture)
    with torch.no_grad():
        outputs = model(**processor(picture, return_tensors="pt"))
    documented = getattr(processor, f"post_process_{task}_segmentation")
    if task == "semantic":
        expected = documented(outputs, target_sizes=[(64, 96)])[0] + 1
    else:
        options = {"overlap_mask_area_threshold": 0.0, "target_sizes": [(64, 96)]}
        result = documented(outputs, 0.0, **options)[0]
        void = -1 if task == "instance" else 0  # the documented ids of instances count from 0
        expected = result["segmentation"] - void
        assert [s["label_id"] for s in result["segments_info"]] == [
            s["label_id"] for s in found.segments
        ]
    assert np.array_equal(found.ids, expected.numpy())


def test_a_high_threshold_leaves_no_segment(tiny_model, picture):
    found = load(tiny_model, thresholds=Thresholds(threshold=1.0))(picture)
    assert found.segments == []
    assert not found.ids.any()


def test_the_defaults_equal_the_documented_functions(model, processor):
    thresholds = Predictor(model, processor).thresholds
    for documented in (
        post_processing.panoptic_segmentation,
        post_processing.instance_segmentation,
        processor.post_process_panoptic_segmentation,
        processor.post_process_instance_segmentation,
    ):
        parameters = inspect.signature(documented).parameters
        names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
        defaults = tuple(parameters[name].default for name in names)
        assert tuple(vars(thresholds).values()) == defaults


def test_the_task_is_the_configurations_unless_another_is_asked_for(model, processor):
    assert Predictor(model, processor).task == "panoptic"  # as a published file does not say
    model.config.task = "semantic"
    assert Predictor(model, processor).task == "semantic"
    assert Predictor(model, processor, "instance").task == "instance"
    with pytest.raises(ValueError, match="task is 'caption'; give one of panoptic, instance"):
        Predictor(model, processor, "caption")


def test_a_name_of_a_folder_says_nothing_about_the_task(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "mask2former-tiny-ade-semantic")
    assert load(folder).task == "panoptic"


def test_things_are_the_configurations_or_else_the_processors(model, processor, picture):
    def found(**options):
        predictor = Predictor(model, processor, "instance", thresholds=EVERYTHING, **options)
        return {segment["label_id"] for segment in predictor(picture).segments}

    assert found() <= {0, 1}
    assert found(thing_label_ids=[2]) == {2}
    model.config.thing_label_ids = [2]
    assert found() == {2}
    model.config.thing_label_ids = processor.thing_label_ids = None
    assert found() > {2}


def test_what_is_no_thing_is_one_segment_for_each_label(model, processor, picture):
    def count(things):
        predictor = Predictor(
            model, processor, "panoptic", thresholds=EVERYTHING, thing_label_ids=things
        )
        labels = [segment["label_id"] for segment in predictor(picture).segments]
        return len(labels), len(set(labels))

    segments, labels = count([0, 1, 2])
    assert segments > labels
    segments, labels = count([])
    assert segments == labels


@pytest.mark.parametrize("task", TASKS)
def test_transformers_rules_concern_the_preparation_of_images_only(model, processor, picture, task):
    expected = Predictor(model, processor, task, thresholds=EVERYTHING)(picture)
    processor.hf_compat = True  # 64 x 96 pixels are prepared alike, being multiples of 32
    found = Predictor(model, processor, task, thresholds=EVERYTHING)(picture)
    assert processor.hf_compat is True
    assert np.array_equal(found.ids, expected.ids)


def test_a_folder_with_transformers_rules_is_read_without_them(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    Mask2FormerImageProcessor(hf_compat=True).save_pretrained(folder)
    assert load(folder).processor.hf_compat is False


@pytest.mark.parametrize("form", ["array", "tensor", "turned"])
def test_images_may_come_in_any_form(tiny_model, picture, form):
    predictor = load(tiny_model, "semantic")
    pixels = np.asarray(picture)
    image = {
        "array": pixels,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "turned": picture.transpose(Image.Transpose.ROTATE_90),
    }[form]
    if form == "turned":
        image.getexif()[0x0112] = 6  # shown turned by 90 degrees clockwise
    assert np.array_equal(predictor(image).ids, predictor(picture).ids)


def test_an_image_that_the_processors_settings_do_not_suit_is_a_data_error(
    model, processor, picture
):
    processor.pad_size = {"height": 32, "width": 32}
    with pytest.raises(DataError, match=r"preprocessor_config.json do not suit the image: .*pad_"):
        Predictor(model, processor)(picture)


def test_what_is_no_image_is_a_value_error(model, processor):
    with pytest.raises(ValueError, match="Image 0"):
        Predictor(model, processor)(np.zeros(3))


def test_a_folder_without_a_processor_gets_the_default_one(tiny_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    with pytest.warns(UserWarning, match=f"{tmp_path} has no preprocessor_config.json"):
        predictor = load(tmp_path)
    assert predictor.processor == Mask2FormerImageProcessor()


def test_a_folder_without_a_model_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"has no config\.json"):
        load(tmp_path)
