import numpy as np
import pytest

from mask2former.scenes.shapes import BOX, DISC, STAR, TRIANGLE, Thing, random_form


def corners(thing: Thing) -> np.ndarray:
    """The polygon of a thing in picture coordinates, from its documented parameters."""
    if thing.label_id == BOX:
        a, b = thing.form
        local = np.array([(a, b), (-a, b), (-a, -b), (a, -b)])
    elif thing.label_id == TRIANGLE:
        local = np.stack([np.cos(thing.form), np.sin(thing.form)], axis=1)
    else:
        turns = np.arange(10) * np.pi / 5
        lengths = np.where(np.arange(10) % 2, thing.form[0], 1.0)
        local = np.stack([np.cos(turns), np.sin(turns)], axis=1) * lengths[:, None]
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turned = np.stack(
        [local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos], axis=1
    )
    return np.array(thing.centre) + thing.radius * turned


def covers(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Membership in float64, by another method than the package: crossing numbers, ellipses."""
    if thing.label_id == DISC:
        x, y = x - thing.centre[0], y - thing.centre[1]
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        u, v = (cos * x + sin * y) / thing.form[0], (cos * y - sin * x) / thing.form[1]
        return u**2 + v**2 <= thing.radius**2
    polygon = corners(thing)
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        if y0 != y1:
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


@pytest.mark.parametrize("label_id", [DISC, BOX, TRIANGLE, STAR])
def test_the_sign_of_the_distance_is_membership(label_id):
    rng = np.random.default_rng(label_id)
    for _ in range(20):
        centre, radius, angle = rng.uniform(0.2, 0.8, 2), rng.uniform(0.07, 0.25), rng.uniform(0, 7)
        form = random_form(rng, label_id)
        thing = Thing(label_id, tuple(centre), float(radius), float(angle), form)
        x, y = rng.random(5000), rng.random(5000)
        distance = thing.distance(*thing.to_local(x, y))
        # float32 may misjudge only points on the very outline.
        off_outline = np.abs(distance) > 1e-5
        assert off_outline.mean() > 0.99
        np.testing.assert_array_equal(
            (distance <= 0)[off_outline], covers(thing, x, y)[off_outline]
        )
        assert (distance <= 0).any()


@pytest.mark.parametrize("label_id", [DISC, BOX, TRIANGLE, STAR])
def test_a_shape_fills_its_circle_but_stays_in_it(label_id):
    rng = np.random.default_rng(10 + label_id)
    angles = np.linspace(0, 2 * np.pi, 3601)
    for _ in range(20):
        thing = Thing(label_id, (0.0, 0.0), 1.0, 0.0, random_form(rng, label_id))
        assert (thing.distance(1.002 * np.cos(angles), 1.002 * np.sin(angles)) > 0).all()
        assert (thing.distance(0.998 * np.cos(angles), 0.998 * np.sin(angles)) < 0.002).any()


@pytest.mark.parametrize("label_id", [BOX, TRIANGLE, STAR])
def test_the_distance_is_in_radii_near_straight_edges(label_id):
    rng = np.random.default_rng(20 + label_id)
    thing = Thing(label_id, (0.0, 0.0), 1.0, 0.0, random_form(rng, label_id))
    polygon = corners(thing)
    for start, stop in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        along = (stop - start) / np.linalg.norm(stop - start)
        outward = np.array([along[1], -along[0]])
        point = (start + stop) / 2 + 0.03 * outward
        side = 1 if covers(thing, *(point - 0.06 * outward)) else -1
        assert thing.distance(*point) == pytest.approx(side * 0.03, abs=1e-5)


def test_random_boxes_are_at_most_twice_as_long_as_wide():
    rng = np.random.default_rng(3)
    aspects = [np.divide(*random_form(rng, BOX)) for _ in range(500)]
    assert 0.5 <= min(aspects) < 0.6
    assert 1.7 < max(aspects) <= 2.0
