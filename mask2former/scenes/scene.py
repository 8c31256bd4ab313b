"""Rendered scenes with exact panoptic ground truth: countable shapes on amorphous backgrounds.

A scene is planned in units of the picture's shorter side and then drawn at the size asked for, so
one seed is one scene at any resolution. Things (discs, boxes, triangles, stars) are textured, lit
and cast soft shadows; stuff (sky, ground, water) lies in bands whose borders are noisy curves. The
picture is anti-aliased; the ground truth assigns every pixel to what covers its centre.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mask2former.scenes.shapes import BOX, DISC, STAR, TRIANGLE, Thing, random_form

SKY, GROUND, WATER = range(4, 7)
ID2LABEL: dict[int, str] = {
    DISC: "disc",
    BOX: "box",
    TRIANGLE: "triangle",
    STAR: "star",
    SKY: "sky",
    GROUND: "ground",
    WATER: "water",
}
THING_LABEL_IDS: tuple[int, ...] = (DISC, BOX, TRIANGLE, STAR)
STUFF_LABEL_IDS: tuple[int, ...] = (SKY, GROUND, WATER)

# Training never renders the scenes from the first of these seeds on, and the figures of the bundled
# model are measured on these.
HELD_OUT_SEEDS = range(1_000_000, 1_000_200)

MAX_THINGS = 6
RADIUS_RANGE = (0.07, 0.25)  # of the shorter side
MIN_VISIBLE_FRACTION = 0.4
MIN_VISIBLE_AREA = 0.0018  # of the shorter side squared: 66 pixels at 192
MIN_CONTRAST = 0.38  # Euclidean distance of RGB colours in [0, 1]

# Visibility is decided on a grid of fixed fineness, so that it does not depend on the picture size.
_PLAN_SIZE = 96
_PLACEMENT_TRIES = 12

_BAND_ORDERS = (
    (SKY, GROUND),
    (SKY, WATER),
    (SKY, WATER, GROUND),
    (SKY, GROUND, WATER),
    (GROUND, WATER),
    (WATER, GROUND),
)
_BAND_ORDER_ODDS = (0.2, 0.15, 0.25, 0.2, 0.1, 0.1)


@dataclass(frozen=True)
class Scene:
    """A rendered picture with its panoptic ground truth.

    Attributes:
        image: (height, width, 3) uint8, RGB.
        segmentation: (height, width) int32 segment ids from 1; there is no void.
        segments_info: one {"id": int, "label_id": int} per segment of the map: first the stuff, one
            segment per class, then the things, the farthest first.
        things: the geometry of those things, in the same order.
    """

    image: np.ndarray
    segmentation: np.ndarray
    segments_info: list[dict[str, int]]
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class _Frame:
    """Pixel centres in units of the shorter side: x is (1, width), y is (height, 1), float32."""

    height: int
    width: int

    @property
    def short(self) -> int:
        return min(self.height, self.width)

    @property
    def x(self) -> np.ndarray:
        return ((np.arange(self.width, dtype=np.float32) + 0.5) / self.short)[None]

    @property
    def y(self) -> np.ndarray:
        return ((np.arange(self.height, dtype=np.float32) + 0.5) / self.short)[:, None]

    def window(self, thing: Thing, margin: float) -> tuple[slice, slice]:
        """The rows and columns that the thing, grown by `margin`, may touch."""
        reach = thing.radius + margin
        column, row = (
            slice(
                max(0, int((middle - reach) * self.short)),
                max(0, int((middle + reach) * self.short) + 2),
            )
            for middle in thing.centre
        )
        return row, column


def render_scene(seed: int, height: int = 192, width: int = 192) -> Scene:
    """Render the scene of a seed.

    Args:
        seed: any integer from 0; the same seed, size and numpy give the same bytes.
        height, width: size in pixels, at least 32 each. The same seed at another size of the same
            proportions is the same scene at another resolution, up to the grain of the picture.

    Raises:
        ValueError: if the seed is negative or the picture too small.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}: give an integer from 0.")
    if min(height, width) < 32:
        raise ValueError(f"A scene of {height}x{width} pixels is too small: give at least 32x32.")
    # One stream per purpose: what one stage draws does not move the others.
    plan_rng, stuff_rng, thing_rng, grain_rng = (
        np.random.default_rng([seed, stream]) for stream in range(4)
    )
    frame = _Frame(height, width)
    canvas, labels = _paint_stuff(stuff_rng, frame)
    order = [label_id for label_id in STUFF_LABEL_IDS if label_id in labels]
    owners = np.zeros((height, width), np.int32)
    for segment_id, label_id in enumerate(order, start=1):
        owners[labels == label_id] = segment_id
    things = _plan_things(plan_rng, frame)
    for thing in things:
        order.append(thing.label_id)
        _paint_thing(thing_rng, frame, canvas, owners, thing, len(order))
    image = _develop(grain_rng, canvas)
    return _scene(image, owners, order, things)


