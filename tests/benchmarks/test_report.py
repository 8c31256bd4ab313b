"""Tables, verdicts and files."""

import json
import sys

import pytest

import benchmarks
from benchmarks import report
from benchmarks.contestants import GRID_SAMPLE, PEER
from tests.benchmarks.samples import measured


def test_a_row_has_a_line_for_each_contestant():
    lines = report.row_text(measured()).splitlines()
    assert lines[0] == "ms_deform_attn, some encoder, float32, forward"
    assert " ".join(lines[3].split()) == "grid_sample 200.00 190.00 to 210.00 1.00x 1.0e-07 3.0 MiB"
    assert " ".join(lines[4].split()) == (
        "mask2former_ops 10.00 9.00 to 11.00 20.00x 1.0e-07 3.0 MiB"
    )
    assert lines[5].split() == [PEER, "left", "out:", "no", "such", "thing"]
    assert len({len(line) for line in lines[2:5]}) == 1


def test_memory_that_is_not_known_is_a_dash():
    assert (report.memory_text(None), report.memory_text(2**19)) == ("-", "0.5 MiB")


def test_verdicts_name_target_and_speed():
    inexact = {"against": GRID_SAMPLE, "at_least": 10, "reached": 20.0, "met": False}
    met = inexact | {"met": True}
    lines = report.verdicts_text([measured(), measured(targets=[inexact, met])]).splitlines()
    what = "ms_deform_attn, some encoder, float32, forward, against"
    assert [" ".join(line.split()) for line in lines] == [
        "targets: speed reached and asked for; 1 of 4 met",
        f"not met 20.00x of 25.00x {what} {GRID_SAMPLE}",
        f"not measured of 4.00x {what} {PEER}",
        f"too inexact 20.00x of 10.00x {what} {GRID_SAMPLE}",
        f"met 20.00x of 10.00x {what} {GRID_SAMPLE}",
    ]


def test_the_heading_leaves_out_what_is_not_known():
    lines = report.heading({"torch": "9.9", PEER: None}).splitlines()
    assert lines[0].split() == ["torch", "9.9"] and lines[1] == ""


def test_files_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    document = {"machine": machine(), "rows": [measured(), measured(direction="backward")]}
    assert "wrote cpu.txt, cpu.json, cpu.png into" in report.write(
        document, "a\nb", tmp_path, "cpu"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.png", "cpu.txt"]
    assert (tmp_path / "cpu.txt").read_text() == "a\nb\n"
    text = (tmp_path / "cpu.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(document))
    assert len(text.splitlines()) == 5


def test_without_matplotlib_the_chart_is_left_out(tmp_path, monkeypatch):
    for name in ["matplotlib", *sys.modules]:
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "benchmarks.chart", raising=False)
    monkeypatch.delattr(benchmarks, "chart", raising=False)
    said = report.write({"machine": machine(), "rows": [measured()]}, "", tmp_path, "cpu")
    assert "the chart is left out, because matplotlib is not installed" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "cpu.txt"]


def machine() -> dict:
    """What the chart's last line names."""
    return {"processor": "a chip", "threads": 2, "instruction set": None, "torch": "9.9"}
