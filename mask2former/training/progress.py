"""The progress of a run, on the terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

from mask2former.training.callback import Callback, StepAverages, headlines, sum_by_part

SMOOTHED_STEPS = 20  # steps that the figures are means of
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress(Callback):
    """A progress bar where there is a terminal, else a line now and then.

    Args:
        steps: steps of the whole run.
        every: seconds between lines.
        stream: default: stderr.
    """

    def __init__(self, steps: int, every: float = 30.0, stream: TextIO | None = None) -> None:
        self.steps, self.every, self.stream = steps, every, stream or sys.stderr
        self.recent: deque[tuple] = deque(maxlen=SMOOTHED_STEPS)
        self.bar: tqdm | None = None
        self.last_line: float | None = None  # when it was printed

    def on_step(
        self, step: int, losses: Mapping[str, float], lr: float, images: int, seconds: float
    ) -> None:
        self.recent.append((losses, lr, images, seconds))
        if self.stream.isatty():
            self._move_bar(step)
            return
        now = time.monotonic()
        if self.last_line is None or step == self.steps or now - self.last_line >= self.every:
            self.last_line = now
            self._say(self._line(step))

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in headlines(metrics))
        self._say(f"step {step}/{self.steps}: {figures}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _move_bar(self, step: int) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=self.steps,
                initial=step - 1,
                bar_format=BAR,
                file=self.stream,
                dynamic_ncols=True,
            )
        # The text is made only as often as the bar is drawn.
        if time.time() - self.bar.last_print_t >= self.bar.mininterval or step == self.steps:
            self.bar.set_postfix_str(figures(self._means()), refresh=False)
        self.bar.update(step - self.bar.n)

    def _means(self) -> dict[str, float]:
        averages = StepAverages()
        for told in self.recent:
            averages.add(*told)
        return averages.take() or {}

    def _line(self, step: int) -> str:
        means = self._means()
        left = tqdm.format_interval((self.steps - step) * means["seconds"])
        return f"step {step}/{self.steps}: {figures(means)}, {left} left"

    def _say(self, line: str) -> None:
        tqdm.write(line, file=self.stream)
        self.stream.flush()


def say(sentence: str) -> None:
    """Print a sentence for the user to stderr, above a progress bar if there is one."""
    tqdm.write(f"mask2former: {sentence}", file=sys.stderr)


def figures(means: Mapping[str, float]) -> str:
    """The means of some steps, as `StepAverages` gives them, on one line."""
    parts = ", ".join(f"{part} {value:.3f}" for part, value in sum_by_part(means).items())
    return (
        f"loss {means['loss']:.3f} ({parts}), lr {means['lr']:.3g}, "
        f"{means['images_per_second']:.3g} images/s, {means['memory']:.1f} GiB"
    )