def _scene(image: np.ndarray, owners: np.ndarray, order: list[int], things: list[Thing]) -> Scene:
    """Number the segments that are visible at this size from 1."""
    visible = np.bincount(owners.ravel(), minlength=len(order) + 1)[1:] > 0
    numbers = np.concatenate([[0], np.cumsum(visible)]).astype(np.int32)
    first_thing = len(order) - len(things)
    return Scene(
        image=image,
        segmentation=numbers[owners],
        segments_info=[
            {"id": int(numbers[i + 1]), "label_id": label_id}
            for i, label_id in enumerate(order)
            if visible[i]
        ],
        things=tuple(t for i, t in enumerate(things) if visible[first_thing + i]),
    )


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Exposure, contrast and grain of the whole picture; float RGB in [0, 1] to uint8."""
    exposure, contrast = rng.uniform(0.88, 1.1), rng.uniform(0.88, 1.1)
    grain = rng.uniform(0.004, 0.025)
    picture = canvas * np.float32(exposure * contrast) + np.float32(exposure * (1 - contrast) / 2)
    picture += np.float32(grain) * rng.standard_normal((*canvas.shape[:2], 1), np.float32)
    return (np.clip(picture, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


# Planning: where the things are.


def _plan_things(rng: np.random.Generator, frame: _Frame) -> list[Thing]:
    """Things from back to front, each of which stays visible enough to be recognised."""
    aspect_y, aspect_x = frame.height / frame.short, frame.width / frame.short
    plan = _Frame(round(aspect_y * _PLAN_SIZE), round(aspect_x * _PLAN_SIZE))
    owners = np.full((plan.height, plan.width), -1, np.int32)
    things: list[Thing] = []
    full_areas: list[float] = []
    for _ in range(rng.integers(1, MAX_THINGS + 1)):
        for _ in range(_PLACEMENT_TRIES):
            thing = _random_thing(rng, aspect_y, aspect_x, things)
            area, rows, columns, inside = _footprint(plan, thing)
            candidate = owners.copy()
            candidate[rows, columns][inside] = len(things)
            seen = np.bincount(candidate[candidate >= 0], minlength=len(things) + 1)
            needed = MIN_VISIBLE_FRACTION * np.array([*full_areas, area])
            if np.all(seen >= np.maximum(needed, MIN_VISIBLE_AREA * _PLAN_SIZE**2)):
                owners = candidate
                things.append(thing)
                full_areas.append(area)
                break
    return things


def _footprint(plan: _Frame, thing: Thing) -> tuple[float, slice, slice, np.ndarray]:
    """The whole area of a thing in plan pixels, and its pixels within the picture."""
    steps = np.linspace(-1, 1, 49, dtype=np.float32)
    share = np.mean(thing.distance(steps[None], steps[:, None]) <= 0)
    area = share * (2 * thing.radius * plan.short) ** 2
    rows, columns = plan.window(thing, margin=0)
    u, v = thing.to_local(plan.x[:, columns], plan.y[rows])
    return float(area), rows, columns, thing.distance(u, v) <= 0


def _random_thing(
    rng: np.random.Generator, aspect_y: float, aspect_x: float, planned: list[Thing]
) -> Thing:
    label_id = int(rng.choice(THING_LABEL_IDS))
    radius = float(np.exp(rng.uniform(*np.log(RADIUS_RANGE))))
    x, y = rng.uniform(0.04, aspect_x - 0.04), rng.uniform(0.04, aspect_y - 0.04)
    if planned and rng.random() < 0.45:  # next to another thing, so that occlusion is common
        other = planned[rng.integers(len(planned))]
        direction = rng.uniform(0, 2 * np.pi)
        gap = rng.uniform(0.45, 1.05) * (radius + other.radius)
        x = other.centre[0] + gap * np.cos(direction)
        y = other.centre[1] + gap * np.sin(direction)
    return Thing(
        label_id,
        (float(x), float(y)),
        radius,
        float(rng.uniform(0, 2 * np.pi)),
        random_form(rng, label_id),
    )


# Painting the things.


def _paint_thing(
    rng: np.random.Generator,
    frame: _Frame,
    canvas: np.ndarray,
    owners: np.ndarray,
    thing: Thing,
    segment_id: int,
) -> None:
    """Draw one thing over `canvas` and enter it into `owners`, both in place."""
    shadow_offset, shadow_width = rng.uniform(0.06, 0.16), rng.uniform(0.08, 0.2)
    light = rng.uniform(0, 2 * np.pi)
    rows, columns = frame.window(thing, margin=0.35 * thing.radius)
    u, v = thing.to_local(frame.x[:, columns], frame.y[rows])
    pixels_per_radius = np.float32(thing.radius * frame.short)
    distance = thing.distance(u, v)
    ground_truth = distance <= 0
    owners[rows, columns][ground_truth] = segment_id

    patch = canvas[rows, columns]
    light_u, light_v = np.float32(np.cos(light)), np.float32(np.sin(light))
    offset = np.float32(shadow_offset)
    behind = thing.distance(u + offset * light_u, v + offset * light_v)
    shadow = np.clip(0.5 - behind / np.float32(shadow_width), 0, 1) * np.float32(0.42)
    patch *= 1 - shadow[..., None]

    first, second = _contrasting_colours(rng, patch[ground_truth])
    mix = _texture(rng, u, v, pixels_per_radius)
    paint = first + mix[..., None] * (second - first)
    rim = np.clip(1 + distance * np.float32(6), 0, 1)  # darker towards the outline
    paint *= (1 + np.float32(0.2) * (light_u * u + light_v * v) - np.float32(0.13) * rim)[..., None]
    coverage = np.clip(0.5 - distance * pixels_per_radius, 0, 1)[..., None]
    patch += coverage * (paint - patch)


def _contrasting_colours(rng: np.random.Generator, beneath: np.ndarray) -> np.ndarray:
    """Two colours (2, 3) for a texture, whose mean stands out against most of `beneath` (n, 3)."""
    pairs = _colour_pairs(rng, 16)
    if not len(beneath):
        return pairs[0]
    beneath = beneath[:: max(1, len(beneath) // 200)]
    distances = np.linalg.norm(pairs.mean(axis=1)[:, None] - beneath, axis=-1)
    contrast = np.sort(distances, axis=1)[:, len(beneath) // 6]
    good = np.flatnonzero(contrast >= MIN_CONTRAST)
    return pairs[good[0] if len(good) else np.argmax(contrast)]


def _colour_pairs(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random pairs of a lighter and a darker colour, of related or different hue; (count, 2, 3)."""
    hue, saturation, value = rng.random(count), rng.uniform(0.3, 0.95, count), rng.random(count)
    value = 0.35 + 0.65 * value
    other_hue = hue + np.choose(
        rng.integers(3, size=count),
        [np.zeros(count), rng.uniform(-0.12, 0.12, count), rng.uniform(0.2, 0.8, count)],
    )
    other_value = value + np.where(value < 0.62, 0.4, -0.35) * rng.uniform(0.6, 1, count)
    return np.stack(
        [_rgb(hue, saturation, value), _rgb(other_hue, saturation * 0.8, other_value)], axis=1
    )


