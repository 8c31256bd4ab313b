"""The classes of published data sets."""

import pytest

from mask2former.checkpoints.published_classes import published_classes


@pytest.mark.parametrize(
    ("count", "things", "some"),
    [
        (133, 80, {0: "person", 79: "toothbrush", 80: "banner", 132: "rug-merged"}),
        (19, 8, {0: "road", 10: "sky", 11: "person", 18: "bicycle"}),
        (
            150,
            100,
            {
                0: "wall",
                7: "bed",
                12: "person",
                65: "toilet, can, commode, crapper, pot, potty, stool, throne",
                149: "flag",
            },
        ),
        (65, 37, {0: "Bird", 19: "Person", 55: "Car", 64: "Ego Vehicle"}),
    ],
)
def test_each_data_set_has_its_classes_and_things(count, things, some):
    classes = published_classes(count)
    assert len(classes.names) == len(set(classes.names)) == count
    assert len(set(classes.things)) == things and max(classes.things) < count
    for label, name in some.items():
        assert classes.names[label] == name
    only_things = published_classes(things)
    assert only_things.dataset == f"{classes.dataset}, things only"
    assert only_things.names == [classes.names[label] for label in classes.things]
    assert only_things.things == list(range(things))


def test_things_are_countable_and_stuff_is_not():
    for count, things, stuff in [
        (133, {"person", "dining table"}, {"sky-other-merged", "banner", "light"}),
        (19, {"rider", "train"}, {"pole", "traffic light"}),
        (150, {"bed", "window", "flag"}, {"wall", "sky", "plant", "crt screen"}),
        (65, {"Pole", "Crosswalk - Plain"}, {"Pothole", "On Rails", "Car Mount"}),
    ]:
        classes = published_classes(count)
        found = {classes.names[label] for label in classes.things}
        assert things <= found and not stuff & found


def test_other_numbers_of_classes_are_not_known():
    assert published_classes(3) is None
