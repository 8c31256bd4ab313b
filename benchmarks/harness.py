"""Times contestants side by side and prints a table of ratios."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Runs the contestants in turn, `rounds` times, so that a busy machine slows all of them."""
    for run in contestants.values():
        run()  # memory, threads and caches are warm before the first round
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def table(subject: str, timings: dict[str, Timing], baseline: str) -> str:
    """Median, quartiles and speed as a multiple of the baseline's, a line for each contestant."""
    lines = [subject]
    for name, timing in timings.items():
        low, high = timing.spread
        ratio = timings[baseline].median / timing.median
        lines.append(
            f"  {name:28} {timing.median * 1e3:9.2f} ms  "
            f"({low * 1e3:.2f} to {high * 1e3:.2f})  {ratio:6.1f}x"
        )
    return "\n".join(lines)
