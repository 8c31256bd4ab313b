import pytest
import torch

from mask2former import Mask2FormerConfig
from mask2former.losses.annotations import (
    IGNORED,
    VOID,
    Annotation,
    check_annotations,
    make_annotations,
)

CONFIG = Mask2FormerConfig(num_labels=3)
SIZE = (8, 12)
ONE = torch.zeros(1, *SIZE)
ONE[:, :4] = 1


def annotations(masks, classes, pixel_mask=None, config=CONFIG):
    made = make_annotations(
        masks, classes, len(masks), SIZE, config.num_labels, config.ignore_value
    )
    if pixel_mask is None:
        return made
    return [image.with_padding(mask) for image, mask in zip(made, pixel_mask, strict=True)]


def test_without_ignored_pixels_masks_are_not_copied():
    masks = ONE.bool()
    (annotation,) = annotations([masks], [torch.tensor([2], dtype=torch.int32)])
    assert annotation.masks is masks
    assert annotation.labels.tolist() == [2]
    assert annotation.labels.dtype == torch.int64
    assert annotation.ignored is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_pixels_of_the_ignore_value_are_marked_and_become_zero(dtype):
    masks = torch.cat([ONE, ONE])
    masks[1, 6:] = 255
    (annotation,) = annotations([masks.to(dtype)], [torch.tensor([0, 1])])
    assert torch.equal(annotation.masks.float(), torch.cat([ONE, ONE]))
    assert annotation.ignored.shape == (2, *SIZE)
    assert torch.equal(annotation.ignored, masks == 255)


def test_the_ignore_value_is_the_configurations():
    masks = ONE.clone()
    masks[:, 6:] = 7
    config = Mask2FormerConfig(num_labels=3, ignore_value=7)
    (annotation,) = annotations([masks], [torch.tensor([0])], config=config)
    assert torch.equal(annotation.ignored, masks == 7)


def test_padding_is_ignored_in_every_mask():
    pixel_mask = torch.ones(2, *SIZE, dtype=torch.bool)
    pixel_mask[1, :, 9:] = False
    marked = ONE.clone()
    marked[:, 7] = 255
    classes = [torch.tensor([0])] * 2
    first, second = annotations([ONE, marked], classes, pixel_mask)
    assert not first.ignored.any()
    assert torch.equal(second.ignored[0], (marked[0] == 255) | ~pixel_mask[1])


def test_annotations_of_the_ignored_class_are_left_out():
    masks = torch.cat([ONE, ONE.flip(1), ONE])
    (annotation,) = annotations([masks], [torch.tensor([255, 1, 255])])
    assert torch.equal(annotation.masks, ONE.flip(1))
    assert annotation.labels.tolist() == [1]


def test_a_class_of_the_model_is_never_ignored():
    config = Mask2FormerConfig(num_labels=300)
    (annotation,) = annotations([ONE], [torch.tensor([255])], config=config)
    assert annotation.labels.tolist() == [255]


@pytest.mark.parametrize("ignore_value", [0, 1])
def test_a_masks_own_values_are_never_ignored(ignore_value):
    config = Mask2FormerConfig(num_labels=3, ignore_value=ignore_value)
    (annotation,) = annotations([ONE], [torch.tensor([ignore_value])], config=config)
    assert annotation.ignored is None
    assert torch.equal(annotation.masks, ONE)


def test_images_without_annotations_may_come_in_any_batch():
    empty = torch.zeros(0, *SIZE)
    first, second = annotations([empty, ONE], [torch.zeros(0).long(), torch.tensor([1])])
    assert first.masks.shape == (0, *SIZE)
    assert len(first.labels) == 0
    assert len(second.labels) == 1


