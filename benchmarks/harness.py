"""Times contestants side by side."""

import ctypes
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MEBIBYTE = 2**20
# Contestants share their arguments, and each finds its core's own cache full of something else, as
# in a model. So no small shape idles in L1, and none starts from main memory either.
SCRUB_PER_THREAD = 4 * MEBIBYTE
# Short rounds are repeated for at least so many seconds in all.
LEAST_SECONDS = 0.5


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    def speed(self, baseline: "Timing") -> float:
        """How many times as fast as a baseline of the same race: the median over the rounds.

        Both of a round ran within moments of each other, so a machine that is slow for a while
        slows both.
        """
        pairs = zip(baseline.seconds, self.seconds, strict=True)
        return statistics.median(other / own for other, own in pairs)


@functools.cache
def settle_allocator() -> None:
    """Puts the allocator of glibc into the state that it reaches in a long run.

    It gives freed memory back to the system, or keeps it, by a size that it raises up to 32 MiB as
    such memory is freed. So by what happened before, the same 22 MiB were new pages in one race,
    whose first touch takes longer than an operator, and old ones in the next.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # numbers of malloc.h
        library.mallopt(mmap_threshold, 32 * MEBIBYTE)
        library.mallopt(trim_threshold, 64 * MEBIBYTE)  # glibc's own: twice the other


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Runs the contestants in turn, `rounds` times or, if that is short, for LEAST_SECONDS."""
    settle_allocator()
    scrub = torch.zeros(torch.get_num_threads() * SCRUB_PER_THREAD, dtype=torch.uint8)
    for run in contestants.values():
        run()  # what is set up once is set up before the first round
    timed: dict[str, list[float]] = {name: [] for name in contestants}
    spent = 0.0
    while len(next(iter(timed.values()))) < rounds or spent < LEAST_SECONDS:
        for name, run in contestants.items():
            scrub.add_(1)
            timed[name].append(seconds(run))
            spent += timed[name][-1]
    return {name: Timing(tuple(times)) for name, times in timed.items()}


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
