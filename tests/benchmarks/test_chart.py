"""The chart of speeds."""

import pytest
from PIL import Image

from benchmarks.contestants import GRID_SAMPLE, OURS
from tests.benchmarks.samples import measured, measured_on_gpu

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402

from benchmarks import chart  # noqa: E402


def test_it_is_a_picture_1800_pixels_wide(tmp_path):
    rows = [
        measured(),
        measured(direction="forward + backward"),
        measured(op="point_sample", targets=[]),
    ]
    machine = {"processor": "a chip", "threads": 2, "instruction set": "neon", "torch": "9.9"}
    chart.draw({"machine": machine, "rows": rows}, tmp_path / "chart")
    with Image.open(tmp_path / "chart") as picture:
        assert picture.format == "PNG" and picture.width == 1800
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_a_gpu_has_a_panel_for_the_backward_and_its_name_in_the_title(tmp_path):
    directions = "forward", "backward", "forward + backward"
    rows = [
        measured_on_gpu(direction=direction, dtype=dtype)
        for direction in directions
        for dtype in ("float32", "bfloat16")
    ]
    machine = {"gpu": "a GPU", "multiprocessors": 9, "driver": None, "CUDA": "1", "torch": "9.9"}
    chart.draw({"machine": machine, "rows": rows}, tmp_path / "chart")
    with Image.open(tmp_path / "chart") as picture:
        assert picture.width == 2700
    assert list(chart.layout(rows)[0]) == [
        ("ms_deform_attn", "some encoder"),
        ("ms_deform_attn", "some encoder, bfloat16"),
    ]


def test_each_shape_has_a_position_below_the_heading_of_their_operator():
    rows = [
        measured(),
        measured(direction="forward + backward"),
        measured(shape="another"),
        measured(op="point_sample"),
    ]
    positions, headings = chart.layout(rows)
    assert list(positions) == [
        ("ms_deform_attn", "some encoder"),
        ("ms_deform_attn", "another"),
        ("point_sample", "some encoder"),
    ]
    heights = [
        headings["ms_deform_attn"],
        *list(positions.values())[:2],
        headings["point_sample"],
        positions["point_sample", "some encoder"],
    ]
    assert heights == sorted(set(heights))


def test_bars_are_as_long_as_speeds_and_the_target_is_marked():
    axes = Figure().subplots()
    chart.draw_row(axes, measured(), 3)
    (bar,) = axes.patches
    assert bar.get_width() == 20
    (mark,) = axes.lines
    assert list(mark.get_xdata()) == [25, 25]
    assert [text.get_text() for text in axes.texts] == ["20x"]


def test_only_a_target_above_the_baseline_is_marked():
    target = {"against": GRID_SAMPLE, "at_least": 1, "reached": 20.0, "met": True}
    assert chart.asked_for(measured(targets=[target])) == 0
    assert chart.asked_for(measured()) == 25
    assert chart.asked_for(measured(targets=[target | {"against": OURS, "at_least": 9}])) == 0
