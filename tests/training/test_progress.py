import io
import re
import time

import pytest

from mask2former.training.progress import SMOOTHED_STEPS, Progress

LOSSES = {"loss": 6.0, "loss_cross_entropy": 1.0, "loss_mask": 2.0, "loss_mask_0": 2.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def scaled(factor: float) -> dict[str, float]:
    return {name: factor * loss for name, loss in LOSSES.items()}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_whole_lines_at_intervals_at_the_first_step_and_at_the_last(clock):
    log = io.StringIO()
    progress = Progress(100, every=30, stream=log)
    for step in range(1, 101):
        progress.on_step(step, LOSSES, 1e-4, images=8, seconds=4.0)
        clock[0] += 4
    progress.close()
    text = log.getvalue()
    assert "\r" not in text and text.endswith("\n")
    steps = [int(found) for found in re.findall(r"^step (\d+)/100: ", text, re.M)]
    assert steps == [1, *range(9, 100, 8), 100]


def test_a_line_has_parts_rate_speed_memory_and_what_is_left(clock):
    log = io.StringIO()
    Progress(901, stream=log).on_step(1, LOSSES, 2.5e-4, images=8, seconds=4.0)
    pattern = (
        r"step 1/901: loss 5\.500 \(cross-entropy 1\.000, mask 4\.500\), lr 0\.00025, 2 images/s, "
        r"\d+\.\d GiB, 1:00:00 left\n"
    )
    assert re.fullmatch(pattern, log.getvalue())


def test_figures_are_means_of_the_last_steps(clock):
    log = io.StringIO()
    progress = Progress(1000, every=0, stream=log)
    for step in range(1, 101):
        progress.on_step(step, scaled(step), 1e-4, images=step, seconds=1.0)
    middle = 100 - (SMOOTHED_STEPS - 1) / 2
    last = log.getvalue().splitlines()[-1]
    assert f"loss {5.5 * middle:.3f} (cross-entropy {middle:.3f}," in last
    assert f"{middle:.3g} images/s" in last


def test_a_terminal_gets_a_bar_that_begins_where_the_run_was_resumed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    progress = Progress(100, stream=terminal)
    for step in range(51, 101):
        progress.on_step(step, LOSSES, 1e-4, images=8, seconds=4.0)
    progress.on_evaluation(100, {"pq": 0.51234, "miou": 0.25})
    progress.close()
    bars = terminal.getvalue().split("\r")
    first = next(bar for bar in bars if "%|" in bar)
    assert "50/100" in first or "51/100" in first
    last = bars[-1]
    assert "100/100" in last and "100%" in last
    assert "loss 5.500 (cross-entropy 1.000, mask 4.500), lr 0.0001, 2 images/s" in last
    assert "step 100/100: pq 0.5123, miou 0.25\n" in terminal.getvalue()


def test_metrics_are_said_in_a_log(clock):
    log = io.StringIO()
    Progress(100, stream=log).on_evaluation(50, {"ap": float("nan"), "sq": 0.7, "pq": 0.5})
    assert log.getvalue() == "step 50/100: pq 0.5, ap nan\n"


def test_nothing_is_written_where_nothing_is_told():
    stream = Terminal()
    Progress(100, stream=stream).close()
    assert stream.getvalue() == ""
