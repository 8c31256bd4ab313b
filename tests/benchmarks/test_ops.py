"""Rows, what is measured of them, and verdicts."""

import pytest
import torch

from benchmarks import cpu, harness, ops
from benchmarks.contestants import (
    COMPILED,
    DCNV4,
    DETERMINISTIC,
    GRID_SAMPLE,
    OURS,
    OURS_FLOAT32,
    PEER,
    PEER_FLOAT32,
    REFERENCE,
)
from benchmarks.cpu import Cpu
from benchmarks.harness import Timing
from benchmarks.ops import Row, measure, rows, verdict
from benchmarks.shapes import BACKWARD, BOTH, FORWARD
from tests.benchmarks.samples import ENCODER, LOGITS, MASKS

DIRECTIONS = FORWARD, BOTH
QUICK = Cpu(2, memory=False)


def title(row: Row) -> str:
    return f"{row.shape.name}, {row.dtype}, {row.direction}"


@pytest.fixture(autouse=True)
def no_repetition(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0)


def test_a_shape_has_rows_for_its_dtypes_and_directions():
    single, half = torch.float32, torch.float16
    assert list(rows((ENCODER, LOGITS, MASKS), DIRECTIONS, quick=False)) == [
        Row(ENCODER, single, FORWARD),
        Row(ENCODER, single, BOTH),
        Row(ENCODER, half, FORWARD),
        Row(ENCODER, half, BOTH),
        Row(LOGITS, single, FORWARD),
        Row(LOGITS, single, BOTH),
        Row(MASKS, single, FORWARD),
    ]


def test_quick_runs_what_has_a_target():
    single, half = torch.float32, torch.float16
    assert list(rows((ENCODER, LOGITS, MASKS), DIRECTIONS, quick=True)) == [
        Row(ENCODER, single, FORWARD),
        Row(ENCODER, single, BOTH),
        Row(ENCODER, half, FORWARD),
    ]


def test_who_takes_part_in_a_row():
    row = Row(ENCODER, torch.float32, FORWARD)
    assert row.contestants(quick=False, compiled=False) == [GRID_SAMPLE, PEER, REFERENCE, OURS]
    assert row.contestants(quick=True, compiled=False) == [GRID_SAMPLE, PEER, OURS]
    assert COMPILED in row.contestants(quick=False, compiled=True)
    half = Row(ENCODER, torch.float16, FORWARD)
    assert half.contestants(quick=True, compiled=True) == [OURS_FLOAT32, OURS]
    points = Row(LOGITS, torch.float32, FORWARD)
    assert points.contestants(quick=False, compiled=False) == [GRID_SAMPLE, REFERENCE, OURS]


@pytest.mark.parametrize(
    "row", list(rows((ENCODER, LOGITS, MASKS), DIRECTIONS, quick=False)), ids=title
)
def test_a_row_is_measured(row, monkeypatch):
    monkeypatch.setattr(cpu, "extra_memory", lambda row, name: 5)
    result = measure(row, Cpu(2, memory=True), quick=False, compiled=False)
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
    result = measure(Row(ENCODER, torch.float32, FORWARD), QUICK, quick=True, compiled=False)
    assert result["missing"] == {PEER: "no module of that name"}
    assert [target["met"] for target in result["targets"]] == [True, None]


def test_who_takes_part_on_a_gpu():
    def names(direction, dtype, shape=ENCODER):
        row = Row(shape, dtype, direction)
        return row.contestants(quick=False, compiled=False, cuda=True)

    single, half = torch.float32, torch.float16
    assert names(FORWARD, single) == [GRID_SAMPLE, PEER, DCNV4, REFERENCE, OURS]
    assert names(BACKWARD, single) == [GRID_SAMPLE, PEER, REFERENCE, DETERMINISTIC, OURS]
    assert names(BACKWARD, half) == [
        GRID_SAMPLE,
        PEER,
        PEER_FLOAT32,
        OURS_FLOAT32,
        OURS,
    ]
    assert names(BACKWARD, single, LOGITS) == [GRID_SAMPLE, REFERENCE, DETERMINISTIC, OURS]


def test_a_peer_that_fails_is_left_out_with_its_first_line(monkeypatch):
    def failing(*arguments):
        raise RuntimeError("no kernel image\nand much more")

    monkeypatch.setattr(
        ops,
        "contestant",
        lambda op, name, find=ops.contestant: failing if name == PEER else find(op, name),
    )
    result = measure(Row(ENCODER, torch.float32, FORWARD), QUICK, quick=True, compiled=False)
    assert result["missing"] == {PEER: "no kernel image"}


def test_ours_must_not_fail(monkeypatch):
    def failing(*arguments):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(
        ops,
        "contestant",
        lambda op, name, find=ops.contestant: failing if name == OURS else find(op, name),
    )
    with pytest.raises(RuntimeError, match="no kernel image"):
        measure(Row(ENCODER, torch.float32, FORWARD), QUICK, quick=True, compiled=False)


def test_an_error_without_a_message_has_a_name():
    assert ops.sentence(NotImplementedError()) == "NotImplementedError"


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
    result = measure(Row(ENCODER, torch.float32, FORWARD), QUICK, quick=True, compiled=False)
    assert result["contestants"][OURS]["error"] == pytest.approx(0.001, rel=0.01)
    assert result["targets"][0]["met"] is False