def test_points_count_unless_they_touch_an_ignored_pixel():
    ignored = torch.zeros(1, 1, 4, dtype=torch.bool)
    ignored[..., 2] = True
    x = torch.tensor([0.125, 0.375, 0.376, 0.625, 0.874, 0.875, 1.0])  # centres at odd eighths
    points = torch.stack([x, torch.full_like(x, 0.5)], -1)[None]
    masks, labels = torch.zeros(2, 1, 4), torch.zeros(2).long()
    expected = [1, 1, 0, 0, 0, 1, 1]
    assert Annotation(masks, labels, ignored).weights(points).tolist() == [expected]
    assert Annotation(masks, labels).weights(points).tolist() == [[1] * 7]
    each = torch.cat([ignored, torch.zeros_like(ignored)])
    assert Annotation(masks, labels, each).weights(points).tolist() == [expected, [1] * 7]
    own = torch.cat([points, points.flip(1)])  # points of each mask
    both = [expected, expected[::-1]]
    assert Annotation(masks, labels, ignored).weights(own).tolist() == both
    assert Annotation(masks, labels, each).weights(own).tolist() == [expected, [1] * 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_are_sampled_in_the_dtype_of_the_points(dtype):
    points, labels = torch.rand(1, 5, 2, dtype=dtype), torch.tensor([0])
    for masks in (ONE, ONE.bool(), ONE.byte(), ONE.double()):
        if masks.dtype != torch.float64 or dtype == torch.float64:
            assert Annotation(masks, labels).sample(points).dtype == dtype
    assert Annotation(ONE[0].int(), labels, ids=labels).sample(points).dtype == dtype


# ---- index maps ----------------------------------------------------------------------------------


def index_map_and_masks():
    """Four annotations, of which the third has no pixel, void and ignored pixels."""
    index_map = torch.full(SIZE, VOID, dtype=torch.int32)
    index_map[:3], index_map[5:, 2:7], index_map[3:6, 9:] = 0, 3, 1
    index_map[4] = IGNORED
    masks = (index_map == torch.arange(4)[:, None, None]).to(torch.uint8)
    masks[:, 4] = 255
    return index_map, masks


@pytest.mark.parametrize("padded", [False, True])
def test_an_index_map_is_sampled_like_its_masks(padded):
    pixel_mask = torch.ones(1, *SIZE, dtype=torch.bool)
    if padded:
        pixel_mask[..., 8:] = False
    classes = [torch.tensor([0, 255, 2, 1])]
    from_map, from_masks = (
        annotations([x], classes, pixel_mask if padded else None)[0] for x in index_map_and_masks()
    )
    assert from_map.labels.tolist() == from_masks.labels.tolist() == [0, 2, 1]
    which = torch.tensor([2, 0])
    for map_, masks, count in (
        (from_map, from_masks, 3),
        (from_map.chosen(which), from_masks.chosen(which), 2),
    ):
        for size in (1, count):
            points = torch.rand(size, 500, 2, generator=torch.Generator().manual_seed(0)).double()
            expected = masks.weights(points).expand(count, -1)
            assert torch.equal(map_.weights(points).expand(count, -1), expected)
            assert 0 < expected.mean() < 1
            assert torch.allclose(map_.sample(points), masks.sample(points), atol=1e-12)
    assert from_map.chosen(which).labels.tolist() == [1, 0]


def test_an_index_map_in_which_every_pixel_counts_ignores_nothing():
    index_map, _ = index_map_and_masks()
    (annotation,) = annotations([index_map.clamp(min=VOID)], [torch.tensor([0, 1, 2, 0])])
    assert annotation.ignored is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.int8, torch.uint16])
def test_an_index_map_is_never_widened_to_masks(dtype):
    index_map, _ = index_map_and_masks()
    if dtype == torch.uint16:
        index_map = index_map.clamp(min=0)
    (annotation,) = annotations([index_map.to(dtype)], [torch.tensor([0, 1, 2, 0])])
    assert torch.equal(annotation.masks, index_map)
    assert annotation.masks.dtype == torch.int32
    assert annotation.ignored is None or annotation.ignored.shape == (1, *SIZE)


def test_a_small_unsigned_index_map_may_have_more_annotations_than_it_can_name():
    index_map = torch.zeros(SIZE, dtype=torch.uint8)
    (annotation,) = annotations([index_map], [torch.zeros(300, dtype=torch.int64)])
    centre = torch.full((1, 1, 2), 0.5)
    assert annotation.sample(centre).flatten().tolist() == [1] + [0] * 299


def test_without_annotations_an_index_map_is_void():
    index_map = torch.full(SIZE, VOID)
    (annotation,) = annotations([index_map], [torch.zeros(0).long()])
    assert annotation.sample(torch.rand(1, 5, 2)).shape == (0, 5)
    assert annotation.chosen(torch.zeros(0).long()).sample(torch.rand(0, 5, 2)).shape == (0, 5)


@pytest.mark.parametrize(
    ("index_map", "count", "message"),
    [
        (torch.full(SIZE, 2), 2, "is an index map with values from 2 to 2, but .* 2 entries"),
        (torch.full(SIZE, -3), 2, "values from -3 to -3.*, -1 where there is none, and -2 in pix"),
        (torch.zeros(SIZE).long(), 0, "values from 0 to 0, but class_labels.* has 0 entries"),
        (torch.full(SIZE, 255).byte(), 2, "values from 255 to 255"),
        (torch.zeros(SIZE), 2, "as an index map, but is torch.float32; give integers, or masks"),
        (torch.zeros(SIZE).bool(), 2, "as an index map, but is torch.bool"),
        (torch.zeros(9, 12).int(), 2, r"shape \(9, 12\).* or \(8, 12\) for an index map"),
    ],
)
def test_index_maps_that_do_not_fit_are_named(index_map, count, message):
    with pytest.raises(ValueError, match=r"mask_labels\[0\].*" + message):
        make_annotations([index_map], [torch.zeros(count).long()], 1, SIZE, 3, 255)


