import colorsys
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former import Mask2FormerImageProcessor
from mask2former.data.augmentation import (
    Augmentation,
    ColourJitter,
    Flip,
    LargeScaleJitter,
    ProcessorResize,
    ResizedCrop,
    coco_lsj,
    few_images,
    flipped,
    resized_part,
    semantic_crop,
    training_targets,
)
from mask2former.data.dataset import Sample
from mask2former.data.scene_dataset import SceneDataset
from mask2former.images.resize import nearest_index, resized_image, resized_nearest
from mask2former.losses.annotations import IGNORED, VOID

PROCESSOR = Mask2FormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 70})


def rng(seed=0):
    return np.random.default_rng(seed)


def make_sample(masks, labels=None, crowd=None, image=None):
    height, width = masks.shape[-2:]
    if labels is None:
        labels = range(int(masks.max()) + 1 if masks.dim() == 2 else len(masks))
    labels = torch.tensor(list(labels), dtype=torch.int64)
    crowd = torch.zeros(len(labels)).bool() if crowd is None else torch.tensor(crowd)
    image = torch.zeros(3, height, width, dtype=torch.uint8) if image is None else image
    areas = torch.full((len(labels),), 7.0, dtype=torch.float64)
    return Sample("a", image, masks, labels, crowd, areas)


