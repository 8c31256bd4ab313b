import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from mask2former.training.curves import COLOURS, INK, draw_curves, moving_mean


def step(number: int, scale: float = 1.0) -> dict:
    parts = {"loss_cross_entropy": 2 * scale, "loss_mask_0": scale, "loss_mask": scale}
    return {"step": number, "loss": 4 * scale, **parts, "lr": 1e-4 / number}


def evaluation(number: int, **metrics: float | None) -> dict:
    return {"step": number, "metrics": metrics}


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def colours_in(path) -> set[str]:
    """Of the palette, those that at least some pixels of a picture have exactly."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    found = set()
    for colour in (INK, *COLOURS):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        if (pixels == rgb).all(1).sum() > 200:
            found.add(colour)
    return found


def test_total_parts_and_rate_have_lines(tmp_path):
    path = tmp_path / "curves.png"
    draw_curves([step(n, 30 / n) for n in range(1, 30)], path)
    assert size(path) == (1760, 864)
    # The two parts that there are, and the total; the rate has the colour of the first part.
    assert colours_in(path) == {INK, *COLOURS[:2]}


def test_every_metric_has_a_line_that_passes_over_what_is_not_known(tmp_path):
    path = tmp_path / "curves.png"
    metrics = [evaluation(10, pq=0.1, ap=None, miou=0.3), evaluation(20, pq=0.2, ap=0.1, miou=0.3)]
    draw_curves(metrics, path)
    assert colours_in(path) - {INK} == set(COLOURS[:3])  # texts have INK


@pytest.mark.parametrize(
    "records",
    [
        [step(10)],
        [evaluation(5, pq=0.1)],
        [evaluation(5, pq=None)],
        [step(10, 0.0), step(20), {**step(30), "loss": None, "loss_mask": None}],
        [step(10), evaluation(10, **{f"metric {i}": i / 20 for i in range(20)})],
    ],
)
def test_short_and_odd_histories_are_drawn(tmp_path, records):
    draw_curves(records, tmp_path / "curves.png")
    assert size(tmp_path / "curves.png") == (1760, 864)


def test_an_empty_history_draws_nothing_and_a_picture_is_replaced_whole(tmp_path):
    path = tmp_path / "curves.png"
    draw_curves([], path)
    assert not path.exists()
    draw_curves([step(1), step(2)], path)
    before = path.read_bytes()
    draw_curves([step(1), step(2), step(3, 5.0)], path)
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_moving_mean_is_centred_and_keeps_a_line():
    line = np.arange(200, dtype=float)
    assert moving_mean(line) == pytest.approx(line)
    spike = np.zeros(200)
    spike[100] = 9
    assert moving_mean(spike)[96:105] == pytest.approx(np.ones(9))
    assert moving_mean(spike)[[95, 105]] == pytest.approx([0, 0])


def test_the_moving_mean_passes_over_nan():
    values = np.array([np.nan, *[1.0] * 100])
    assert np.isnan(moving_mean(values)[0])
    assert moving_mean(values)[1:] == pytest.approx(np.ones(100))
