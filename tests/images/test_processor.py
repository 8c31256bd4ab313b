import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import mask2former
from mask2former.images.processor import Mask2FormerImageProcessor, Mask2FormerImageProcessorPil
from tests.samples import id_map, picture, random_outputs

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def channels_first(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def unresized(**settings):
    return Mask2FormerImageProcessor(do_resize=False, **settings)


# ---- defaults -----------------------------------------------------------------------------------


def test_arguments_have_the_documented_order_and_defaults():
    processor = Mask2FormerImageProcessor()
    names = list(inspect.signature(Mask2FormerImageProcessor).parameters)
    assert names[:13] == [
        "do_resize",
        "size",
        "size_divisor",
        "resample",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "ignore_index",
        "do_reduce_labels",
        "num_labels",
        "pad_size",
    ]
    assert processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.size_divisor == 32
    assert processor.resample == Image.Resampling.BILINEAR
    assert processor.rescale_factor == 1 / 255
    assert processor.image_mean == [0.485, 0.456, 0.406]
    assert processor.image_std == [0.229, 0.224, 0.225]
    assert processor.ignore_index is None
    assert processor.do_reduce_labels is False


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"width": 3}},
        {"size": {"shortest_edge": 0}},
        {"size": (800, 1333, 3)},
        {"pad_size": {"shortest_edge": 3}},
        {"size_divisor": -1},
        {"rescale_factor": 0},
        {"image_mean": [0.5, 0.5]},
        {"image_std": "imagenet"},
        {"image_std": [0.2, 0, 0.2]},
        {"resample": 17},
        {"do_center_crop": True, "crop_size": None},
        {"crop_size": {"shortest_edge": 3}},
        {"input_data_format": "first"},
        {"data_format": "channels_last"},
        {"return_tensors": "tf"},
    ],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=list(settings)[-1]):
        Mask2FormerImageProcessor(**settings)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="do_resise"):
        Mask2FormerImageProcessor(do_resise=False)
    with pytest.raises(TypeError, match="do_resise"):
        Mask2FormerImageProcessor()(picture(8, 8), do_resise=False)


# ---- images -------------------------------------------------------------------------------------


def test_pixels_are_rescaled_and_normalized():
    image = picture(32, 64)
    batch = unresized()(image, return_tensors="pt")
    expected = (channels_first(image) / 255 - MEAN) / STD
    assert batch.pixel_values.dtype == torch.float32
    torch.testing.assert_close(batch.pixel_values[0], expected, rtol=0, atol=2e-6)


def test_rescaling_and_normalizing_can_be_left_out():
    image = picture(32, 32)
    plain = channels_first(image).float()
    bare = unresized()(image, return_tensors="pt", do_rescale=False, do_normalize=False)
    assert torch.equal(bare.pixel_values[0], plain)
    rescaled = unresized()(image, return_tensors="pt", do_normalize=False, rescale_factor=0.5)
    assert torch.equal(rescaled.pixel_values[0], plain * 0.5)
    normalized = unresized()(plain / 255, return_tensors="pt", do_rescale=False)
    torch.testing.assert_close(normalized.pixel_values[0], (plain / 255 - MEAN) / STD)


def test_rescaling_values_of_0_to_1_is_warned_of():
    with pytest.warns(UserWarning, match="Image 0 has values in 0 to 1.*do_rescale=False"):
        unresized()(np.full((8, 8, 3), 0.5))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, (800, 1067)),
        ({"shortest_edge": 90, "longest_edge": 100}, (75, 100)),
        ({"shortest_edge": 90}, (90, 120)),
        (90, (90, 120)),
        ({"height": 70, "width": 33}, (70, 33)),
        ({"max_height": 60, "max_width": 60}, (45, 60)),
    ],
)
def test_every_form_of_size(size, expected):
    assert Mask2FormerImageProcessor(size=size).resized_size((480, 640)) == expected


def test_a_very_thin_image_keeps_a_pixel():
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    assert processor(np.zeros((1, 5000), np.uint8), return_tensors="pt").pixel_mask.sum() == 64


