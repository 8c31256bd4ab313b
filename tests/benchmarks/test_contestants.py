"""Who takes part computes the same."""

import dataclasses
import functools

import pytest
import torch

from benchmarks import contestants
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
from benchmarks.ops import Given, Row, prepare, worst_error
from benchmarks.shapes import BACKWARD, BOTH, FORWARD
from tests.benchmarks.samples import ENCODER, LOGITS, ROWS, UNEVEN
from tests.ops.tolerances import RELATIVE_ERROR


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.shape.name)
@pytest.mark.parametrize("name", [GRID_SAMPLE, PEER, REFERENCE])
def test_in_float64_all_agree_with_ours(row, name):
    if name == PEER:
        pytest.importorskip("torch_ms_deform_attn", exc_type=ImportError)
        if row.shape.op == "point_sample" or row.shape == UNEVEN:
            pytest.skip("it has no such operator")
    given = Given.make(row).stored_in(torch.float64)
    results, expected = (prepare(row, other, given)[0]() for other in (name, OURS))
    assert [x.shape for x in results] == [x.shape for x in expected]
    assert worst_error(results, expected) <= RELATIVE_ERROR[torch.float64]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.shape.name)
@pytest.mark.parametrize("name", [GRID_SAMPLE, REFERENCE, OURS])
def test_results_of_half_maps_are_half(row, name):
    row = Row(row.shape, torch.bfloat16, row.direction)
    results = prepare(row, name, Given.make(row))[0]()
    half = torch.float32 if row.shape.op == "point_sample" and row.shape.masks else row.dtype
    assert results[0].dtype == half
    # Locations and weights are float32, and so are their gradients.
    assert [x.dtype for x in results[1:]] == [half, torch.float32, torch.float32][
        : len(results) - 1
    ]


def test_ours_in_float32_starts_from_the_rounded_numbers():
    row = Row(ENCODER, torch.float16, BOTH)
    given = Given.make(row)
    half, full = (prepare(row, name, given)[0]() for name in (OURS, OURS_FLOAT32))
    assert full[1].dtype == torch.float32
    assert worst_error(half, [x.double() for x in full]) <= RELATIVE_ERROR[torch.float16]


def test_the_peer_knows_no_uneven_levels():
    pytest.importorskip("torch_ms_deform_attn", exc_type=ImportError)
    row = ROWS[1]
    with pytest.raises(NotImplementedError, match="the same number of points in every level"):
        prepare(row, PEER, Given.make(row))[0]()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own making
def test_the_compiled_path_is_the_grid_sample_path(monkeypatch):
    # Traced by the compiler, but run without C++ of its own.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    given = Given.make(ROWS[0])
    results, expected = (prepare(ROWS[0], name, given)[0]() for name in (COMPILED, GRID_SAMPLE))
    assert worst_error(results, [x.double() for x in expected]) <= RELATIVE_ERROR[torch.float32]


@pytest.mark.parametrize("shape", [ENCODER, UNEVEN, LOGITS], ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", [GRID_SAMPLE, REFERENCE, OURS, DETERMINISTIC])
def test_backward_alone_gives_the_gradients_of_both(shape, name):
    both, backward = (Row(shape, torch.float32, direction) for direction in (BOTH, BACKWARD))
    given = Given.make(both).stored_in(torch.float64)
    expected = prepare(both, REFERENCE, given)[0]()[1:]
    (call,) = prepare(backward, name, given)
    for _ in range(2):  # it can be repeated
        assert worst_error(call(), expected) <= RELATIVE_ERROR[torch.float64]


def test_only_the_deterministic_backward_asks_for_one(monkeypatch):
    asked = []

    def backward(*arguments, deterministic):
        asked.append(deterministic)
        return (torch.zeros(0),) * 3

    monkeypatch.setattr(torch.ops.mask2former_ops, "ms_deform_attn_backward", backward)
    row = Row(ENCODER, torch.float32, BACKWARD)
    for name in (OURS, DETERMINISTIC):
        prepare(row, name, Given.make(row))[0]()
    assert asked == [False, True]


def test_one_compilation_serves_all_sets(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda run, **options: compiled.append(run) or run)
    given = Given.make(ROWS[0])
    assert len(prepare(ROWS[0], COMPILED, given, given, given)) == 3
    assert len(compiled) == 1


def test_the_peer_in_float32_is_given_float32():
    given = Given.make(Row(ENCODER, torch.float16, BOTH)).for_contestant(PEER_FLOAT32)
    value, *_, weights = given.arguments
    assert value.dtype == weights.dtype == given.grad.dtype == torch.float32


@pytest.mark.parametrize("name, called", [(PEER_FLOAT32, PEER), (DCNV4, DCNV4)])
def test_a_peer_that_is_not_there_is_not_installed(monkeypatch, name, called):
    monkeypatch.setitem(contestants.PEERS, name, "no_such_module.functions")
    with pytest.raises(ImportError, match=f"^{called} is not installed$"):
        contestants.contestant("ms_deform_attn", name)


def test_dcnv4_is_given_locations_and_logits_together():
    row = Row(dataclasses.replace(ENCODER, channels=8), torch.float16, FORWARD)
    given = Given.make(row)
    _, _, _, locations, weights = given.arguments
    *_, packed, points = given.for_contestant(DCNV4).arguments
    assert packed.dtype == torch.float16 and points == 4
    heads = packed.float().unflatten(3, (3, 2 * points))  # 2 levels of locations, one of logits
    torch.testing.assert_close(
        heads[..., :2, :].flatten(3), locations.flatten(3), atol=2e-3, rtol=0
    )
    logits = heads[..., 2, :]
    torch.testing.assert_close(logits.softmax(-1), weights.flatten(3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [UNEVEN, ENCODER], ids=lambda shape: shape.name)
def test_dcnv4_cannot_run_every_shape(shape):
    with pytest.raises(NotImplementedError, match="4 or 8 points in every level"):
        Given.make(Row(shape, torch.float32, FORWARD)).for_contestant(DCNV4)
