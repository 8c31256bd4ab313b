import numpy as np
import pytest

from mask2former.data.taxonomies import TAXONOMIES
from mask2former.synthetic import ID2LABEL, THING_LABEL_IDS, render_scene
from mask2former.synthetic_shapes import BOX, DISC, STAR, TRIANGLE, Thing

SEEDS = range(40)
SCENES = [render_scene(seed, 64, 64) for seed in SEEDS]


def thing(label, form):
    return Thing(label, (0.5, 0.5), 0.2, 0.0, form)


def test_shapes_are_the_classes_of_the_scenes():
    taxonomy = TAXONOMIES["shapes"]
    assert [category.name for category in taxonomy.categories] == list(ID2LABEL.values())
    for scene in SCENES:
        ids, segments = taxonomy.annotate(scene)
        assert np.array_equal(ids, scene.segmentation)
        assert [(number, category.name) for number, category in segments] == [
            (segment["id"], ID2LABEL[segment["label_id"]]) for segment in scene.segments_info
        ]


@pytest.mark.parametrize(
    ("label", "form", "name"),
    [
        (DISC, (1.0, 0.9), "round"),
        (BOX, (0.7, 0.7), "square"),
        (BOX, (0.5, 0.5 * 1.41), "square"),
        (BOX, (0.5 * 1.42, 0.5), "oblong"),
        (BOX, (0.5, 0.5 * 1.42), "oblong"),
        (TRIANGLE, (0.0, 2.1, 4.2), "pointed"),
        (STAR, (0.45,), "pointed"),
    ],
)
def test_outlines_depend_on_the_shape_and_the_ratio_of_its_sides(label, form, name):
    assert TAXONOMIES["outlines"].name_of_thing(thing(label, form)) == name


def test_outlines_join_ground_and_water_to_one_segment():
    joined = 0
    for scene in SCENES:
        ids, segments = TAXONOMIES["outlines"].annotate(scene)
        true_label = np.zeros(len(scene.segments_info) + 1, int)
        for segment in scene.segments_info:
            true_label[segment["id"]] = segment["label_id"]
        names = np.array([ID2LABEL[label] for label in true_label])[scene.segmentation]
        surface = [number for number, category in segments if category.name == "surface"]
        assert np.array_equal(np.isin(ids, surface), np.isin(names, ["ground", "water"]))
        assert len(surface) <= 1
        joined += {"ground", "water"} <= set(names.flat)
        things = np.isin(names, [ID2LABEL[label] for label in THING_LABEL_IDS])
        assert np.array_equal(ids[things], scene.segmentation[things])
    assert joined > 5


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)
def test_every_class_occurs_and_every_pixel_belongs_to_a_listed_segment(taxonomy):
    seen = set()
    for scene in SCENES:
        ids, segments = taxonomy.annotate(scene)
        assert set(np.unique(ids)) == {number for number, _ in segments}
        seen |= {category for _, category in segments}
    assert seen == set(taxonomy.categories)


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)
def test_category_numbers_rise_from_one_with_gaps(taxonomy):
    numbers = [category.id for category in taxonomy.categories]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1 and numbers[-1] > len(numbers)


def test_half_of_the_boxes_are_square():
    boxes = [t for seed in range(120) for t in render_scene(seed, 32, 32).things]
    names = [TAXONOMIES["outlines"].name_of_thing(t) for t in boxes if t.label_id == BOX]
    # 100 or so boxes: two standard deviations of a fair coin are 0.1.
    assert names.count("square") / len(names) == pytest.approx(0.5, abs=0.1)
