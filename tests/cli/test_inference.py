"""Choosing a device, and segmenting one image."""

import shutil

import numpy as np
import pytest
import torch

from mask2former.cli.inference import choose_device, load_model, segment_image
from mask2former.cli.usage import UsageError
from mask2former.images.processor import Mask2FormerImageProcessor


def test_without_a_name_the_device_is_one_that_works():
    assert torch.zeros(1, device=choose_device(None)).item() == 0


def test_a_named_device_is_taken():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used_is_a_usage_error(name):
    with pytest.raises(UsageError, match=name):
        choose_device(name)


def test_a_folder_without_a_processor_gets_the_default_one(tiny_model, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, tmp_path)
    _, processor = load_model(tmp_path, torch.device("cpu"))
    assert processor == Mask2FormerImageProcessor()
    assert f"{tmp_path} has no preprocessor_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_segments_cover_the_map_at_the_resolution_of_the_image(tiny_model, picture, task):
    model, processor = load_model(tiny_model, torch.device("cpu"))
    result = segment_image(model, processor, picture, task, threshold=0, overlap_threshold=0)
    assert result.ids.dtype == np.int32
    assert result.ids.shape == (picture.height, picture.width)
    areas = {segment["id"]: segment["area"] for segment in result.segments}
    ids, counts = np.unique(result.ids[result.ids > 0], return_counts=True)
    assert areas == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert all(type(segment["label_id"]) is int for segment in result.segments)


def test_a_high_threshold_leaves_no_segment(tiny_model, picture):
    model, processor = load_model(tiny_model, torch.device("cpu"))
    result = segment_image(model, processor, picture, "panoptic", threshold=1.0)
    assert result.segments == []
    assert not result.ids.any()