@pytest.mark.parametrize("shape", [(45, 61), (64, 33)])
def test_the_image_is_padded_to_the_divisor_and_not_stretched(shape):
    image = picture(*shape)
    processor = Mask2FormerImageProcessor(size=48)
    height, width = processor.resized_size(shape)
    batch = processor(image, return_tensors="pt")
    assert batch.pixel_values.shape[2] % 32 == batch.pixel_values.shape[3] % 32 == 0
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    difference = batch.pixel_values[0] * STD + MEAN
    difference = difference[:, :height, :width] * 255 - channels_first(resized)
    assert difference.abs().max() < 1.01
    assert batch.pixel_values[0, :, height:].abs().sum() == 0
    assert batch.pixel_values[0, :, :, width:].abs().sum() == 0


def test_pixel_mask_is_one_on_the_image_and_zero_on_padding():
    batch = unresized()([picture(33, 20), picture(16, 40)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 64, 64)
    assert batch.pixel_mask.dtype == torch.int64
    expected = torch.zeros(2, 64, 64, dtype=torch.int64)
    expected[0, :33, :20] = 1
    expected[1, :16, :40] = 1
    assert torch.equal(batch.pixel_mask, expected)


def test_an_image_gives_the_same_pixels_alone_and_in_a_batch():
    images = [picture(33, 20, 1), picture(70, 90, 2)]
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 60})
    together = processor(images, return_tensors="pt").pixel_values
    for i, image in enumerate(images):
        alone = processor(image, return_tensors="pt").pixel_values[0]
        height, width = alone.shape[-2:]
        assert torch.equal(together[i, :, :height, :width], alone)


def test_pad_size_replaces_the_largest_size():
    batch = unresized(pad_size={"height": 50, "width": 41})(picture(33, 20), return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 50, 41)
    with pytest.raises(ValueError, match=r"Image 0 is 60 x 20 .* pad_size 50 x 41"):
        unresized(pad_size={"height": 50, "width": 41})(picture(60, 20))


def test_without_padding_images_keep_their_sizes():
    images = [picture(33, 20), picture(16, 40)]
    batch = unresized(do_pad=False)(images)
    assert [image.shape for image in batch.pixel_values] == [(3, 33, 20), (3, 16, 40)]
    assert all(mask.all() for mask in batch.pixel_mask)
    with pytest.raises(ValueError, match="do_pad=True"):
        unresized(do_pad=False)(images, return_tensors="pt")


def test_return_tensors():
    images = [picture(8, 8), picture(9, 9)]
    maps = [id_map(8, 8), id_map(9, 9)]
    lists = unresized()(images, maps)
    assert isinstance(lists.pixel_values, list)
    assert isinstance(lists.pixel_values[0], torch.Tensor)
    arrays = unresized()(images, maps, return_tensors="np")
    assert isinstance(arrays.pixel_values, np.ndarray)
    assert isinstance(arrays.mask_labels[1], np.ndarray)
    with pytest.raises(ValueError, match="return_tensors"):
        unresized()(images, return_tensors="tf")


def test_overrides_hold_for_one_call_and_none_means_unchanged():
    processor = unresized(size_divisor=8)
    overridden = processor(picture(9, 9), size_divisor=5, ignore_index=None, return_tensors="pt")
    assert overridden.pixel_values.shape[-2:] == (10, 10)
    assert processor.size_divisor == 8


def test_with_settings_makes_a_copy_and_changes_nothing():
    processor = unresized(size_divisor=8)
    processor.other_settings["x"] = 1
    changed = processor.with_settings(size=480, thing_label_ids=[1], ignore_index=None)
    assert (changed.size, changed.thing_label_ids) == ({"shortest_edge": 480}, [1])
    assert (changed.size_divisor, changed.other_settings) == (8, {"x": 1})
    assert processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.thing_label_ids is None
    with pytest.raises(TypeError, match="do_resise"):
        processor.with_settings(do_resise=False)


def test_only_channels_first_comes_out():
    with pytest.raises(ValueError, match="data_format"):
        unresized()(picture(8, 8), data_format="channels_last")


