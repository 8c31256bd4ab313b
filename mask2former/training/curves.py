"""The curves of a run as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mask2former.io.files import replacing
from mask2former.training.callback import headlines, sum_by_part

INK, FAINT, GRID = "#1f2328", "#6e7781", "#eaeef2"
# Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
STYLES = "-", "--", ":"  # for metrics 1 to 6, 7 to 12, 13 to 18
SMOOTHED = 1 / 25  # fraction of a run that the opaque lines are means over


def draw_curves(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw a history, as `read_history` gives it, into a PNG file of about 1800 x 900 pixels.

    Shows the loss and its parts, the learning rate, and the metrics if there are any. Draws nothing
    if the history is empty.

    Raises:
        OSError: the file cannot be written.
    """
    records = list(records)
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "metrics" in record]
    if evaluations and steps:
        panels: Any = [["loss", "metrics"], ["loss", "lr"]]
    elif steps:
        panels = [["loss", "lr"]]
    elif evaluations:
        panels = [["metrics"]]
    else:
        return
    figure = Figure(figsize=(11, 5.4), dpi=160, layout="constrained")
    for name, axes in figure.subplot_mosaic(panels).items():
        PANELS[name](axes, evaluations if name == "metrics" else steps)
        _dress(axes)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _draw_loss(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """The loss and its parts, faint as measured and opaque as moving means.

    The legend has the last means.
    """
    x = [record["step"] for record in records]
    curves = {"total": [record["loss"] for record in records]}
    parts = [sum_by_part(record) for record in records]
    curves |= {name: [values.get(name) for values in parts] for name in parts[-1]}
    for (name, y), colour in zip(curves.items(), (INK, *COLOURS), strict=False):
        y = np.array(y, dtype=float)  # None becomes nan, a gap
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
        smooth = moving_mean(y)
        _plot(axes, x, smooth, f"{name} {smooth[-1]:.3g}", colour)
    axes.set_yscale("log")
    for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    _title(axes, "loss")


def _draw_lr(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    rates = [record["lr"] for record in records]
    _plot(axes, [record["step"] for record in records], rates, None, COLOURS[0])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    _title(axes, "learning rate")


def _draw_metrics(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """A line for each of the `headlines`, with its last value in the legend."""
    names = headlines(dict.fromkeys(name for record in records for name in record["metrics"]))
    looks = zip(cycle(COLOURS), (style for style in STYLES for _ in COLOURS), strict=False)
    for name, (colour, style) in zip(names, looks, strict=False):
        pairs = [(record["step"], record["metrics"].get(name)) for record in records]
        known = [(step, value) for step, value in pairs if value is not None]
        if known:
            x, y = zip(*known, strict=True)
            _plot(axes, x, y, f"{name} {y[-1]:.3g}", colour, linestyle=style, marker=".")
    _title(axes, "metrics")


PANELS = {"loss": _draw_loss, "lr": _draw_lr, "metrics": _draw_metrics}


def _plot(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float] | np.ndarray,
    label: str | None,
    colour: str,
    **style: Any,
) -> None:
    """A line, or a point if there is only one."""
    style = {"linewidth": 1.6, **style}
    if len(x) == 1:
        style["marker"] = "o"
    axes.plot(x, y, label=label, color=colour, **style)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, color=INK, loc="left")


def _dress(axes: Axes) -> None:
    """The style of all panels."""
    axes.set_xlim(left=0)
    axes.set_xlabel("step", fontsize=8, color=FAINT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#d0d7de")
    axes.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1)
        )


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Centred moving means, over fewer values near the ends; nan is skipped."""
    reach = round(len(values) * SMOOTHED / 2)
    means = np.full(len(values), np.nan)
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        window = values[i - near : i + near + 1]
        if np.isfinite(window).any():
            means[i] = np.nanmean(window)
    return means