def _rgb(
    hue: float | np.ndarray, saturation: float | np.ndarray, value: float | np.ndarray
) -> np.ndarray:
    """HSV, all in [0, 1] and the hue cyclic, to float32 RGB in a last axis of its own."""
    hue, saturation, value = (np.asarray(part)[..., None] for part in (hue, saturation, value))
    sector = (np.array([5, 3, 1]) + hue * 6) % 6
    dip = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (value - value * saturation * dip).astype(np.float32)


def _texture(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, pixels_per_radius: np.float32
) -> np.ndarray:
    """A random pattern in [0, 1] over the points (u, v) of a shape's own frame."""
    kind = rng.choice(["stripes", "dots", "checks", "rings", "gradient", "mottle"])
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cos * u + sin * v, cos * v - sin * u
    waves = np.float32(rng.uniform(1.2, 3.2) * np.pi)
    if kind in ("dots", "rings"):  # several of them: a single one would pass for a disc
        waves *= np.float32(1.6)
    if kind == "gradient":
        return np.clip(0.5 + u / 2, 0, 1)
    if kind == "mottle":
        return np.clip(0.5 + 0.45 * _plane_waves(rng, u, v, waves), 0, 1)
    if kind == "stripes":
        wave = np.sin(waves * u + np.float32(0.5) * np.sin(waves / 2 * v))
    elif kind == "dots":
        wave = np.cos(waves * u) + np.cos(waves * v) - 1
    elif kind == "checks":
        wave = np.sin(waves * u) * np.sin(waves * v)
    else:
        wave = np.sin(waves * np.hypot(u, v))
    # Edges of the pattern as wide as a pixel: sharp, but without aliasing.
    return np.clip(0.5 + wave * (pixels_per_radius / waves), 0, 1)


