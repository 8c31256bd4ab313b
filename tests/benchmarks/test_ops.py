"""Rows, what is measured of them, and verdicts."""

import pytest
import torch

from benchmarks import harness, ops
from benchmarks.contestants import COMPILED, GRID_SAMPLE, OURS, OURS_FLOAT32, PEER, REFERENCE
from benchmarks.harness import Timing
from benchmarks.ops import Row, measure, rows, verdict
from tests.benchmarks.samples import ENCODER, LOGITS, MASKS


def title(row: Row) -> str:
    return f"{row.shape.name}, {row.dtype}, {'both' if row.backward else 'forward'}"


@pytest.fixture(autouse=True)
def no_repetition(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0)


def test_a_shape_has_rows_for_its_dtypes_and_directions():
    single, half = torch.float32, torch.float16
    assert list(rows((ENCODER, LOGITS, MASKS), quick=False)) == [
        Row(ENCODER, single, False),
        Row(ENCODER, single, True),
        Row(ENCODER, half, False),
        Row(ENCODER, half, True),
        Row(LOGITS, single, False),
        Row(LOGITS, single, True),
        Row(MASKS, single, False),
    ]


def test_quick_runs_what_has_a_target():
    single, half = torch.float32, torch.float16
    assert list(rows((ENCODER, LOGITS, MASKS), quick=True)) == [
        Row(ENCODER, single, False),
        Row(ENCODER, single, True),
        Row(ENCODER, half, False),
    ]


def test_who_takes_part_in_a_row():
    row = Row(ENCODER, torch.float32, False)
    assert row.contestants(quick=False, compiled=False) == [GRID_SAMPLE, PEER, REFERENCE, OURS]
    assert row.contestants(quick=True, compiled=False) == [GRID_SAMPLE, PEER, OURS]
    assert COMPILED in row.contestants(quick=False, compiled=True)
    half = Row(ENCODER, torch.float16, False)
    assert half.contestants(quick=True, compiled=True) == [OURS_FLOAT32, OURS]
    points = Row(LOGITS, torch.float32, False)
    assert points.contestants(quick=False, compiled=False) == [GRID_SAMPLE, REFERENCE, OURS]


@pytest.mark.parametrize("row", list(rows((ENCODER, LOGITS, MASKS), quick=False)), ids=title)
def test_a_row_is_measured(row, monkeypatch):
    monkeypatch.setattr(ops, "extra_memory", lambda row, name: 5)
    result = measure(row, 2, quick=False, compiled=False)
    assert result["baseline"] == GRID_SAMPLE
    assert set(result["contestants"]) | set(result["missing"]) == set(
        row.contestants(quick=False, compiled=False)
    )
    for entry in result["contestants"].values():
        assert len(entry["seconds"]) == 2 and min(entry["seconds"]) >= 0
        assert entry["quartiles"][0] <= entry["median"] <= entry["quartiles"][1]
        assert entry["extra_bytes"] == 5
        assert entry["error"] < (0.01 if row.half else 1e-4)
    assert all(target["met"] in (True, None) for target in result["targets"])


def test_who_is_not_installed_is_missing_and_its_target_not_measured(monkeypatch):
    def without_peer(op, name, find=ops.contestant):
        if name == PEER:
            raise ImportError("no module of that name")
        return find(op, name)

    monkeypatch.setattr(ops, "contestant", without_peer)
    result = measure(Row(ENCODER, torch.float32, False), 2, quick=True, compiled=False)
    assert result["missing"] == {PEER: "no module of that name"}
    assert [target["met"] for target in result["targets"]] == [True, None]


def test_verdicts():
    timings = {GRID_SAMPLE: Timing((4.0, 4.0)), OURS: Timing((2.0, 2.0))}
    assert verdict(GRID_SAMPLE, 2, timings, True)["met"] is True
    assert verdict(GRID_SAMPLE, 2.1, timings, True)["met"] is False
    assert verdict(GRID_SAMPLE, 2, timings, False)["met"] is False
    assert verdict(PEER, 2, timings, True) == {
        "against": PEER,
        "at_least": 2,
        "reached": None,
        "met": None,
    }


def test_an_inexact_kernel_meets_no_target(monkeypatch):
    def inexact(op, name, find=ops.contestant):
        run = find(op, name)
        return (lambda *arguments: run(*arguments) * 1.001) if name == OURS else run

    monkeypatch.setattr(ops, "contestant", inexact)
    result = measure(Row(ENCODER, torch.float32, False), 2, quick=True, compiled=False)
    assert result["contestants"][OURS]["error"] == pytest.approx(0.001, rel=0.01)
    assert result["targets"][0]["met"] is False
