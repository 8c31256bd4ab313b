from enum import Enum

import pytest
from PIL import Image

from mask2former.images.settings import (
    SIZE_KEYS,
    checked_choice,
    checked_size,
    modern,
    per_channel,
    resampling,
    resize_target,
)

Resampling = Image.Resampling


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, {"shortest_edge": 800, "longest_edge": 1333}),
        (480, {"shortest_edge": 480}),
        ((640, 480), {"width": 640, "height": 480}),
        ([640, 480], {"width": 640, "height": 480}),
        ({"shortest_edge": 9, "longest_edge": None}, {"shortest_edge": 9}),
    ],
)
def test_every_form_of_size_becomes_a_dict(size, expected):
    assert resize_target(size, False, ("width", "height")) == expected


def test_an_int_is_a_square_if_asked():
    assert resize_target(384, True, ("width", "height")) == {"height": 384, "width": 384}
    assert resize_target({"shortest_edge": 9}, True, ("width", "height")) == {"shortest_edge": 9}


def test_a_pair_has_the_order_that_is_asked_for():
    pair = resize_target((640, 480), False, ("height", "width"))
    assert pair == {"height": 640, "width": 480}


@pytest.mark.parametrize("size", ["large", (1, 2, 3), {"width": 3}, {"shortest_edge": 1.5}, (0, 5)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size must be a dict"):
        resize_target(size, False, ("width", "height"))


def test_checked_size_keeps_what_is_not_none():
    size = {"shortest_edge": 3, "longest_edge": None, "height": None}
    assert checked_size("size", size, SIZE_KEYS) == {"shortest_edge": 3}


def test_per_channel_is_three_numbers():
    assert per_channel("image_mean", None, (1, 2, 3)) == [1.0, 2.0, 3.0]
    assert per_channel("image_mean", 0.5, (1, 2, 3)) == [0.5] * 3
    with pytest.raises(ValueError, match="image_mean must be a number or three"):
        per_channel("image_mean", [1, 2], (1, 2, 3))


def test_checked_choice_names_the_choices():
    checked_choice("return_tensors", "pt", (None, "pt"))
    with pytest.raises(ValueError, match="return_tensors must be None or 'pt', not 'tf'"):
        checked_choice("return_tensors", "tf", (None, "pt"))


class InterpolationMode(Enum):
    """torchvision's, which need not be installed."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


@pytest.mark.parametrize("mode", list(InterpolationMode))
def test_a_filter_of_torchvision_is_the_one_of_pillow(mode):
    expected = Resampling[mode.name.removesuffix("_EXACT")]
    assert resampling(mode) == resampling(mode.value) == resampling(expected) == expected


@pytest.mark.parametrize("resample", list(Resampling))
def test_a_filter_may_be_a_number(resample):
    assert resampling(int(resample)) == resample


@pytest.mark.parametrize("resample", [17, "sharp", None, 1.5])
def test_other_filters_are_refused(resample):
    with pytest.raises(ValueError, match="resample must be one of NEAREST, "):
        resampling(resample)


@pytest.mark.parametrize(
    "kind",
    [
        "Mask2FormerImageProcessor",
        "Mask2FormerImageProcessorFast",
        "Mask2FormerImageProcessorPil",
        "MaskFormerImageProcessor",
        "MaskFormerImageProcessorFast",
        "MaskFormerFeatureExtractor",
    ],
)
@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_the_types_that_mean_this_processor_are_taken(kind, key):
    assert modern({key: kind, "do_resize": False}) == {"do_resize": False}


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="image_processor_type is 'ViTImageProcessor'"):
        modern({"image_processor_type": "ViTImageProcessor"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"reduce_labels": True}, {"do_reduce_labels": True}),
        ({"reduce_labels": True, "do_reduce_labels": False}, {"do_reduce_labels": False}),
        ({"reduce_labels": None}, {}),
        ({"size_divisibility": 0}, {"size_divisor": 0}),
        ({"size": 480, "max_size": 640}, {"size": {"shortest_edge": 480, "longest_edge": 640}}),
        ({"size": 480, "_max_size": 640}, {"size": {"shortest_edge": 480, "longest_edge": 640}}),
        ({"max_size": 1000}, {"size": {"shortest_edge": 800, "longest_edge": 1000}}),
        (
            {"size": {"height": 384, "width": 384}, "_max_size": 1333},
            {"size": {"height": 384, "width": 384}},
        ),
    ],
)
def test_old_names_become_todays(old, new):
    assert modern(old) == new
