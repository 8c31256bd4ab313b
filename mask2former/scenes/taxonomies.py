"""What the segments of rendered scenes can be called: the classes of a data set made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mask2former.scenes.scene import ID2LABEL, THING_LABEL_IDS, Scene
from mask2former.scenes.shapes import BOX, DISC, STAR, TRIANGLE, Thing


@dataclass(frozen=True)
class Category:
    """A class of a data set.

    Attributes:
        id: its number in COCO files; as in COCO, numbers start at 1 and have gaps.
        is_thing: whether its objects are told apart.
    """

    id: int
    name: str
    is_thing: bool


@dataclass(frozen=True)
class Taxonomy:
    """A naming of everything in a scene.

    Attributes:
        categories: all classes, in the order of their numbers.
        thing_name: the class of a thing.
        stuff_names: the class of each kind of stuff, by its label in `mask2former.scenes.scene`;
            kinds of the same class are one segment.
    """

    categories: tuple[Category, ...]
    thing_name: Callable[[Thing], str]
    stuff_names: dict[int, str]

    def annotate(self, scene: Scene) -> tuple[np.ndarray, list[tuple[int, Category]]]:
        """The scene's segments under this taxonomy.

        Returns:
            int32 ids (height, width), and the id and class of every segment, by id. Ids are those
            of the scene, except where stuff is joined.
        """
        by_name = {category.name: category for category in self.categories}
        table = np.arange(len(scene.segments_info) + 1, dtype=np.int32)
        stuff: dict[str, int] = {}
        segments = []
        things = iter(scene.things)
        for segment in scene.segments_info:
            number, label = segment["id"], segment["label_id"]
            if label in THING_LABEL_IDS:
                segments.append((number, by_name[self.thing_name(next(things))]))
                continue
            name = self.stuff_names[label]
            table[number] = stuff.setdefault(name, number)
            if stuff[name] == number:
                segments.append((number, by_name[name]))
        return table[scene.segmentation], segments


def _shape(thing: Thing) -> str:
    return ID2LABEL[thing.label_id]


def _outline(thing: Thing) -> str:
    return {DISC: "round", BOX: "angular", TRIANGLE: "angular", STAR: "spiky"}[thing.label_id]


def _names(*rows: tuple[int, str, bool]) -> tuple[Category, ...]:
    return tuple(Category(*row) for row in rows)


TAXONOMIES: dict[str, Taxonomy] = {
    # The classes of `mask2former.scenes.scene`, which the bundled model knows.
    "shapes": Taxonomy(
        _names(
            *((1, "disc", True), (2, "box", True), (4, "triangle", True), (5, "star", True)),
            *((92, "sky", False), (95, "ground", False), (100, "water", False)),
        ),
        _shape,
        {label: ID2LABEL[label] for label in ID2LABEL if label not in THING_LABEL_IDS},
    ),
    # Classes that the bundled model does not know: smooth outlines, convex polygons, others; ground
    # and water are one. Like the shapes they do not depend on the scale, position, rotation or
    # colours of a thing, which training varies. Square and oblong boxes are one class:
    # after 300 steps of tuning the bundled model could not distinguish them.
    "outlines": Taxonomy(
        _names(
            *((1, "round", True), (3, "angular", True), (4, "spiky", True)),
            *((90, "sky", False), (93, "surface", False)),
        ),
        _outline,
        {
            label: "sky" if name == "sky" else "surface"
            for label, name in ID2LABEL.items()
            if label not in THING_LABEL_IDS
        },
    ),
}