def primary_colours(seed, size):
    """Three segments in pure red, green and blue, which may hide each other, on black void."""
    generator = rng(seed)
    index_map = torch.full(size, VOID, dtype=torch.int32)
    for segment in range(3):
        top, left = (int(generator.integers(n)) for n in size)
        index_map[top : top + size[0] // 2 + 1, left : left + size[1] // 2 + 1] = segment
    image = torch.stack([(index_map == segment).to(torch.uint8) * 255 for segment in range(3)])
    return make_sample(index_map, range(3), image=image)


def with_bool_masks(sample):
    return replace(sample, masks=sample.masks_of(torch.arange(len(sample.labels))))


def pixel_numbers(height, width):
    """A sample of which every pixel is a segment of its own, so that one sees where it went."""
    return make_sample(torch.arange(height * width, dtype=torch.int32).reshape(height, width))


AUGMENTATIONS = {
    "coco_lsj": coco_lsj(64),
    "semantic_crop": Augmentation(semantic_crop((32, 48), short_sides=[20, 60]).steps[::2]),
    "few_images": few_images(PROCESSOR),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("kind", ["index map", "masks"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90))
def test_masks_stay_where_the_image_shows_them(name, kind, seed, height, width):
    sample = primary_colours(seed, (height, width))
    sample = with_bool_masks(sample) if kind == "masks" else sample
    result = AUGMENTATIONS[name](sample, rng(seed))
    assert result.image.dtype == torch.uint8
    assert result.masks.shape[-2:] == result.image.shape[-2:] == result.size
    assert result.masks.dtype == sample.masks.dtype
    assert result.labels.tolist() == sorted(set(result.labels.tolist()))
    masks = result.masks_of(torch.arange(len(result.labels)))
    assert masks.flatten(1).any(1).all()
    for segment in range(3):
        # Where segments meet, colours mix; a pure colour is all from one segment.
        pure = (result.image[segment] == 255) & (result.image.sum(0) == 255)
        index = (result.labels == segment).nonzero()
        mask = masks[index[0, 0]] if len(index) else torch.zeros_like(pure)
        assert not (pure & ~mask).any()
        assert not (mask & (result.image[segment] == 0)).any()


@pytest.mark.parametrize("kind", ["index map", "masks"])
@settings(deadline=None, max_examples=50, derandomize=True)
@given(data=st.data())
def test_a_part_of_a_resized_sample_is_cut_out_of_the_whole(kind, data):
    draw = data.draw
    source, size = ((draw(st.integers(1, 60)), draw(st.integers(1, 60))) for _ in range(2))
    offset = tuple(draw(st.integers(0, n - 1)) for n in size)
    crop = tuple(draw(st.integers(1, n - o)) for n, o in zip(size, offset, strict=True))
    sample = primary_colours(draw(st.integers(0, 999)), source)
    noise = rng(draw(st.integers(0, 999))).integers(0, 256, (3, *source), np.uint8)
    sample = replace(sample, image=torch.from_numpy(noise))
    sample = with_bool_masks(sample) if kind == "masks" else sample
    result = resized_part(sample, size, offset, crop)
    window = (..., slice(offset[0], offset[0] + crop[0]), slice(offset[1], offset[1] + crop[1]))
    image = resized_image(sample.image, size, Image.Resampling.BILINEAR)[window]
    # torch's kernels for the two memory layouts round a few values differently
    assert (result.image.int() - image.int()).abs().max() <= 1
    masks = resized_nearest(sample.masks, size)[window]
    if kind == "index map":
        assert torch.equal(result.masks, masks)
        assert torch.equal(result.labels, sample.labels)
    else:
        assert torch.equal(result.masks, masks[result.labels])  # the labels are their numbers
        left_out = sorted(set(range(3)) - set(result.labels.tolist()))
        assert not masks[left_out].any()
        assert len(result.crowd) == len(result.labels)
    assert result.areas is None


def test_jitter_resizes_to_fit_the_scaled_square_and_cuts_a_part_of_that():
    # By hand: 1.5 times 80 is 120, which a width of 60 reaches at twice the size: 80 x 120.
    result = LargeScaleJitter((80, 80), (1.5, 1.5))(pixel_numbers(40, 60), rng())
    assert result.size == (80, 80)
    columns = result.masks % 60
    assert torch.equal(result.masks[:, 0] // 60, torch.arange(40).repeat_interleave(2).int())
    expected = nearest_index(60, 120)
    left = next(o for o in range(41) if (expected[o : o + 80] == columns[0].numpy()).all())
    assert (columns.numpy() == expected[left : left + 80]).all()
    # and 0.1 times 80 is 8, which is a width of 60 at 0.1333 times the size: 40 becomes 5.33
    assert LargeScaleJitter((80, 80), (0.1, 0.1))(pixel_numbers(40, 60), rng()).size == (5, 8)


def test_jitter_draws_scales_evenly_and_the_offsets_of_both_axes_independently():
    sample = pixel_numbers(30, 30)
    jitter = LargeScaleJitter((30, 30))
    generator = rng()
    results = [jitter(sample, generator) for _ in range(2000)]
    heights = np.array([result.size[0] for result in results])
    # Heights below 30 come of scales from 0.1 to 29.5 / 30, of 0.1 to 2: 0.465, deviation 0.011.
    assert abs((heights < 30).mean() - (29.5 / 30 - 0.1) / 1.9) < 0.035
    assert heights.min() == 3
    corners = np.array([divmod(int(r.masks[0, 0]), 30) for r in results if r.size == (30, 30)])
    assert (corners[:, 0] - corners[:, 1]).max() > 10
    assert (corners[:, 0] - corners[:, 1]).min() < -10


def test_jitter_keeps_a_pixel_of_the_thinnest_image():
    result = coco_lsj(64)(make_sample(torch.zeros(1, 500, dtype=torch.int32)), rng(3))
    assert result.size[0] == 1
    assert len(result.labels) == 1


def test_crop_resizes_the_shortest_edge_to_the_lengths_listed():
    step = ResizedCrop((1000, 1000), (20, 40), longest=70)
    sizes = {step(pixel_numbers(30, 60), rng(seed)).size for seed in range(20)}
    assert sizes == {(20, 40), (35, 70)}  # 40 x 80 would be too long
    crop = ResizedCrop((16, 32), (40,), longest=160)
    assert {crop(pixel_numbers(30, 60), rng(seed)).size for seed in range(5)} == {(16, 32)}


def test_a_crop_can_lie_anywhere_in_the_image():
    step = ResizedCrop((2, 2), (3,), 4, max_ratio=1.0)
    corners = {int(step(pixel_numbers(3, 4), rng(seed)).masks[0, 0]) for seed in range(60)}
    assert corners == {0, 1, 2, 4, 5, 6}


def test_paper_lengths_of_the_shortest_edge():
    ade, cityscapes = semantic_crop().steps[0], semantic_crop((512, 1024)).steps[0]
    assert ade.short_sides[:2] == (256, 307)
    assert ade.short_sides[-1] == 1024
    assert (ade.longest, cityscapes.longest) == (2048, 4096)
    assert (cityscapes.short_sides[0], cityscapes.short_sides[-1]) == (512, 2048)


def largest_share(index_map, classes):
    areas = np.bincount(classes[index_map[index_map >= 0]].ravel())
    return areas.max() / areas.sum()


def test_category_ratio_holds_where_a_crop_can_meet_it():
    # Class 0 on the left in two segments, class 1 on the right, void in the corner.
    index_map = torch.zeros(64, 64, dtype=torch.int32)
    index_map[32:, :32], index_map[:, 32:], index_map[:8, :] = 1, 2, VOID
    sample = make_sample(index_map, [0, 0, 1])
    classes = np.array([0, 0, 1])
    step = ResizedCrop((24, 24), (64,), 64)
    shares = [largest_share(step(sample, rng(s)).masks.numpy(), classes) for s in range(60)]
    anything = ResizedCrop((24, 24), (64,), 64, max_ratio=1.0)
    free = [largest_share(anything(sample, rng(s)).masks.numpy(), classes) for s in range(60)]
    # Of crops at random 0.69 are too uniform, of 2000; ten tries fail in 0.02.
    assert np.mean(np.array(free) > 0.75) > 0.6
    assert np.mean(np.array(shares) > 0.75) < 0.15
    # Crowds are no class: without the right one there is only one class, and any crop is taken.
    crowded = replace(sample, crowd=torch.tensor([False, False, True]))
    last = [largest_share(step(crowded, rng(s)).masks.numpy(), classes) for s in range(60)]
    assert np.mean(np.array(last) > 0.75) > 0.6


def test_a_crop_that_is_too_uniform_ten_times_is_taken():
    sample = make_sample(torch.zeros(40, 40, dtype=torch.int32))
    assert ResizedCrop((16, 16), (40,), 40)(sample, rng()).size == (16, 16)
    void = make_sample(torch.full((40, 40), VOID, dtype=torch.int32), [0])
    assert semantic_crop((16, 16))(void, rng()).labels.shape == (0,)


def test_flipping_twice_changes_nothing():
    for task in ("panoptic", "instance"):
        sample = SceneDataset([4], 48, task)[0]
        once, twice = flipped(sample), flipped(flipped(sample))
        assert torch.equal(twice.image, sample.image)
        assert torch.equal(twice.masks, sample.masks)
        assert torch.equal(once.image[..., 0], sample.image[..., -1])
        assert torch.equal(once.masks[..., 0], sample.masks[..., -1])


def test_flips_come_with_their_probability():
    sample = pixel_numbers(1, 2)
    for probability, low, high in ((0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)):
        step = Flip(probability)
        flips = sum(int(step(sample, rng(seed)).masks[0, 0]) == 1 for seed in range(200))
        assert low <= flips <= high


def rgb_image(*colours):
    return torch.tensor(colours, dtype=torch.uint8).T[:, None]


def jittered(seed, image, **strengths):
    none = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}
    sample = make_sample(torch.zeros(image.shape[-2:], dtype=torch.int32), image=image)
    return ColourJitter(**{**none, **strengths})(sample, rng(seed)).image[:, 0].T.tolist()


def test_each_colour_change_is_what_its_name_says():
    image = rgb_image((100, 60, 40), (200, 200, 200), (255, 0, 0))
    unchanged = image[:, 0].T.tolist()
    seen = {name: set() for name in ("brightness", "contrast", "saturation", "hue")}
    for seed in range(40):
        result = jittered(seed, image, brightness=32)
        change = result[0][0] - 100
        assert result[0] == [100 + change, 60 + change, 40 + change]
        assert abs(change) <= 32
        seen["brightness"].add(change != 0)

        result = jittered(seed, image, contrast=(0.5, 1.5))
        factor = result[0][0] / 100
        assert 0.5 <= factor <= 1.5
        np.testing.assert_allclose(result[0], np.array([100, 60, 40]) * factor, atol=1)
        seen["contrast"].add(result != unchanged)

        result = jittered(seed, image, saturation=(0.0, 0.5))
        assert result[1] == [200, 200, 200]  # grey stays what it is
        seen["saturation"].add(result[2] != [255, 0, 0])
        if result[2] != [255, 0, 0]:
            red, green, blue = result[2]
            assert red == 255
            assert green == blue >= 127

        result = jittered(seed, image, hue=36)
        assert result[1] == [200, 200, 200]
        hue, saturation, value = colorsys.rgb_to_hsv(*(v / 255 for v in result[2]))
        assert (saturation, value) == (1, 1)
        assert min(hue, 1 - hue) <= 0.1 + 1 / 128  # 36 degrees, in 256ths of a circle
        seen["hue"].add(result[2] != [255, 0, 0])
    assert all(outcomes == {True, False} for outcomes in seen.values())


def test_colours_change_half_of_the_time_and_in_either_order():
    image = rgb_image((180, 90, 30))
    changed = [jittered(s, image, contrast=(0.5, 0.5)) != [[180, 90, 30]] for s in range(200)]
    assert 70 < sum(changed) < 130
    # Saturating first, then more contrast, clips otherwise than the other way round.
    both = {str(jittered(s, image, contrast=(2, 2), saturation=(1.5, 1.5))) for s in range(40)}
    assert len(both) == 5  # neither, one, the other, both in two orders


def test_processor_resize_gives_what_the_processor_gives():
    scene = SceneDataset([9], 50)[0]
    for options in (
        {"size": {"height": 30, "width": 41}},
        {"size": {"shortest_edge": 64, "longest_edge": 90}, "resample": Image.Resampling.BICUBIC},
        {"do_resize": False},
        {"do_center_crop": True, "crop_size": {"height": 20, "width": 24}, "size": 40},
    ):
        processor = Mask2FormerImageProcessor(**options, do_rescale=False, do_normalize=False)
        sample = ProcessorResize(processor)(scene, rng())
        wanted = processor(scene.image, scene.masks, do_pad=False)
        # one step of 255, as in test_a_part_of_a_resized_sample_is_cut_out_of_the_whole
        assert (sample.image - wanted["pixel_values"][0]).abs().max() <= 1
        labels = wanted["class_labels"][0]
        kept = labels >= 0
        assert torch.equal(sample.masks_of(labels[kept]), wanted["mask_labels"][0][kept])


CROWDED_MAP = torch.tensor([[VOID, 0, 0, 1], [3, 3, 1, VOID]], dtype=torch.int32)


def test_empty_and_crowd_segments_leave_an_index_map():
    sample = make_sample(CROWDED_MAP, [5, 6, 7, 8], [False, True, False, False])
    result = training_targets(sample)
    assert result.masks.tolist() == [[VOID, 0, 0, VOID], [1, 1, VOID, VOID]]
    assert result.masks.dtype == torch.int32
    assert result.labels.tolist() == [5, 8]
    assert result.crowd.tolist() == [False, False]
    assert training_targets(result).masks.equal(result.masks)


def test_void_and_crowds_of_an_index_map_can_be_ignored():
    sample = make_sample(CROWDED_MAP, [5, 6, 7, 8], [False, True, False, False])
    result = training_targets(sample, "ignore")
    x = IGNORED
    assert result.masks.tolist() == [[x, 0, 0, x], [1, 1, x, x]]
    assert result.labels.tolist() == [5, 8]


def test_empty_and_crowd_masks_leave_and_crowds_can_be_ignored():
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 1]]]).bool()
    sample = make_sample(masks, [5, 6, 7, 8], [False, True, False, False])
    result = training_targets(sample)
    assert result.masks.tolist() == masks[[0, 3]].tolist()
    assert result.labels.tolist() == [5, 8]
    ignoring = training_targets(sample, "ignore", 200)
    assert ignoring.masks.tolist() == [[[1, 1, 200, 0]], [[0, 0, 200, 1]]]
    assert ignoring.masks.dtype == torch.uint8
    assert ignoring.labels.tolist() == [5, 8]
    plain = make_sample(masks[:2], [5, 6])
    assert training_targets(plain, "ignore") is plain