# ---- labels that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "classes", "message"),
    [
        ([ONE], [torch.zeros(1).long()], "entries for 2 images"),
        ([ONE[0]] * 2, [torch.zeros(1).long()] * 2, r"\[0\] has shape \(8, 12\)"),
        ([ONE[:, :6]] * 2, [torch.zeros(1).long()] * 2, r"expected \(T, 8, 12\), the size of pix"),
        ([ONE] * 2, [torch.zeros(2).long()] * 2, r"class_labels\[0\] \(2,\)"),
        (
            [ONE] * 2,
            [torch.tensor([3])] * 2,
            "labels from 3 to 3, but the model knows 0 to 2, and 255 to ignore",
        ),
        ([ONE] * 2, [torch.tensor([-1])] * 2, "labels from -1 to -1"),
        ([ONE * 2] * 2, [torch.tensor([1])] * 2, r"values from 0 to 2; give 0 and 1.*255, in pix"),
        ([ONE * -1] * 2, [torch.tensor([1])] * 2, r"values from -1 to -?0; give 0 and 1"),
        ([ONE * torch.nan] * 2, [torch.tensor([1])] * 2, r"values from nan to nan"),
        ([ONE * 255] * 2, [torch.tensor([1])] * 2, r"0 to 255 and no 1, .* give 0 and 1"),
        ([(ONE * 255).byte()] * 2, [torch.tensor([1])] * 2, r"for example masks > 0"),
    ],
)
def test_labels_that_do_not_fit_are_named(masks, classes, message):
    with pytest.raises(ValueError, match=message):
        make_annotations(masks, classes, 2, SIZE, 3, 255)


def test_small_integers_do_not_wrap_around_to_the_ignored_value():
    wrapped = torch.tensor([[[1, -1], [0, 1]]], dtype=torch.int8)  # -1 and 255 have the same bits
    with pytest.raises(ValueError, match="has values from -1 to 1"):
        make_annotations([wrapped], [torch.tensor([1])], 1, (2, 2), 3, 255)
    with pytest.raises(ValueError, match="has values from 0 to 255"):
        make_annotations([wrapped.view(torch.uint8)], [torch.tensor([1])], 1, (2, 2), 3, 65535)


# ---- annotations that were checked before --------------------------------------------------------


def test_annotations_of_other_images_or_classes_are_refused():
    (made,) = annotations([ONE], [torch.tensor([2])])
    check_annotations([made], 1, SIZE, 3)
    check_annotations([made], 1, SIZE, 4)
    for batch, size, num_labels, message in (
        (2, SIZE, 3, "annotations has 1 entries for 2 images; give one per image."),
        (1, (8, 16), 3, r"annotations\[0\] has masks of shape \(1, 8, 12\), but .* \(8, 16\)"),
        (1, SIZE, 2, r"annotations\[0\] is of 3 classes, but the model knows 2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_annotations([made], batch, size, num_labels)


def test_an_annotation_moves_to_a_device_as_a_whole():
    for masks in index_map_and_masks():
        (made,) = annotations([masks], [torch.tensor([0, 1, 2, 0])])
        before, after = vars(made), vars(made.to("meta", non_blocking=True))
        for name in ("masks", "labels", "ignored", "ids"):
            assert after[name].is_meta if before[name] is not None else after[name] is None
        assert after["num_labels"] == 3


def test_a_mask_without_dimensions_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"mask_labels\[0\] has shape \(\) and class_labels\[0\]"):
        annotations([torch.tensor(1)], [torch.tensor([0])])


def test_class_labels_are_integers_unless_there_are_none():
    with pytest.raises(ValueError, match=r"class_labels\[0\] is torch.float32; give integers"):
        annotations([ONE], [torch.tensor([1.7])])
    assert annotations([ONE[:0]], [torch.tensor([])])[0].labels.dtype == torch.int64


def test_annotations_that_nobody_checked_are_refused():
    made = Annotation(ONE.bool(), torch.tensor([7]))
    with pytest.raises(ValueError, match=r"annotations\[0\] was never checked"):
        check_annotations([made], 1, SIZE, 3)
