"""How the operators are measured on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import machine, memory
from benchmarks.contestants import COMPILED
from benchmarks.harness import Timing, race
from benchmarks.ops import Call, Given, Row, prepare
from benchmarks.shapes import BOTH, FORWARD, OPS


@dataclass(frozen=True)
class Cpu:
    """The CPU as a bench of `ops`; memory is measured in child processes, which takes a while."""

    rounds: int
    memory: bool

    cuda = False
    shapes = OPS
    directions = FORWARD, BOTH
    charted = (torch.float32,)
    stem = "cpu-ops"
    legend = (
        "time     median of the rounds and their quartiles; the cores' own caches start cold",
        "speed    median over the rounds of the first contestant's time over this one's",
        "error    relative L2 against float64, the largest of the output and the gradients",
        "memory   at the peak, beyond arguments and results",
    )

    def describe(self) -> dict[str, Any]:
        return machine.describe()

    def sets(self, given: Given) -> list[Given]:
        return [given]

    def run(
        self, row: Row, given: Given, calls: dict[str, Sequence[Call]]
    ) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
        timings = race({name: call for name, (call,) in calls.items()}, self.rounds)
        return timings, {
            name: {"extra_bytes": extra_memory(row, name) if self.memory else None}
            for name in calls
        }


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
    prepare(small, name, Given.make(small))[0]()
    return prepare(row, name, Given.make(row))[0]