def test_images_without_segments_pass():
    empty = make_sample(torch.zeros(0, 9, 12).bool())
    void = make_sample(torch.full((9, 12), VOID, dtype=torch.int32), [4], [True])
    for augment in AUGMENTATIONS.values():
        for sample in (empty, void):
            result = augment(sample, rng())
            assert result.labels.shape == (0,)
            assert result.masks.shape == ((0,) if sample is empty else ()) + result.size


def test_the_same_numbers_give_the_same_sample_also_after_pickling():
    sample = SceneDataset([4], 48)[0]
    before = sample.image.clone(), sample.masks.clone()
    for augment in AUGMENTATIONS.values():
        first, again, other = (
            a(sample, rng(seed))
            for a, seed in ((augment, 5), (pickle.loads(pickle.dumps(augment)), 5), (augment, 6))
        )
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.masks, again.masks)
        assert augment.canvas is None or not torch.equal(first.image, other.image)
    assert torch.equal(sample.image, before[0])
    assert torch.equal(sample.masks, before[1])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: coco_lsj(scales=(0.0, 1.0)), "scales must be two numbers, 0 < low <= high"),
        (lambda: coco_lsj(flip=1.5), "The probability of a flip is 1.5; give 0 to 1."),
        (lambda: coco_lsj(void="drop"), "void must be 'background' or 'ignore', not 'drop'."),
        (lambda: coco_lsj(void="ignore", ignore_value=300), "ignore_value is 300, but masks hold"),
        (lambda: semantic_crop(short_sides=[]), "short_sides must be lengths above 0, not ()."),
        (lambda: semantic_crop(max_ratio=0), "max_ratio must be above 0 and at most 1, not 0."),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
