"""Tables, verdicts and files."""

import json
import sys

import pytest

import benchmarks
from benchmarks import report
from benchmarks.contestants import GRID_SAMPLE, PEER
from tests.benchmarks.samples import measured, measured_on_gpu


def test_a_row_has_a_line_for_each_contestant():
    lines = report.row_text(measured()).splitlines()
    assert lines[0] == "ms_deform_attn, some encoder, float32, forward"
    assert " ".join(lines[3].split()) == "grid_sample 200.00 190.00 to 210.00 1.00x 1.0e-07 3.0 MiB"
    assert " ".join(lines[4].split()) == (
        "mask2former_ops 10.00 9.00 to 11.00 20.00x 1.0e-07 3.0 MiB"
    )
    assert lines[5].split() == [PEER, "left", "out:", "no", "such", "thing"]
    assert len({len(line) for line in lines[2:5]}) == 1


def test_on_a_gpu_times_are_in_microseconds_with_traffic_beside_them():
    long = "mask2former_ops, deterministic"
    row = measured_on_gpu(missing={long: "none"})
    lines = report.row_text(row).splitlines()
    assert "time in us" in lines[2] and lines[2].split()[-3:] == ["GB/s", "copy", "by"]
    assert " ".join(lines[4].split()) == (
        "mask2former_ops 20.00 19.50 to 21.00 20.00x 1.0e-07 3.0 MiB 1700 68% graph"
    )
    assert lines[5] == f"  {long} left out: none"
    assert lines[2].index("copy") + 4 == lines[4].index("68%") + 3


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
        f"not measured of 4.00x {what} {PEER}: no such thing",
        f"too inexact 20.00x of 10.00x {what} {GRID_SAMPLE}",
        f"met 20.00x of 10.00x {what} {GRID_SAMPLE}",
    ]


def test_the_heading_leaves_out_what_is_not_known():
    lines = report.heading({"torch": "9.9", PEER: None}, ["time  what it is"]).splitlines()
    assert lines[0].split() == ["torch", "9.9"] and lines[1:] == ["", "time  what it is"]


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
