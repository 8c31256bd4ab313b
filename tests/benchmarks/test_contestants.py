"""Who takes part computes the same."""

import functools

import pytest
import torch

from benchmarks.contestants import COMPILED, GRID_SAMPLE, OURS, OURS_FLOAT32, PEER, REFERENCE
from benchmarks.ops import Given, prepare, worst_error
from tests.benchmarks.samples import ENCODER, ROWS, UNEVEN
from tests.ops.tolerances import RELATIVE_ERROR


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.shape.name)
@pytest.mark.parametrize("name", [GRID_SAMPLE, PEER, REFERENCE])
def test_in_float64_all_agree_with_ours(row, name):
    if name == PEER:
        pytest.importorskip("torch_ms_deform_attn", exc_type=ImportError)
        if row.shape.op == "point_sample" or row.shape == UNEVEN:
            pytest.skip("it has no such operator")
    given = Given.make(row).stored_in(torch.float64)
    results, expected = (prepare(row, other, given)() for other in (name, OURS))
    assert [x.shape for x in results] == [x.shape for x in expected]
    assert worst_error(results, expected) <= RELATIVE_ERROR[torch.float64]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.shape.name)
@pytest.mark.parametrize("name", [GRID_SAMPLE, REFERENCE, OURS])
def test_results_of_half_maps_are_half(row, name):
    row = type(row)(row.shape, torch.bfloat16, row.backward)
    results = prepare(row, name, Given.make(row))()
    half = torch.float32 if row.shape.op == "point_sample" and row.shape.masks else row.dtype
    assert results[0].dtype == half
    # Locations and weights are float32, and so are their gradients.
    assert [x.dtype for x in results[1:]] == [half, torch.float32, torch.float32][
        : len(results) - 1
    ]


def test_ours_in_float32_starts_from_the_rounded_numbers():
    row = type(ROWS[0])(ENCODER, torch.float16, True)
    given = Given.make(row)
    half, full = (prepare(row, name, given)() for name in (OURS, OURS_FLOAT32))
    assert full[1].dtype == torch.float32
    assert worst_error(half, [x.double() for x in full]) <= RELATIVE_ERROR[torch.float16]


def test_the_peer_knows_no_uneven_levels():
    pytest.importorskip("torch_ms_deform_attn", exc_type=ImportError)
    row = ROWS[1]
    with pytest.raises(NotImplementedError, match="the same number of points in every level"):
        prepare(row, PEER, Given.make(row))()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own making
def test_the_compiled_path_is_the_grid_sample_path(monkeypatch):
    # Traced by the compiler, but run without C++ of its own.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    given = Given.make(ROWS[0])
    results, expected = (prepare(ROWS[0], name, given)() for name in (COMPILED, GRID_SAMPLE))
    assert worst_error(results, [x.double() for x in expected]) <= RELATIVE_ERROR[torch.float32]
