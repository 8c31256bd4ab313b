"""The subject `ops`: both operators on the CPU, every row of the table of shapes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.contestants import (
    COMPILED,
    GRID_SAMPLE,
    OURS,
    OURS_FLOAT32,
    PEER,
    REFERENCE,
    contestant,
)
from benchmarks.harness import Timing, race
from benchmarks.inputs import arguments, grad_output
from benchmarks.shapes import Attention, Points
from tests.ops.tolerances import RELATIVE_ERROR, relative_error

# Which arguments models differentiate: maps, locations and weights. Sampled points are chosen.
DIFFERENTIATED = {"ms_deform_attn": (0, 3, 4), "point_sample": (0,)}

Call = Callable[[], tuple[Tensor, ...]]  # returns the output and then the gradients, if any


@dataclass(frozen=True)
class Row:
    """One race: a shape, the dtype its maps are stored in, and whether gradients are wanted too."""

    shape: Attention | Points
    dtype: torch.dtype
    backward: bool

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32

    def targets(self) -> dict[str, float]:
        """How many times as fast as which contestants ours must at least be."""
        targets = self.shape.half_targets if self.half else self.shape.targets
        limits = {t.against: t.both if self.backward else t.forward for t in targets}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def contestants(self, *, quick: bool, compiled: bool) -> list[str]:
        """The baseline first, ours last; `quick` leaves out whom no target names."""
        names = [GRID_SAMPLE]
        if compiled and not self.half:
            names.append(COMPILED)
        if self.shape.op == "ms_deform_attn":
            names.append(PEER)
        names.append(REFERENCE)
        if self.half:
            names.append(OURS_FLOAT32)
        return [name for name in names if not quick or name in self.targets()] + [OURS]


def rows(shapes: Sequence[Attention | Points], *, quick: bool) -> Iterator[Row]:
    """Every shape in its dtypes, forward and with gradients; `quick`: only those with a target."""
    for shape in shapes:
        for dtype in shape.dtypes:
            for backward in (False, True) if shape.backward else (False,):
                row = Row(shape, dtype, backward)
                if row.targets() or not quick:
                    yield row


def measure(row: Row, rounds: int, *, quick: bool, compiled: bool) -> dict[str, Any]:
    """Races one row.

    Args:
        quick: only contestants that a target names, and no memory.
        compiled: the grid_sample path runs under torch.compile as well.

    Returns:
        What the JSON file has for it: times in seconds, memory in bytes, and speeds as multiples of
        `baseline`'s.
    """
    given = Given.make(row)
    expected = prepare(row, REFERENCE, given.stored_in(torch.float64))()
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in row.contestants(quick=quick, compiled=compiled):
        try:
            call = prepare(row, name, given)
            errors[name] = worst_error(call(), expected)
        except (ImportError, NotImplementedError) as error:
            missing[name] = str(error)
        else:
            calls[name] = call
    del expected
    timings = race(calls, rounds)
    baseline = next(iter(timings))
    entries = {
        name: {
            "median": timing.median,
            "quartiles": timing.quartiles,
            "speed": timing.speed(timings[baseline]),
            "error": errors[name],
            "extra_bytes": None if quick else extra_memory(row, name),
            "seconds": [round(seconds, 7) for seconds in timing.seconds],
        }
        for name, timing in timings.items()
    }
    return {
        "op": row.shape.op,
        "shape": row.shape.name,
        "sizes": row.shape.description,
        "dtype": str(row.dtype).removeprefix("torch."),
        "direction": "forward + backward" if row.backward else "forward",
        "charted": row.shape.charted and not row.half,
        "baseline": baseline,
        "contestants": entries,
        "missing": missing,
        "targets": [
            verdict(against, at_least, timings, errors[OURS] <= RELATIVE_ERROR[row.dtype])
            for against, at_least in row.targets().items()
        ],
    }


class Given(NamedTuple):
    """What all contestants of a row are given."""

    arguments: list
    grad: Tensor  # of the output

    @staticmethod
    def make(row: Row) -> "Given":
        return Given(list(arguments(row.shape, row.dtype)), grad_output(row.shape, row.dtype))

    def stored_in(self, dtype: torch.dtype) -> "Given":
        """The same numbers; sizes and indices stay what they are."""
        arguments = [
            x.detach().to(dtype) if isinstance(x, Tensor) and x.dtype != torch.int64 else x
            for x in self.arguments
        ]
        return Given(arguments, self.grad.to(dtype))


def prepare(row: Row, name: str, given: Given) -> Call:
    """A contestant's call, ready to be timed.

    Raises:
        ImportError: the contestant is not installed.
    """
    run = contestant(row.shape.op, name)
    arguments, grad = given.stored_in(torch.float32) if name == OURS_FLOAT32 else given
    if not row.backward:
        return lambda: (run(*arguments),)
    leaves = [arguments[i].requires_grad_() for i in DIFFERENTIATED[row.shape.op]]

    def forward_and_backward() -> tuple[Tensor, ...]:
        output = run(*arguments)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    return forward_and_backward


def worst_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative L2 error of the output and the gradients."""
    return max(relative_error(*pair) for pair in zip(results, expected, strict=True))


def extra_memory(row: Row, name: str) -> int | None:
    """Bytes beyond arguments and results at the peak of one call, see `memory`; None: unknown.

    What torch.compile needs is mostly the compiler's, so that is left out.
    """
    if name == COMPILED or not memory.AVAILABLE:
        return None
    return memory.peak_extra(warmed_up, row, name)


def warmed_up(row: Row, name: str) -> Call:
    """The call, after one of the smallest shape, which loads what is loaded once."""
    small = replace(row, shape=row.shape.smallest())
    prepare(small, name, Given.make(small))()
    return prepare(row, name, Given.make(row))


def verdict(
    against: str, at_least: float, timings: dict[str, Timing], exact: bool
) -> dict[str, Any]:
    """Whether ours is fast enough; an answer that is not `exact` meets no target."""
    reached = timings[OURS].speed(timings[against]) if against in timings else None
    met = None if reached is None else reached >= at_least and exact
    return {"against": against, "at_least": at_least, "reached": reached, "met": met}
