"""How the operators are measured on a GPU."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import cuda_race, machine
from benchmarks.contestants import FLOOR
from benchmarks.cuda_race import Clock, CudaClock, Group, copy_rate, race, sets_beyond
from benchmarks.harness import MEBIBYTE, Timing
from benchmarks.ops import DIFFERENTIATED, Call, Given, Row
from benchmarks.shapes import BACKWARD, BOTH, CUDA_OPS, FORWARD
from mask2former_ops import _extension


@dataclass(frozen=True)
class Gpu:
    """A GPU as a bench of `ops`."""

    rounds: int
    name: str
    cache: int  # bytes of the second-level cache
    copy_rate: float  # bytes per second
    clock: Clock
    extra_memory: Callable[[Call], int] = cuda_race.extra_memory
    device: str = "cuda"

    cuda = True
    shapes = CUDA_OPS
    directions = FORWARD, BACKWARD, BOTH
    charted = torch.float32, torch.bfloat16
    legend = (
        "time     median of the rounds and their quartiles, of one call by CUDA events; arguments",
        "         and results rotate through more memory than the second-level cache holds",
        "speed    median over the rounds of the first contestant's time over this one's",
        "error    relative L2 against float64, the largest of the output and the gradients",
        "memory   at the peak, beyond arguments and results",
        "GB/s     each argument read once and each result written once, in that time; copy: as a",
        "         part of what a large copy reaches; a few queries read less than all of value",
        "by       graph: replayed by the GPU alone; calls: launched one by one by the host, whose",
        "         own time may show",
    )

    @staticmethod
    def find(rounds: int) -> "Gpu":
        """The current GPU, with a stream of our own, because none captures the default one.

        Raises:
            RuntimeError: there is no GPU, or no kernel for it.
        """
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU to measure on")
        reason = _extension.why_no_kernel("ms_deform_attn", "cuda")
        if reason is not None:
            raise RuntimeError(f"there is no kernel of ours to measure: {reason}")
        torch.cuda.set_stream(torch.cuda.Stream())
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        clock = CudaClock()
        source = torch.zeros(1024 * MEBIBYTE, dtype=torch.uint8, device="cuda")
        rate = copy_rate(source, clock)
        return Gpu(rounds, properties.name, properties.L2_cache_size, rate, clock)

    @property
    def stem(self) -> str:
        """The GPU's name in letters that any file system takes."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-") + "-ops"

    def describe(self) -> dict[str, Any]:
        return machine.describe_gpu() | {"copy in GB/s": round(self.copy_rate / 1e9)}

    def sets(self, given: Given) -> list[Given]:
        """As many sets of arguments as no cache can hold."""
        first = given.each(lambda x: x.to(self.device))
        count = sets_beyond(self.cache, total_bytes(first.arguments))
        return [first, *(first.each(Tensor.clone) for _ in range(count - 1))]

    def run(
        self, row: Row, given: Given, calls: dict[str, Sequence[Call]]
    ) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
        memory = {name: self.extra_memory(calls[name][0]) for name in calls}
        groups = {name: Group.make(calls[name], self.clock) for name in calls}
        timings = race(groups, self.rounds, self.clock)
        sizes = {name: compulsory_bytes(row, given.for_contestant(name)) for name in calls}
        details = {
            name: {
                "extra_bytes": memory[name],
                "bytes": sizes[name],
                "bytes_per_second": sizes[name] / timings[name].median,
                "of_copy": sizes[name] / timings[name].median / self.copy_rate,
                "by": "graph" if groups[name].captured else "calls",
            }
            for name in calls
        }
        rounds = len(next(iter(timings.values())).seconds)
        floor = Timing((compulsory_bytes(row, given) / self.copy_rate,) * rounds)
        return timings | {FLOOR: floor}, details


def total_bytes(arguments: Sequence) -> int:
    """Bytes of all tensors."""
    return sum(x.nbytes for x in arguments if isinstance(x, Tensor))


def compulsory_bytes(row: Row, given: Given) -> int:
    """Bytes that no implementation can do without: arguments read and results written, all once.

    Going forward and backward arguments are read twice, because no cache keeps them.
    """
    arguments, grad = given
    output = grad.nbytes  # as large as its gradient
    forward = total_bytes(arguments) + output
    wanted = [arguments[i] for i in DIFFERENTIATED[row.shape.op]]
    # Gradients of sampled maps depend on no pixel.
    read = arguments[1:] if row.shape.op == "point_sample" else arguments
    backward = total_bytes(read) + grad.nbytes + total_bytes(wanted)
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[row.direction]