DOCUMENTED = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "default_to_square": False,
    "resample": Image.Resampling.BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 20, "width": 20},
    "do_rescale": True,
    "rescale_factor": 0.5,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": 0.5,
    "do_convert_rgb": True,
    "return_tensors": "pt",
    "data_format": "channels_first",
    "input_data_format": "channels_last",
    "device": torch.device("cpu"),
    "disable_grouping": True,
    "size_divisor": 16,
    "ignore_index": 255,
    "do_reduce_labels": True,
    "num_labels": 3,
    "do_pad": True,
    "pad_size": {"height": 48, "width": 48},
}


def test_every_documented_argument_is_one_of_the_constructor_and_of_a_call():
    image, ids = picture(40, 50), id_map(40, 50)
    made = Mask2FormerImageProcessor(**DOCUMENTED)(image, ids)
    called = Mask2FormerImageProcessor()(image, ids, **DOCUMENTED)
    assert made.pixel_values.shape == (1, 3, 48, 48)
    assert made.pixel_mask.sum() == 400
    assert torch.equal(made.pixel_values, called.pixel_values)
    assert torch.equal(made.mask_labels[0], called.mask_labels[0])


def test_an_int_is_a_square_if_asked():
    processor = Mask2FormerImageProcessor(size=64, default_to_square=True)
    assert processor.resized_size((30, 50)) == (64, 64)


def test_the_centre_is_cropped_from_images_and_maps():
    image, ids = picture(30, 21), id_map(30, 21)
    processor = unresized(do_center_crop=True, crop_size={"height": 16, "width": 32})
    batch = processor(image, ids, return_tensors="pt", do_pad=False)
    whole = unresized()(image[7:23], ids[7:23], return_tensors="pt", do_pad=False)
    assert batch.pixel_values.shape == (1, 3, 16, 21)  # never enlarged
    assert torch.equal(batch.pixel_values, whole.pixel_values)
    assert torch.equal(batch.mask_labels[0], whole.mask_labels[0])


def test_images_that_are_not_rgb_are_refused_if_asked():
    processor = unresized(do_convert_rgb=False)
    assert processor(picture(8, 8)).pixel_values[0].shape == (3, 32, 32)
    with pytest.raises(ValueError, match="Image 1 is not RGB"):
        processor([picture(8, 8), picture(8, 8)[..., 0]])


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
@pytest.mark.parametrize("given", ["image", "argument"])
def test_all_work_is_on_the_device_of_the_image_or_the_one_asked_for(resample, given):
    processor = Mask2FormerImageProcessor(size=40, resample=resample)
    image = channels_first(picture(30, 50))
    on_meta = {
        "image": lambda: processor(image.to("meta"), return_tensors="pt"),
        "argument": lambda: processor(image, return_tensors="pt", device="meta"),
    }[given]()  # what leaves a meta device raises
    assert on_meta.pixel_values.device.type == on_meta.pixel_mask.device.type == "meta"
    assert on_meta.pixel_values.shape == (1, 3, 64, 96)


# ---- annotations --------------------------------------------------------------------------------


def test_maps_are_resized_by_nearest_padded_and_split_by_label():
    image, ids = picture(20, 30), id_map(20, 30)
    processor = Mask2FormerImageProcessor(size={"height": 48, "width": 44})
    batch = processor(image, ids, return_tensors="pt")
    pillow = Image.fromarray(ids.astype(np.uint8)).resize((44, 48), Image.Resampling.NEAREST)
    masks, labels = batch.mask_labels[0], batch.class_labels[0]
    assert masks.shape == (4, *batch.pixel_values.shape[-2:])
    assert masks.dtype == torch.bool
    assert labels.tolist() == [0, 1, 2, 3]
    for mask, label in zip(masks, labels.tolist(), strict=True):
        assert np.array_equal(mask[:48, :44].numpy(), np.array(pillow) == label)


@pytest.mark.parametrize("ignore_index", [None, 255])
def test_masks_are_empty_in_the_padding(ignore_index):
    batch = unresized(ignore_index=ignore_index)(picture(20, 30), id_map(20, 30))
    assert not batch.mask_labels[0][:, 20:].any()
    assert not batch.mask_labels[0][:, :, 30:].any()
    assert set(batch.mask_labels[0].unique().tolist()) == {False, True}


