"""The subject `ops`: both operators on one device, every row of a table of shapes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.contestants import (
    COMPILED,
    DCNV4,
    DETERMINISTIC,
    FOREIGN,
    GRID_SAMPLE,
    OURS,
    OURS_FLOAT32,
    PEER,
    PEER_FLOAT32,
    REFERENCE,
    contestant,
    dcnv4_arguments,
    own_backward,
)
from benchmarks.harness import Timing
from benchmarks.inputs import arguments, grad_output
from benchmarks.shapes import BACKWARD, FORWARD, Attention, Points
from tests.ops.tolerances import RELATIVE_ERROR, relative_error

# Which arguments models differentiate: maps, locations and weights. Sampled points are chosen.
DIFFERENTIATED = {"ms_deform_attn": (0, 3, 4), "point_sample": (0,)}

Call = Callable[[], tuple[Tensor, ...]]  # returns the output and then the gradients, if any


@dataclass(frozen=True)
class Row:
    """One race: a shape, the dtype its maps are stored in, and what is computed."""

    shape: Attention | Points
    dtype: torch.dtype
    direction: str

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32

    def targets(self) -> dict[str, float]:
        """How many times as fast as which contestants ours must at least be."""
        targets = self.shape.half_targets if self.half else self.shape.targets
        limits = {target.against: target.at_least(self.direction) for target in targets}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def contestants(self, *, quick: bool, compiled: bool, cuda: bool = False) -> list[str]:
        """The baseline first, ours last; `quick` leaves out contestants that no target names."""
        attention = self.shape.op == "ms_deform_attn"
        takes_part = {
            GRID_SAMPLE: True,
            COMPILED: compiled and not self.half,
            PEER: attention,
            PEER_FLOAT32: cuda and attention and self.half,
            DCNV4: cuda and attention and self.direction == FORWARD,
            REFERENCE: not (cuda and self.half),
            OURS_FLOAT32: self.half,
            DETERMINISTIC: cuda and not self.half and self.direction == BACKWARD,
        }
        names = [name for name, so in takes_part.items() if so]
        return [name for name in names if not quick or name in self.targets()] + [OURS]


class Bench(Protocol):
    """A device and how it is measured on: `cpu.Cpu`, `gpu.Gpu`."""

    cuda: bool
    shapes: Sequence[Attention | Points]
    directions: Sequence[str]
    charted: Sequence[torch.dtype]
    stem: str  # of the names of files
    legend: Sequence[str]  # what the columns mean, a line each

    def describe(self) -> dict[str, Any]:
        """What a measurement is made on."""

    def sets(self, given: "Given") -> list["Given"]:
        """The arguments on the device, as often as a race needs them."""

    def run(
        self, row: Row, given: "Given", calls: dict[str, Sequence[Call]]
    ) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
        """Races contestants with a call for each set: their timings, and what else is known."""


def rows(
    shapes: Sequence[Attention | Points], directions: Sequence[str], *, quick: bool
) -> Iterator[Row]:
    """Every shape in its dtypes and directions; `quick`: only those with a target."""
    for shape in shapes:
        for dtype in shape.dtypes:
            for direction in directions if shape.backward else (FORWARD,):
                row = Row(shape, dtype, direction)
                if row.targets() or not quick:
                    yield row


def measure(row: Row, bench: Bench, *, quick: bool, compiled: bool) -> dict[str, Any]:
    """Races one row.

    Args:
        quick: only contestants that a target names.
        compiled: the grid_sample path runs under torch.compile as well.

    Returns:
        What the JSON file has for it: times in seconds, memory in bytes, and speeds as multiples of
        `baseline`'s.
    """
    sets = bench.sets(Given.make(row))
    (reference,) = prepare(row, REFERENCE, sets[0].stored_in(torch.float64))
    expected = reference()
    calls: dict[str, Sequence[Call]] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in row.contestants(quick=quick, compiled=compiled, cuda=bench.cuda):
        try:
            prepared = prepare(row, name, *sets)
            errors[name] = worst_error(prepared[0](), expected)
        except Exception as error:
            if name not in FOREIGN:
                raise
            missing[name] = sentence(error)
        else:
            calls[name] = prepared
    del expected, reference
    timings, details = bench.run(row, sets[0], calls)
    baseline = next(iter(calls))
    entries = {
        name: {
            "median": timings[name].median,
            "quartiles": timings[name].quartiles,
            "speed": timings[name].speed(timings[baseline]),
            "error": errors[name],
            **details[name],
            "seconds": [float(f"{seconds:.6g}") for seconds in timings[name].seconds],
        }
        for name in calls
    }
    return {
        "op": row.shape.op,
        "shape": row.shape.name,
        "sizes": row.shape.description,
        "dtype": str(row.dtype).removeprefix("torch."),
        "direction": row.direction,
        "charted": row.shape.charted and row.dtype in bench.charted,
        "baseline": baseline,
        "contestants": entries,
        "missing": missing,
        "targets": [
            verdict(against, at_least, timings, errors[OURS] <= RELATIVE_ERROR[row.dtype])
            for against, at_least in row.targets().items()
        ],
    }


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Given(NamedTuple):
    """What all contestants of a row are given."""

    arguments: list
    grad: Tensor  # of the output

    @staticmethod
    def make(row: Row) -> "Given":
        return Given(list(arguments(row.shape, row.dtype)), grad_output(row.shape, row.dtype))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Given":
        """All tensors changed."""
        arguments = [change(x) if isinstance(x, Tensor) else x for x in self.arguments]
        return Given(arguments, change(self.grad))

    def stored_in(self, dtype: torch.dtype) -> "Given":
        """The same numbers; sizes and indices stay what they are."""
        return self.each(lambda x: x if x.dtype == torch.int64 else x.detach().to(dtype))

    def for_contestant(self, name: str) -> "Given":
        """In the form that a contestant takes; to bring it there is not timed."""
        if name in (OURS_FLOAT32, PEER_FLOAT32):
            return self.stored_in(torch.float32)
        if name in (GRID_SAMPLE, COMPILED):  # detectors pass it sizes that the host knows
            return self.each(lambda x: x.cpu() if x.dtype == torch.int64 else x)
        if name == DCNV4:
            return self._replace(arguments=dcnv4_arguments(*self.arguments))
        return self


def prepare(row: Row, name: str, *sets: Given) -> list[Call]:
    """A contestant's calls, one for each set of arguments, ready to be timed.

    Raises:
        ImportError: the contestant is not installed.
    """
    run = contestant(row.shape.op, name)
    return [make_call(row, name, run, given.for_contestant(name)) for given in sets]


def make_call(row: Row, name: str, run: Callable[..., Tensor], given: Given) -> Call:
    """A call that computes what the row asks for."""
    arguments, grad = given
    op = row.shape.op
    if row.direction == FORWARD:
        return lambda: (run(*arguments),)
    if row.direction == BACKWARD and name in (OURS, OURS_FLOAT32, DETERMINISTIC):
        backward = torch.no_grad()(own_backward)
        return partial(backward, op, grad, arguments, deterministic=name == DETERMINISTIC)
    leaves = [arguments[i].requires_grad_() for i in DIFFERENTIATED[op]]
    if row.direction == BACKWARD:
        output = run(*arguments)
        return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)

    def forward_and_backward() -> tuple[Tensor, ...]:
        output = run(*arguments)
        return output.detach(), *torch.autograd.grad(output, leaves, grad)

    return forward_and_backward


def worst_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative L2 error of the output and the gradients."""
    return max(relative_error(*pair) for pair in zip(results, expected, strict=True))


def verdict(
    against: str, at_least: float, timings: dict[str, Timing], exact: bool
) -> dict[str, Any]:
    """Whether ours is fast enough; an answer that is not `exact` meets no target."""
    reached = timings[OURS].speed(timings[against]) if against in timings else None
    met = None if reached is None else reached >= at_least and exact
    return {"against": against, "at_least": at_least, "reached": reached, "met": met}
