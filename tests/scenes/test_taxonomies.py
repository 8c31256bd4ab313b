import numpy as np
import pytest

from mask2former.scenes.scene import ID2LABEL, THING_LABEL_IDS, render_scene
from mask2former.scenes.taxonomies import TAXONOMIES

SEEDS = range(40)
SCENES = [render_scene(seed, 64, 64) for seed in SEEDS]


def names_of(taxonomy, scene):
    """The class of every pixel, by name."""
    ids, segments = TAXONOMIES[taxonomy].annotate(scene)
    names = {number: category.name for number, category in segments}
    return np.array([names.get(number) for number in range(ids.max() + 1)])[ids]


def test_shapes_are_the_classes_of_the_scenes():
    taxonomy = TAXONOMIES["shapes"]
    assert [category.name for category in taxonomy.categories] == list(ID2LABEL.values())
    for scene in SCENES:
        ids, segments = taxonomy.annotate(scene)
        assert np.array_equal(ids, scene.segmentation)
        assert [(number, category.name) for number, category in segments] == [
            (segment["id"], ID2LABEL[segment["label_id"]]) for segment in scene.segments_info
        ]


def test_outlines_join_boxes_and_triangles():
    outlines = {"disc": "round", "box": "angular", "triangle": "angular", "star": "spiky"}
    for scene in SCENES:
        shapes, expected = names_of("shapes", scene), names_of("outlines", scene)
        for shape, outline in outlines.items():
            assert set(expected[shapes == shape]) <= {outline}


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
