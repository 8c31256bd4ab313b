"""Races and what is read off them."""

import pytest

from benchmarks import harness
from benchmarks.harness import Timing, race


def test_speed_is_the_median_over_the_rounds():
    ours, baseline = Timing((1.0, 1.0, 10.0)), Timing((4.0, 3.0, 20.0))
    assert ours.speed(baseline) == 3
    assert baseline.speed(baseline) == 1


def test_the_middle_and_the_spread_of_a_timing():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3
    assert timing.quartiles == (1.5, 4.5)


def test_contestants_take_turns_after_a_round_that_does_not_count(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0)
    ran = []
    timings = race({name: lambda name=name: ran.append(name) for name in "ab"}, rounds=3)
    assert ran == list("ab" * 4)
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]


def test_short_rounds_are_repeated(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(harness, "seconds", lambda run: 0.1)
    timings = race({"a": int, "b": int}, rounds=2)
    assert timings["a"].seconds == pytest.approx([0.1] * 3)


def test_seconds_are_those_of_the_clock(monkeypatch):
    clock = iter((3.0, 3.25))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    assert harness.seconds(int) == 0.25