def test_a_reduced_instance_is_kept_whatever_its_id():
    ids = np.full((8, 8), 256)
    ids[:4] = 1
    processor = unresized(do_reduce_labels=True, ignore_index=255)
    batch = processor(picture(8, 8), ids, instance_id_to_semantic_id={1: 3, 256: 7})
    assert batch.class_labels[0].tolist() == [2, 6]
    assert batch.mask_labels[0].sum((1, 2)).tolist() == [32, 32]


def test_one_mapping_for_all_or_one_per_image():
    images, ids = [picture(8, 8)] * 2, [np.full((8, 8), 5)] * 2
    processor = unresized()
    shared = processor(images, ids, instance_id_to_semantic_id={5: 1})
    assert [labels.tolist() for labels in shared.class_labels] == [[1], [1]]
    own = processor(images, ids, instance_id_to_semantic_id=[{5: 1}, {5: 2}])
    assert [labels.tolist() for labels in own.class_labels] == [[1], [2]]
    with pytest.raises(ValueError, match="3 mappings for 2 images"):
        processor(images, ids, instance_id_to_semantic_id=[{5: 1}] * 3)
    with pytest.raises(ValueError, match="Segmentation map 1 has instance 5"):
        processor(images, ids, instance_id_to_semantic_id=[{5: 1}, {6: 2}])


def test_encode_inputs_pads_and_makes_masks_but_leaves_pixels_alone():
    pixels = [torch.rand(3, 20, 30), torch.rand(3, 33, 10)]
    maps = [id_map(20, 30), id_map(33, 10)]
    processor = Mask2FormerImageProcessor()
    batch = processor.encode_inputs(pixels, maps, ignore_index=0, return_tensors="pt")
    assert torch.equal(batch.pixel_values[0, :, :20, :30], pixels[0])
    assert batch.pixel_values.shape == (2, 3, 64, 32)
    assert batch.pixel_mask.sum((1, 2)).tolist() == [600, 330]
    assert [labels.tolist() for labels in batch.class_labels] == [[1, 2, 3]] * 2
    reduced = processor.encode_inputs(
        pixels, maps, do_reduce_labels=True, pad_size={"height": 40, "width": 40}
    )
    assert reduced.class_labels[0].tolist() == [0, 1, 2]
    assert reduced.pixel_values[0].shape == (3, 40, 40)


def test_pixels_equal_transformers_where_nothing_is_padded():
    pytest.importorskip("torchvision")  # what transformers calls its reference needs it
    transformers = pytest.importorskip("transformers")
    settings = {"size": {"height": 64, "width": 96}}
    image, ids = picture(50, 70), id_map(50, 70)
    theirs = transformers.Mask2FormerImageProcessor(**settings)(image, ids, return_tensors="pt")
    ours = Mask2FormerImageProcessor(**settings)(image, ids, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])
    assert torch.equal(ours.pixel_mask, theirs["pixel_mask"])
    assert torch.equal(ours.mask_labels[0].float(), theirs["mask_labels"][0])
    assert torch.equal(ours.class_labels[0], theirs["class_labels"][0])


# ---- segmentations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("things", "argument", "fused"), [([1], None, {0, 2}), (None, None, set()), ([1], {1}, {1})]
)
def test_stuff_is_fused_unless_told_otherwise(things, argument, fused):
    outputs = random_outputs(5, queries=20, labels=3)
    result = Mask2FormerImageProcessor(thing_label_ids=things).post_process_panoptic_segmentation(
        outputs, overlap_mask_area_threshold=0, label_ids_to_fuse=argument
    )[0]["segments_info"]
    assert {s["label_id"] for s in result if s["was_fused"]} == fused
    labels = [s["label_id"] for s in result]
    assert {label for label in labels if labels.count(label) > 1} == {0, 1, 2} - fused