def _plane_waves(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, frequency: np.float32
) -> np.ndarray:
    """Isotropic noise of about unit variance, defined at every point: five random plane waves."""
    total = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
    for direction, phase, stretch in rng.random((5, 3)):
        turn, rate = 2 * np.pi * direction, frequency * (0.6 + stretch)
        total += np.sin(
            np.float32(rate * np.cos(turn)) * u
            + np.float32(rate * np.sin(turn)) * v
            + np.float32(2 * np.pi * phase)
        )
    return total * np.float32(np.sqrt(2 / 5))


# Painting the stuff.


def _paint_stuff(rng: np.random.Generator, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    """Bands of stuff, top to bottom: float32 RGB (height, width, 3) and labels (height, width)."""
    bands = _BAND_ORDERS[rng.choice(len(_BAND_ORDERS), p=_BAND_ORDER_ODDS)]
    tops = [0.0, rng.uniform(0.28, 0.62)]
    if len(bands) == 3:
        tops = [0.0, rng.uniform(0.22, 0.42), rng.uniform(0.58, 0.8)]
    labels = np.full((frame.height, frame.width), bands[0], np.int32)
    height = frame.height / frame.short
    canvas = _PAINTERS[bands[0]](rng, frame, frame.y)
    for above, label_id, top in zip(bands[:-1], bands[1:], tops[1:], strict=True):
        depth = _depth_below_border(
            rng, frame, top * height, calm=(above, label_id) == (SKY, WATER)
        )
        softness = np.float32(rng.uniform(0.012, 0.035))
        blend = np.clip(0.5 + depth / softness, 0, 1)
        blend *= blend * (3 - 2 * blend)
        first_row = int(np.argmax(blend.any(axis=1)))
        paint = _PAINTERS[label_id](rng, frame, frame.y[first_row:])
        canvas[first_row:] += blend[first_row:, :, None] * (paint - canvas[first_row:])
        labels[depth > 0] = label_id
    return canvas, labels


def _depth_below_border(
    rng: np.random.Generator, frame: _Frame, top: float, calm: bool
) -> np.ndarray:
    """How far below a sloped, wavy and frayed border every pixel lies; (height, width)."""
    slope, swell = rng.uniform(-0.18, 0.18), rng.uniform(0.015, 0.045)
    fray = rng.uniform(0.004, 0.012)
    if calm:  # the horizon of a lake is nearly straight
        slope, swell, fray = slope / 5, swell / 6, fray / 3
    line = np.float32(top) + np.float32(slope) * (frame.x - frame.width / frame.short / 2)
    everywhere = np.zeros((1, 1), np.float32)
    line = line + np.float32(swell) * _noise(rng, frame, everywhere, 1, 0.22)
    line = line + np.float32(swell / 3) * _noise(rng, frame, everywhere, 1, 0.07)
    frayed = _noise(rng, frame, frame.y, 0.04, 0.05) + _noise(rng, frame, frame.y, 0.017, 0.017)
    return frame.y - line + np.float32(fray) * frayed


def _noise(
    rng: np.random.Generator, frame: _Frame, y: np.ndarray, cell_y: float, cell_x: float
) -> np.ndarray:
    """Smooth Gaussian noise of unit variance at the rows `y` (H, 1) of the frame; (H, width).

    Random numbers on a lattice of the given cell size, blurred by a Gaussian: two thin matrix
    products, and the same field at every resolution.
    """
    rows = _lattice_weights(y, frame.height / frame.short, cell_y)
    columns = _lattice_weights(frame.x, frame.width / frame.short, cell_x)
    lattice = rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32)
    return rows @ lattice @ columns.T


