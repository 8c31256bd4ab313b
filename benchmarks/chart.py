"""The chart of speeds, a bar for each contestant and row; needs matplotlib."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.contestants import GRID_SAMPLE, OURS, PEER
from benchmarks.shapes import BACKWARD, BOTH, FORWARD

COLOURS = {OURS: "#1f6feb", PEER: "#afb8c1"}  # the baseline is the line at 1
INK, FAINT, MARK = "#1f2328", "#6e7781", "#cf222e"
HEADINGS = {
    "ms_deform_attn": "multi-scale deformable attention",
    "point_sample": "point sampling",
}
FOOTER = "processor", "threads", "instruction set", "torch"
GPU_FOOTER = "multiprocessors", "driver", "CUDA", "torch"
BAR = 0.38  # height; a shape is 1
INCHES = 0.37  # of a shape


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws the rows marked as charted into a PNG file, 900 pixels wide for each direction."""
    rows = [row for row in document["rows"] if row["charted"]]
    backward_timed = any(row["direction"] == BACKWARD for row in rows)
    directions = (FORWARD, BACKWARD, BOTH) if backward_timed else (FORWARD, BOTH)
    width = 4.5 * len(directions)
    positions, headings = layout(rows)
    bottom = max(positions.values()) + 0.7
    above, below = 0.95, 0.6  # inches
    height = above + INCHES * bottom + below
    figure = Figure(figsize=(width, height), dpi=200)
    panels = figure.subplots(1, len(directions), sharex=True, sharey=True)
    figure.subplots_adjust(
        left=2.7 / width, right=0.985, top=1 - above / height, bottom=below / height, wspace=0.05
    )
    for axes, direction in zip(panels, directions, strict=True):
        draw_panel(
            axes, direction, [row for row in rows if row["direction"] == direction], positions
        )
    panels[0].set_ylim(bottom, 0)
    farthest = max(max(row["contestants"][OURS]["speed"], asked_for(row)) for row in rows)
    panels[0].set_xlim(0, farthest * 1.12)
    draw_labels(panels[0], positions, headings)
    draw_frame(figure, document["machine"], rows, height)
    figure.savefig(path, format="png", facecolor="white")


def layout(rows: list[dict[str, Any]]) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Where each (op, label) and each op's heading lie, from the top, in shapes."""
    positions: dict[tuple[str, str], float] = {}
    headings: dict[str, float] = {}
    y = 0.0
    for row in rows:
        key = row["op"], label(row)
        if row["op"] not in headings:
            y += 0.6
            headings[row["op"]] = y
            y += 0.9
        if key not in positions:
            positions[key] = y
            y += 1
    return positions, headings


def label(row: dict[str, Any]) -> str:
    """The shape, and the dtype unless that is float32."""
    return row["shape"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")


def draw_panel(
    axes: Axes, direction: str, rows: list[dict[str, Any]], positions: dict[tuple[str, str], float]
) -> None:
    """All rows of one direction, on an axis of speeds."""
    axes.set_title(direction, fontsize=10, color=INK, loc="left", pad=6)
    axes.axvline(1, color=FAINT, linewidth=0.8, zorder=1)
    for row in rows:
        draw_row(axes, row, positions[row["op"], label(row)])
    for position in set(positions.values()) - {positions[row["op"], label(row)] for row in rows}:
        axes.text(1.4, position, "not timed", va="center", fontsize=7, color=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#d0d7de")
    axes.grid(axis="x", color="#eaeef2", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8, colors=FAINT, length=0)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda speed, _: f"{speed:.0f}x")


def draw_row(axes: Axes, row: dict[str, Any], position: float) -> None:
    """The bars of one row around `position`, each with its speed, and ours with its target."""
    names = [name for name in COLOURS if name in row["contestants"]]
    for i, name in enumerate(names):
        y = position + (i - (len(names) - 1) / 2) * BAR
        speed = row["contestants"][name]["speed"]
        target = asked_for(row) if name == OURS else 0
        axes.barh(y, speed, BAR, color=COLOURS[name], zorder=2)
        if target:
            axes.plot([target] * 2, [y - BAR / 2, y + BAR / 2], color=MARK, zorder=3)
        axes.annotate(
            f"{speed:.0f}x" if speed >= 9.95 else f"{speed:.1f}x",
            (max(speed, target), y),
            xytext=(3, -0.5),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            fontweight="bold" if name == OURS else "normal",
            color=INK if name == OURS else FAINT,
        )


def asked_for(row: dict[str, Any]) -> float:
    """The speed that a row must reach; 0 where it only must not be slower."""
    targets = {target["against"]: target["at_least"] for target in row["targets"]}
    target = targets.get(GRID_SAMPLE, 0)
    return target if target > 1 else 0


def draw_labels(
    axes: Axes, positions: dict[tuple[str, str], float], headings: dict[str, float]
) -> None:
    """Names of the shapes, and of the operators above them."""
    names = [textwrap.fill(shape, 34) for _, shape in positions]
    axes.set_yticks(list(positions.values()), names, fontsize=8.5, color=INK)
    for op, y in headings.items():
        axes.annotate(
            HEADINGS[op],
            (0, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=INK,
        )


def draw_frame(
    figure: Figure, machine: dict[str, Any], rows: list[dict[str, Any]], height: float
) -> None:
    """Title, legend of what is in the rows, and what was measured on."""
    shown = {name for row in rows for name in row["contestants"]}
    bars = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in shown]
    target = Line2D([], [], color=MARK, label="target")
    footer = GPU_FOOTER if "gpu" in machine else FOOTER
    figure.text(
        0.012,
        1 - 0.27 / height,
        f"Speed on {machine.get('gpu', 'the CPU')}, relative to the path through F.grid_sample",
        fontsize=12,
        fontweight="bold",
        color=INK,
    )
    figure.legend(
        handles=[
            *bars,
            Line2D([], [], color=FAINT, linewidth=0.8, label="F.grid_sample path = 1x"),
            *([target] if any(map(asked_for, rows)) else []),
        ],
        loc="upper left",
        bbox_to_anchor=(0.004, 1 - 0.33 / height),
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.2,
    )
    figure.text(
        0.012,
        0.12 / height,
        ("float32 unless named; " if "gpu" in machine else "float32; ")
        + ", ".join(f"{name} {machine[name]}" for name in footer if machine[name] is not None),
        fontsize=7.5,
        color=FAINT,
    )
