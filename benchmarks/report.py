"""What was measured, as text and as files."""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import MEBIBYTE
from mask2former.files import replacing, write_text


def heading(machine: dict[str, Any]) -> str:
    """The machine, and what the columns mean."""
    lines = [f"{name:22} {value}" for name, value in machine.items() if value is not None]
    lines += [
        "",
        "time     median of the rounds and their quartiles; the cores' own caches start cold",
        "speed    median over the rounds of the first contestant's time over this one's",
        "error    relative L2 against float64, the largest of the output and the gradients",
        "memory   at the peak, beyond arguments and results",
    ]
    return "\n".join(lines)


def title(row: dict[str, Any]) -> str:
    """What a row measures."""
    return f"{row['op']}, {row['shape']}, {row['dtype']}, {row['direction']}"


def row_text(row: dict[str, Any]) -> str:
    """A line for each contestant, and one for each that is missing."""
    lines = [
        title(row),
        f"  {row['sizes']}",
        f"  {'':26} {'time in ms':>10}  {'quartiles':^20}{'speed':>9} {'error':>8} {'memory':>12}",
    ]
    for name, entry in row["contestants"].items():
        low, high = (f"{seconds * 1e3:.2f}" for seconds in entry["quartiles"])
        lines.append(
            f"  {name:26} {entry['median'] * 1e3:10.2f}  {low:>8} to {high:<8}"
            f"{entry['speed']:8.2f}x {entry['error']:8.1e} {memory_text(entry['extra_bytes']):>12}"
        )
    lines += [f"  {name:26} left out: {reason}" for name, reason in row["missing"].items()]
    return "\n".join(lines)


def memory_text(size: int | None) -> str:
    """MiB with one decimal; a dash where it is not known."""
    return "-" if size is None else f"{size / MEBIBYTE:.1f} MiB"


def verdicts_text(rows: list[dict[str, Any]]) -> str:
    """A line for each target, and how many of them are met."""
    targets = [(title(row), target) for row in rows for target in row["targets"]]
    met = sum(target["met"] is True for _, target in targets)
    lines = [f"targets: speed reached and asked for; {met} of {len(targets)} met"]
    for what, target in targets:
        reached = "" if target["reached"] is None else f"{target['reached']:.2f}x"
        lines.append(
            f"  {answer(target):12} {reached:>7} of {target['at_least']:5.2f}x  {what}, "
            f"against {target['against']}"
        )
    return "\n".join(lines)


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