def _lattice_weights(positions: np.ndarray, extent: float, cell: float) -> np.ndarray:
    """Weights (positions, lattice nodes) whose squares sum to one; positions in [0, extent]."""
    nodes = np.arange(-2, np.ceil(extent / cell) + 3, dtype=np.float32)
    offsets = positions.reshape(-1, 1) / np.float32(cell) - nodes
    weights = np.exp(-2 * offsets * offsets)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _blend(first: np.ndarray, second: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Colours from `first` (3,) to `second` (3,) by `amount` (height, width), clipped to [0, 1]."""
    return first + np.clip(amount, 0, 1)[..., None] * (second - first)


def _paint_sky(rng: np.random.Generator, frame: _Frame, y: np.ndarray) -> np.ndarray:
    mood = rng.choice(["clear", "overcast", "sunset"], p=[0.55, 0.2, 0.25])
    if mood == "clear":
        hue = rng.uniform(0.55, 0.62)
        zenith = _rgb(hue, rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.95))
        horizon, cloud = _rgb(hue, rng.uniform(0.1, 0.3), 0.97), _rgb(hue, 0.03, 1.0)
    elif mood == "overcast":
        zenith = _rgb(0.6, rng.uniform(0.05, 0.2), rng.uniform(0.5, 0.7))
        horizon, cloud = _rgb(0.6, 0.05, rng.uniform(0.75, 0.9)), _rgb(0.6, 0.06, 0.92)
    else:
        zenith = _rgb(rng.uniform(0.62, 0.78), rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.65))
        horizon = _rgb(rng.uniform(0.03, 0.11), rng.uniform(0.35, 0.6), 0.98)
        cloud = _rgb(rng.uniform(0.93, 1.03), 0.35, 0.95)
    sky = _blend(zenith, horizon, np.broadcast_to(y / np.float32(0.6), (len(y), frame.width)))
    billows = sum(
        size * _noise(rng, frame, y, 0.17 * size, 0.34 * size) for size in (1.0, 0.5, 0.25)
    )
    cover = np.float32(rng.uniform(0.1, 0.7)) * np.clip(
        billows * 0.6 - rng.uniform(-0.2, 0.6), 0, 1
    )
    return sky + cover[..., None] * (cloud - sky)


def _paint_ground(rng: np.random.Generator, frame: _Frame, y: np.ndarray) -> np.ndarray:
    kind = rng.choice(["grass", "earth", "sand"])
    if kind == "grass":
        base = _rgb(rng.uniform(0.2, 0.36), rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.6))
        other = _rgb(rng.uniform(0.13, 0.3), rng.uniform(0.4, 0.65), rng.uniform(0.4, 0.75))
    elif kind == "earth":
        base = _rgb(rng.uniform(0.03, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.3, 0.55))
        other = _rgb(rng.uniform(0.05, 0.25), rng.uniform(0.25, 0.5), rng.uniform(0.35, 0.65))
    else:
        base = _rgb(rng.uniform(0.08, 0.13), rng.uniform(0.25, 0.45), rng.uniform(0.7, 0.92))
        other = _rgb(rng.uniform(0.07, 0.14), rng.uniform(0.2, 0.45), rng.uniform(0.55, 0.8))
    patches = _noise(rng, frame, y, 0.09, 0.17) + _noise(rng, frame, y, 0.03, 0.06)
    ground = _blend(base, other, 0.5 + 0.3 * patches)
    speckle = _noise(rng, frame, y, 0.0105, 0.013)
    return ground * (1 + np.float32(rng.uniform(0.05, 0.13)) * speckle)[..., None]


def _paint_water(rng: np.random.Generator, frame: _Frame, y: np.ndarray) -> np.ndarray:
    hue = rng.uniform(0.46, 0.6)
    near = _rgb(hue, rng.uniform(0.55, 0.85), rng.uniform(0.25, 0.5))
    far = _rgb(hue + rng.uniform(-0.03, 0.05), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.75))
    depth = (y - y[0]) / (y[-1] - y[0])
    nearness = np.sqrt(depth)  # waves grow towards the viewer
    swell = _noise(rng, frame, nearness, 0.045, 0.2)
    ripples = _noise(rng, frame, nearness, 0.022, 0.09)
    water = _blend(far, near, depth + np.float32(0.16) * swell)
    glints = np.clip(swell + ripples - 1.1, 0, 1) * np.float32(rng.uniform(0.25, 0.6))
    shade = 1 + np.float32(0.07) * ripples
    return water * shade[..., None] + glints[..., None] * (0.97 - water)


_PAINTERS: dict[int, Callable[[np.random.Generator, _Frame, np.ndarray], np.ndarray]] = {
    SKY: _paint_sky,
    GROUND: _paint_ground,
    WATER: _paint_water,
}
