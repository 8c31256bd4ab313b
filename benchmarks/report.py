"""What was measured, as text and as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import MEBIBYTE
from mask2former.io.files import replacing, write_text


def heading(machine: dict[str, Any], legend: Sequence[str]) -> str:
    """The machine, and what the columns mean."""
    lines = [f"{name:22} {value}" for name, value in machine.items() if value is not None]
    return "\n".join([*lines, "", *legend])


def title(row: dict[str, Any]) -> str:
    """What a row measures."""
    return f"{row['op']}, {row['shape']}, {row['dtype']}, {row['direction']}"


def row_text(row: dict[str, Any]) -> str:
    """A line for each contestant, and one for each that is missing."""
    names = [*row["contestants"], *row["missing"]]
    width = max(26, *map(len, names))
    on_gpu = any("by" in entry for entry in row["contestants"].values())
    unit, scale = ("us", 1e6) if on_gpu else ("ms", 1e3)
    traffic = f" {'GB/s':>6} {'copy':>5} by" if on_gpu else ""
    lines = [
        title(row),
        f"  {row['sizes']}",
        f"  {'':{width}} {f'time in {unit}':>10}  {'quartiles':^20}{'speed':>9} {'error':>8} "
        f"{'memory':>12}{traffic}",
    ]
    for name, entry in row["contestants"].items():
        low, high = (f"{seconds * scale:.2f}" for seconds in entry["quartiles"])
        lines.append(
            f"  {name:{width}} {entry['median'] * scale:10.2f}  {low:>8} to {high:<8}"
            f"{entry['speed']:8.2f}x {entry['error']:8.1e} {memory_text(entry['extra_bytes']):>12}"
            f"{traffic_text(entry) if on_gpu else ''}"
        )
    lines += [f"  {name:{width}} left out: {reason}" for name, reason in row["missing"].items()]
    return "\n".join(lines)


def traffic_text(entry: dict[str, Any]) -> str:
    """Bytes per second, as a part of a copy's, and how the time was taken."""
    return f" {entry['bytes_per_second'] / 1e9:6.0f} {entry['of_copy']:5.0%} {entry['by']}"


def memory_text(size: int | None) -> str:
    """MiB with one decimal; a dash where it is not known."""
    return "-" if size is None else f"{size / MEBIBYTE:.1f} MiB"


def verdicts_text(rows: list[dict[str, Any]]) -> str:
    """A line for each target, and how many of them are met."""
    targets = [(row, target) for row in rows for target in row["targets"]]
    met = sum(target["met"] is True for _, target in targets)
    lines = [f"targets: speed reached and asked for; {met} of {len(targets)} met"]
    for row, target in targets:
        reached = "" if target["reached"] is None else f"{target['reached']:.2f}x"
        lines.append(
            f"  {answer(target):12} {reached:>7} of {target['at_least']:5.2f}x  {title(row)}, "
            f"against {target['against']}{reason(row, target)}"
        )
    return "\n".join(lines)


def reason(row: dict[str, Any], target: dict[str, Any]) -> str:
    """Why a target was not measured."""
    missing = row["missing"].get(target["against"])
    return "" if missing is None else f": {missing}"


def answer(target: dict[str, Any]) -> str:
    """Whether a target is met, in words."""
    if target["met"] is None:
        return "not measured"
    if target["met"]:
        return "met"
    return "not met" if target["reached"] < target["at_least"] else "too inexact"


def write(document: dict[str, Any], text: str, folder: Path, stem: str) -> str:
    """Writes STEM.txt, STEM.json and, if matplotlib is installed, STEM.png; says what it wrote.

    The JSON file has a line for each row, so that two runs can be compared line by line.
    """
    write_text(folder / f"{stem}.txt", text + "\n")
    machine, rows = json.dumps(document["machine"]), map(json.dumps, document["rows"])
    lines = ",\n".join(rows)
    write_text(folder / f"{stem}.json", f'{{"machine": {machine},\n"rows": [\n{lines}\n]}}\n')
    written = f"{stem}.txt, {stem}.json"
    try:
        from benchmarks import chart
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        return (
            f"wrote {written} into {folder}; the chart is left out, because matplotlib is not "
            'installed (pip install ".[bench]")'
        )
    with replacing(folder / f"{stem}.png") as temporary:
        chart.draw(document, temporary)
    return f"wrote {written}, {stem}.png into {folder}"
