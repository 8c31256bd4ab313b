"""How the operators are measured on a GPU, on a CPU that stands in for one."""

from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from benchmarks.contestants import FLOOR, GRID_SAMPLE, OURS, OURS_FLOAT32
from benchmarks.gpu import Gpu, compulsory_bytes
from benchmarks.ops import Given, Row, measure
from benchmarks.shapes import BACKWARD, BOTH, CUDA_OPS, FORWARD, Target
from tests.benchmarks.samples import ENCODER, LOGITS, MASKS, FakeClock

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
COPY_RATE = 1e9


def bench(**changes) -> Gpu:
    given = {
        "rounds": 2,
        "name": "NVIDIA H100 80GB HBM3",
        "cache": 10_000,
        "copy_rate": COPY_RATE,
        "clock": FakeClock(captures=True),
        "extra_memory": lambda call: 7,
        "device": "cpu",
    }
    return Gpu(**given | changes)


@pytest.mark.parametrize(
    "name, stem",
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3-ops"),
        ("Tesla T4", "tesla-t4-ops"),
        ("../A (b)", "a-b-ops"),
    ],
)
def test_files_are_named_after_the_gpu(name, stem):
    assert bench(name=name).stem == stem


def test_sets_are_copies_as_many_as_the_cache_cannot_hold():
    given = Given.make(Row(ENCODER, SINGLE, BOTH))
    size = sum(tensor.nbytes for tensor in given.arguments)
    sets = bench(cache=size * 5).sets(given)
    assert len(sets) == 20
    assert all(x.equal(y) for x, y in zip(sets[7].arguments, given.arguments, strict=True))
    for i in range(5):
        assert len({one.arguments[i].data_ptr() for one in sets}) == 20
    assert len({one.grad.data_ptr() for one in sets}) == 20


def test_the_large_encoder_forward_in_half_needs_34_megabytes():
    float_locations, half_locations = CUDA_OPS[:2]
    value = output = 21504 * 256 * 2
    samples = 21504 * 8 * 12
    levels = 3 * 3 * 8

    def size(shape):
        row = Row(shape, BRAIN, FORWARD)
        return compulsory_bytes(row, Given.make(row))

    half = value + output + samples * 3 * 2 + levels
    assert size(half_locations) == half == pytest.approx(34.5e6, rel=0.005)
    assert size(float_locations) == value + output + samples * 3 * 4 + levels
    assert value == pytest.approx(11.0e6, rel=0.001)


def test_gradients_read_arguments_again_and_are_written():
    given = Given.make(Row(ENCODER, SINGLE, BOTH))
    value, shapes, starts, locations, weights = (x.nbytes for x in given.arguments)
    every, output = value + shapes + starts + locations + weights, given.grad.nbytes
    sizes = [
        compulsory_bytes(Row(ENCODER, SINGLE, direction), given)
        for direction in (FORWARD, BACKWARD, BOTH)
    ]
    backward = every + output + value + locations + weights
    assert sizes == [every + output, backward, every + output + backward]


def test_gradients_of_sampled_maps_read_no_map():
    given = Given.make(Row(LOGITS, SINGLE, BOTH))
    logits, points = (x.nbytes for x in given.arguments)
    size = compulsory_bytes(Row(LOGITS, SINGLE, BACKWARD), given)
    assert size == points + given.grad.nbytes + logits


def test_masks_are_read_as_bytes():
    given = Given.make(Row(MASKS, SINGLE, FORWARD))
    size = compulsory_bytes(Row(MASKS, SINGLE, FORWARD), given)
    assert size == 3 * 8 * 9 + 20 * 2 * 4 + 3 * 20 * 4


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, BOTH])
@pytest.mark.parametrize("shape", [ENCODER, LOGITS], ids=lambda shape: shape.name)
def test_a_row_is_measured_with_its_traffic(shape, direction):
    row = Row(shape, SINGLE, direction)
    result = measure(row, bench(), quick=False, compiled=False)
    assert result["direction"] == direction and result["baseline"] == GRID_SAMPLE
    ours = result["contestants"][OURS]
    assert ours["median"] == pytest.approx(1e-6) and ours["by"] == "graph"
    assert ours["bytes"] == compulsory_bytes(row, Given.make(row))
    assert ours["bytes_per_second"] == pytest.approx(ours["bytes"] / 1e-6)
    assert ours["of_copy"] == pytest.approx(ours["bytes"] / 1e-6 / COPY_RATE)
    assert ours["extra_bytes"] == 7 and ours["error"] < 1e-6
    assert all(entry["error"] < 1e-4 for entry in result["contestants"].values())
    assert FLOOR not in result["contestants"]


def test_float32_beside_half_counts_its_own_bytes():
    row = Row(ENCODER, HALF, FORWARD)
    entries = measure(row, bench(), quick=False, compiled=False)["contestants"]
    more = 8 * 5 * (30 + 30)  # 30 pixels and as many queries of 2 heads with 5 channels
    assert entries[OURS_FLOAT32]["bytes"] - entries[OURS]["bytes"] == more / 2


def test_who_cannot_be_captured_is_timed_by_its_calls():
    class Clock(FakeClock):
        def mark(self) -> float:
            self.spend(1)
            return self.now

    row = Row(ENCODER, SINGLE, FORWARD)
    result = measure(row, bench(clock=Clock()), quick=True, compiled=False)
    ours = result["contestants"][OURS]
    sets = len(bench().sets(Given.make(row)))
    assert ours["by"] == "calls" and ours["median"] == pytest.approx(1 / sets)


@pytest.mark.parametrize("part, met", [(0.99, True), (1.01, False)])
def test_the_floor_is_the_time_of_a_copy(part, met):
    row = Row(ENCODER, BRAIN, FORWARD)
    size = compulsory_bytes(row, Given.make(row))
    reached = size / COPY_RATE / 1e-6  # a call takes 1 us
    shape = replace(ENCODER, half_targets=(Target(FLOOR, part * reached, None),))
    result = measure(replace(row, shape=shape), bench(), quick=True, compiled=False)
    (target,) = result["targets"]
    assert target["reached"] == pytest.approx(reached) and target["met"] is met


def test_bfloat16_is_charted_beside_float32():
    charted = [
        measure(Row(ENCODER, dtype, FORWARD), bench(), quick=True, compiled=False)["charted"]
        for dtype in (SINGLE, HALF, BRAIN)
    ]
    assert charted == [True, False, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_there_must_be_a_gpu():
    with pytest.raises(RuntimeError, match="finds no GPU to measure on"):
        Gpu.find(2)


def test_there_must_be_kernels_for_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu._extension, "why_no_kernel", lambda op, device: "built without CUDA")
    with pytest.raises(RuntimeError, match="no kernel of ours to measure: built without CUDA"):
        Gpu.find(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, BOTH])
def test_rows_are_measured_on_a_gpu(direction):
    if gpu._extension.why_no_kernel("ms_deform_attn", "cuda") is not None:
        pytest.skip("there are no kernels for it")
    with torch.cuda.stream(torch.cuda.current_stream()):  # it is changed, and changed back
        found = Gpu.find(2)
        assert found.cache > 0 and found.copy_rate > 1e9
        for shape in (ENCODER, LOGITS):
            row = Row(shape, SINGLE, direction)
            entries = measure(row, found, quick=False, compiled=False)["contestants"]
            assert entries[OURS]["by"] == entries[GRID_SAMPLE]["by"] == "graph"
            assert entries[OURS]["median"] > 0 and entries[OURS]["error"] < 1e-6
