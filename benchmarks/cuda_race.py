"""Times contestants side by side on a GPU, each call on arguments that no cache still holds."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.harness import Timing

# A round is enqueued whole, and short ones are repeated for so many seconds in all.
LEAST_SECONDS = 0.2
MOST_REPEATS = 50
# Bytes of the arguments that a round goes through, as multiples of the second-level cache.
CACHES = 4
# A round is many calls even where one fills the cache, so that its start and end weigh little.
LEAST_SETS = 8

Call = Callable[[], Sequence[Tensor]]


class Clock(Protocol):
    """What a race asks of the GPU; tests stand in for it."""

    def mark(self) -> object:
        """A moment on the GPU, when all that was enqueued before has run."""

    def wait(self) -> None:
        """Until all that was enqueued has run."""

    def seconds(self, start: object, end: object) -> float:
        """Between two moments, both of them past."""

    def capture(self, calls: Sequence[Call]) -> Callable[[], object] | None:
        """One launch that runs all of the calls; None if they cannot be captured."""


@dataclass(frozen=True)
class Group:
    """Calls of one contestant that are timed together, a set of arguments each."""

    run: Callable[[], object]  # enqueues them all
    calls: int
    captured: bool  # in one launch, so that the host's speed does not show

    @staticmethod
    def make(calls: Sequence[Call], clock: Clock) -> "Group":
        """Captured if they can be. Each must have been able to run before."""
        replay = clock.capture(calls)
        return Group(replay or (lambda: call_all(calls)), len(calls), replay is not None)


def call_all(calls: Sequence[Call]) -> None:
    """Runs them, and keeps all results until the last, so that no call finds another's cached."""
    tuple(call() for call in calls)


def sets_beyond(cache: int, size: int) -> int:
    """How many sets of arguments of `size` bytes no cache of `cache` bytes can hold on to."""
    return max(LEAST_SETS, math.ceil(CACHES * cache / size))


def race(contestants: dict[str, Group], rounds: int, clock: Clock) -> dict[str, Timing]:
    """Runs the groups in turn, `rounds` times or more; seconds are per call.

    All is enqueued before the host waits for anything, so groups follow each other closely.
    """
    one_round(contestants, clock)  # what is set up once is set up before the first round
    first = one_round(contestants, clock)
    clock.wait()
    spent = sum(clock.seconds(*marks) for marks in first.values())
    repeats = MOST_REPEATS if spent <= 0 else min(MOST_REPEATS, math.ceil(LEAST_SECONDS / spent))
    timed = [one_round(contestants, clock) for _ in range(max(rounds, repeats))]
    clock.wait()
    return {
        name: Timing(tuple(clock.seconds(*marks[name]) / group.calls for marks in timed))
        for name, group in contestants.items()
    }


def one_round(contestants: dict[str, Group], clock: Clock) -> dict[str, tuple[object, object]]:
    """Enqueues every group once; the moments before and after each."""
    marks = {}
    for name, group in contestants.items():
        start = clock.mark()
        group.run()
        marks[name] = start, clock.mark()
    return marks


def copy_rate(source: Tensor, clock: Clock) -> float:
    """Bytes per second, read and written, of a copy of a tensor that no cache can hold."""
    target = torch.empty_like(source)
    copy = Group(lambda: target.copy_(source), 1, False)
    return 2 * source.nbytes / race({"copy": copy}, 20, clock)["copy"].median


class CudaClock:
    """The current stream of the current device, which must not be the default stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1e3

    def capture(self, calls: Sequence[Call]) -> Callable[[], object] | None:
        """A CUDA graph; None also where capturing fails for a reason of the contestant's own."""
        if waits_for_the_gpu(calls[0]):
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                call_all(calls)
        except RuntimeError:
            return None
        return graph.replay


def waits_for_the_gpu(call: Call) -> bool:
    """Whether the host waits for the GPU in a call; to capture it would break torch's allocator.

    See https://github.com/pytorch/pytorch/pull/180395.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def extra_memory(call: Call) -> int:
    """Bytes at the peak of a call on the GPU, beyond what was there before and what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    peak = torch.cuda.max_memory_allocated()
    return max(peak - before - sum(tensor.nbytes for tensor in results), 0)
