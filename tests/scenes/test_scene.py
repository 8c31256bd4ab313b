import numpy as np
import pytest

from mask2former.scenes.scene import (
    GROUND,
    ID2LABEL,
    MAX_THINGS,
    RADIUS_RANGE,
    SKY,
    STUFF_LABEL_IDS,
    THING_LABEL_IDS,
    render_scene,
)
from tests.scenes.test_shapes import covers

SEEDS = range(30)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed) for seed in SEEDS]


def labels_of(scene) -> np.ndarray:
    table = np.full(scene.segmentation.max() + 1, -1)
    for segment in scene.segments_info:
        table[segment["id"]] = segment["label_id"]
    return table[scene.segmentation]


def pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    short = min(height, width)
    return (np.arange(width) + 0.5)[None] / short, (np.arange(height) + 0.5)[:, None] / short


def test_labels_are_things_and_stuff():
    assert sorted(THING_LABEL_IDS + STUFF_LABEL_IDS) == sorted(ID2LABEL) == list(range(7))


def test_arrays_have_the_documented_types(scenes):
    for scene in scenes:
        assert scene.image.shape == (192, 192, 3)
        assert scene.image.dtype == np.uint8
        assert scene.segmentation.shape == (192, 192)
        assert scene.segmentation.dtype == np.int32


def test_every_pixel_belongs_to_a_listed_segment(scenes):
    for scene in scenes:
        ids = [segment["id"] for segment in scene.segments_info]
        assert ids == list(range(1, len(ids) + 1))
        assert np.unique(scene.segmentation).tolist() == ids


def test_stuff_is_one_segment_per_class_and_comes_first(scenes):
    for scene in scenes:
        labels = [segment["label_id"] for segment in scene.segments_info]
        stuff = labels[: len(labels) - len(scene.things)]
        assert 2 <= len(stuff) == len(set(stuff)) <= 3
        assert set(stuff) <= set(STUFF_LABEL_IDS)
        assert labels[len(stuff) :] == [thing.label_id for thing in scene.things]


@pytest.mark.parametrize(("height", "width"), [(192, 192), (120, 200), (201, 97)])
def test_things_cover_exactly_what_their_geometry_says(height, width):
    x, y = pixel_centres(height, width)
    misjudged = 0
    for seed in SEEDS[:10]:
        scene = render_scene(seed, height, width)
        stuff = len(scene.segments_info) - len(scene.things)
        expected = np.zeros((height, width), np.int32)
        for number, thing in enumerate(scene.things, start=stuff + 1):  # the painter's order
            expected[covers(thing, x, y)] = number
        found = np.where(scene.segmentation > stuff, scene.segmentation, 0)
        misjudged += np.count_nonzero(found != expected)
    # Pixel centres that lie on an outline to the precision of float32.
    assert misjudged <= 1


def test_things_are_few_sized_in_range_and_visible(scenes):
    for scene in scenes:
        assert 1 <= len(scene.things) <= MAX_THINGS
        stuff = len(scene.segments_info) - len(scene.things)
        for number, thing in enumerate(scene.things, start=stuff + 1):
            # The whole shape, also where it lies outside of the picture.
            steps = np.arange(-384, 576) / 192 + 0.5 / 192
            whole = np.count_nonzero(covers(thing, steps[None], steps[:, None]))
            visible = np.count_nonzero(scene.segmentation == number)
            assert RADIUS_RANGE[0] <= thing.radius <= RADIUS_RANGE[1]
            assert visible >= max(60, 0.35 * whole)


def test_occlusion_is_common(scenes):
    x, y = pixel_centres(192, 192)
    occluded = 0
    for scene in scenes:
        stuff = len(scene.segments_info) - len(scene.things)
        for number, thing in enumerate(scene.things, start=stuff + 1):
            occluded += np.any(scene.segmentation[covers(thing, x, y)] > number)
    assert occluded >= len(scenes) // 3


def test_things_stand_out_from_what_surrounds_them(scenes):
    contrasts = []
    for scene in scenes:
        picture = scene.image.astype(float) / 255
        stuff = len(scene.segments_info) - len(scene.things)
        beneath = scene.segmentation <= stuff
        for number in range(stuff + 1, len(scene.segments_info) + 1):
            own = scene.segmentation == number
            rows, columns = np.nonzero(own)
            near = np.zeros_like(own)
            near[max(0, rows.min() - 8) : rows.max() + 9, columns.min() : columns.max() + 1] = True
            if np.any(near & beneath):
                difference = picture[own].mean(0) - picture[near & beneath].mean(0)
                contrasts.append(np.linalg.norm(difference))
    assert len(contrasts) > 60
    assert np.quantile(contrasts, 0.1) > 0.2
    assert min(contrasts) > 0.1


def test_all_classes_occur(scenes):
    seen = {segment["label_id"] for scene in scenes for segment in scene.segments_info}
    assert seen == set(ID2LABEL)


def test_the_sky_is_on_top_and_what_is_below_it_is_not(scenes):
    for scene in scenes:
        labels = labels_of(scene)
        rows = np.arange(192)[:, None] + np.zeros((1, 192))
        stuff = [label for label in STUFF_LABEL_IDS if np.any(labels == label)]
        middles = {label: rows[labels == label].mean() for label in stuff}
        if SKY in middles:
            assert min(middles, key=middles.get) == SKY


def test_borders_of_stuff_are_irregular(scenes):
    kinks = []
    for scene in scenes:
        labels = labels_of(scene)
        if GROUND not in labels or SKY not in labels:
            continue
        border = np.argmax(labels == GROUND, axis=0)
        columns = np.arange(192)
        line = np.polyval(np.polyfit(columns, border, 1), columns)
        kinks.append(np.std(border - line))
    assert len(kinks) >= 5
    assert np.median(kinks) > 1.5


def test_the_same_seed_gives_the_same_bytes():
    for seed in (0, 7, 2**40):
        first, second = render_scene(seed), render_scene(seed)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.segmentation.tobytes() == second.segmentation.tobytes()
        assert first.segments_info == second.segments_info
        assert first.things == second.things


def test_seeds_differ():
    pictures = {render_scene(seed, 48, 48).image.tobytes() for seed in range(20)}
    assert len(pictures) == 20


def test_another_size_is_the_same_scene_at_another_resolution():
    for seed in SEEDS[:10]:
        small, large = render_scene(seed, 96, 144), render_scene(seed, 288, 432)
        assert small.things == large.things
        assert small.segments_info == large.segments_info
        # The centre of a small pixel is the centre of the middle one of 3 x 3 large pixels.
        agreement = np.mean(small.segmentation == large.segmentation[1::3, 1::3])
        assert agreement > 0.999


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 200), (480, 64)])
def test_odd_sizes_render(height, width):
    for seed in range(5):
        scene = render_scene(seed, height, width)
        assert scene.image.shape == (height, width, 3)
        assert np.unique(scene.segmentation).tolist() == [s["id"] for s in scene.segments_info]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="seed is -1"):
        render_scene(-1)
    with pytest.raises(ValueError, match="31x64 pixels is too small"):
        render_scene(0, 31, 64)