@pytest.mark.parametrize("things", [None, [0], [1, 2], []])
def test_only_things_are_instances_when_they_are_known(things):
    outputs = random_outputs(5, queries=20, labels=3)
    processor = Mask2FormerImageProcessor(thing_label_ids=things)
    for form in ({}, {"return_binary_maps": True}, {"return_coco_annotation": True}):
        result = processor.post_process_instance_segmentation(
            outputs, 0.3, overlap_mask_area_threshold=0, **form
        )[0]
        found = {s["label_id"] for s in result["segments_info"]}
        assert found == ({0, 1, 2} if things is None else set(things))


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_thresholds_have_the_documented_defaults(task):
    method = getattr(Mask2FormerImageProcessor, f"post_process_{task}_segmentation")
    parameters = inspect.signature(method).parameters
    assert parameters["threshold"].default == 0.5
    assert parameters["mask_threshold"].default == 0.5
    assert parameters["overlap_mask_area_threshold"].default == 0.8


# ---- transformers' processors -------------------------------------------------------------------


@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("ours", [Mask2FormerImageProcessor, Mask2FormerImageProcessorPil])
def test_pixels_equal_the_reference_in_pillow(ours, resample):
    transformers = pytest.importorskip("transformers")
    settings = {"size": {"height": 57, "width": 90}, "resample": resample}
    settings |= {"size_divisor": 0, "do_normalize": False}  # or the reference would stretch
    theirs = transformers.Mask2FormerImageProcessorPil(**settings)
    for shape in [(50, 70), (131, 90), (40, 200)]:
        image, ids = picture(*shape), id_map(*shape)
        expected = theirs(image, ids, return_tensors="pt")
        result = ours(**settings)(image, ids, return_tensors="pt")
        difference = (result.pixel_values - expected["pixel_values"]).abs().max()
        assert difference < (1 / 255 if ours is Mask2FormerImageProcessor else 0) + 1e-6
        assert torch.equal(result.mask_labels[0].float(), expected["mask_labels"][0].float())


def test_the_processor_in_pillow_normalizes_as_the_reference():
    transformers = pytest.importorskip("transformers")
    settings = {"size": {"height": 64, "width": 96}, "resample": Image.Resampling.LANCZOS}
    image = Image.fromarray(picture(50, 70))
    theirs = transformers.Mask2FormerImageProcessorPil(**settings)(image, return_tensors="pt")
    ours = Mask2FormerImageProcessorPil(**settings)(image, return_tensors="pt")
    error = (ours.pixel_values - theirs["pixel_values"]).abs().max()
    assert error < 1e-6  # measured 2.4e-7


def test_all_names_are_exported():
    assert mask2former.Mask2FormerImageProcessor is Mask2FormerImageProcessor
    assert mask2former.Mask2FormerImageProcessorFast is Mask2FormerImageProcessor
    assert mask2former.AutoImageProcessor is Mask2FormerImageProcessor
    assert mask2former.Mask2FormerImageProcessorPil is Mask2FormerImageProcessorPil


OLD_NAMES = [
    ({"reduce_labels": True}, {"do_reduce_labels": True}),
    ({"size_divisibility": 16}, {"size_divisor": 16}),
    ({"size": 48, "max_size": 60}, {"size": {"shortest_edge": 48, "longest_edge": 60}}),
    ({"size": 48, "max_size": None}, {"size": 48}),
]


@pytest.mark.parametrize(("old", "new"), OLD_NAMES)
def test_old_names_are_taken_by_the_constructor(old, new):
    assert Mask2FormerImageProcessor(**old) == Mask2FormerImageProcessor(**new)


@pytest.mark.parametrize(("old", "new"), OLD_NAMES)
def test_old_names_are_taken_in_a_call(old, new):
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 80})
    image, ids = picture(50, 90), id_map(50, 90)
    expected = processor(image, ids, **new, return_tensors="pt")
    result = processor(image, ids, **old, return_tensors="pt")
    assert torch.equal(result.pixel_values, expected.pixel_values)
    assert torch.equal(result.class_labels[0], expected.class_labels[0])


def test_an_old_max_size_in_a_call_keeps_the_shorter_side():
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 80})
    batch = processor(picture(30, 90), max_size=60, size_divisor=0, return_tensors="pt")
    assert batch.pixel_values.shape[2:] == (20, 60)
