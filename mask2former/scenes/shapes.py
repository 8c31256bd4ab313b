"""The geometry of the things in rendered scenes: discs, boxes, triangles and stars."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DISC, BOX, TRIANGLE, STAR = range(4)


@dataclass(frozen=True)
class Thing:
    """The geometry of one thing; lengths in units of the picture's shorter side.

    Attributes:
        label_id: DISC, BOX, TRIANGLE or STAR.
        centre: (x, y) from the picture's top left corner.
        radius: of the circle around the shape (a disc's longer half axis).
        angle: rotation in radians, from the x axis towards the y axis (down).
        form: what else the shape needs, in units of the radius. Disc: its half axes (1, b). Box:
            its half sides (a, b). Triangle: its three corner angles in radians. Star: the distance
            of its inner corners from the centre.
    """

    label_id: int
    centre: tuple[float, float]
    radius: float
    angle: float
    form: tuple[float, ...]

    def to_local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picture coordinates to the shape's own frame, where its radius is 1 and its angle 0."""
        cos, sin = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        x, y = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        return np.float32(cos) * x + np.float32(sin) * y, np.float32(cos) * y - np.float32(sin) * x

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance to the outline, negative inside, of points in the shape's own frame.

        The sign is exact; the value is exact near straight edges, which is where it is used.
        """
        return _DISTANCES[self.label_id](u, v, self.form)


def _disc_distance(u: np.ndarray, v: np.ndarray, form: tuple[float, ...]) -> np.ndarray:
    a, b = form
    return (np.hypot(u / np.float32(a), v / np.float32(b)) - 1) * np.float32(b)


def _box_distance(u: np.ndarray, v: np.ndarray, form: tuple[float, ...]) -> np.ndarray:
    a, b = form
    return np.maximum(np.abs(u) - np.float32(a), np.abs(v) - np.float32(b))


def _triangle_distance(u: np.ndarray, v: np.ndarray, form: tuple[float, ...]) -> np.ndarray:
    distances = []
    for first, second in zip(form, form[1:] + form[:1], strict=True):
        # The chord between two points of the unit circle, seen from its outward normal.
        gap = (second - first) % (2 * np.pi)
        normal = first + gap / 2
        distances.append(
            np.float32(np.cos(normal)) * u
            + np.float32(np.sin(normal)) * v
            - np.float32(np.cos(gap / 2))
        )
    return np.maximum(np.maximum(distances[0], distances[1]), distances[2])


def _star_distance(u: np.ndarray, v: np.ndarray, form: tuple[float, ...]) -> np.ndarray:
    # Fold the plane into the half sector from an outer corner at angle 0 to an inner one at 36
    # degrees: there the outline is a single straight edge.
    sector = np.float32(2 * np.pi / 5)
    turn = np.arctan2(v, u) / sector
    angle = np.abs(turn - np.round(turn)) * sector
    length = np.hypot(u, v)
    inner_x, inner_y = form[0] * np.cos(np.pi / 5), form[0] * np.sin(np.pi / 5)
    edge = np.hypot(1 - inner_x, inner_y)
    normal_x, normal_y = np.float32(inner_y / edge), np.float32((1 - inner_x) / edge)
    return normal_x * (length * np.cos(angle) - 1) + normal_y * (length * np.sin(angle))


_DISTANCES: dict[int, Callable[..., np.ndarray]] = {
    DISC: _disc_distance,
    BOX: _box_distance,
    TRIANGLE: _triangle_distance,
    STAR: _star_distance,
}


def random_form(rng: np.random.Generator, label_id: int) -> tuple[float, ...]:
    """A random `Thing.form` for a label: discs nearly round, boxes up to twice as long as wide."""
    if label_id == DISC:
        return 1.0, float(rng.uniform(0.85, 1))
    if label_id == BOX:
        half_diagonal = np.arctan(np.exp(rng.uniform(-np.log(2), np.log(2))))
        return float(np.cos(half_diagonal)), float(np.sin(half_diagonal))
    if label_id == TRIANGLE:
        corners = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.25, 0.25, 3)
        return tuple(float(corner) for corner in corners)
    return (float(rng.uniform(0.4, 0.5)),)
