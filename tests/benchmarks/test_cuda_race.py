"""Races on a GPU, with a clock that needs none."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cuda_race
from benchmarks.cuda_race import Group, copy_rate, extra_memory, race, sets_beyond
from tests.benchmarks.samples import FakeClock

MEBIBYTE = 2**20


def test_arguments_are_four_times_the_cache():
    cache = 50 * MEBIBYTE
    assert sets_beyond(cache, 2 * MEBIBYTE) == 100
    assert sets_beyond(cache, 3 * MEBIBYTE) == 67
    assert sets_beyond(cache, 900 * MEBIBYTE) == 8


def test_groups_take_turns_and_times_are_those_of_one_call(monkeypatch):
    monkeypatch.setattr(cuda_race, "LEAST_SECONDS", 0)
    clock, ran = FakeClock(), []

    def group(name, seconds, calls):
        return Group(lambda: (ran.append(name), clock.spend(seconds)), calls, False)

    timings = race({"a": group("a", 6.0, 3), "b": group("b", 1.0, 1)}, 2, clock)
    assert ran == list("ab" * 4)  # two rounds that do not count, and two that do
    assert timings["a"].seconds == (2.0, 2.0) and timings["b"].seconds == (1.0, 1.0)
    assert clock.waits == 2


@pytest.mark.parametrize("seconds, rounds", [(0.01, 20), (1e-6, 50), (0.0, 50), (5.0, 3)])
def test_short_rounds_are_repeated_up_to_a_limit(seconds, rounds):
    clock = FakeClock()
    timings = race({"a": Group(lambda: clock.spend(seconds), 1, True)}, 3, clock)
    assert len(timings["a"].seconds) == rounds


def test_what_is_captured_is_not_called():
    clock, called = FakeClock(captures=True), []
    group = Group.make([lambda: called.append(1)] * 5, clock)
    group.run()
    assert (group.captured, group.calls, called) == (True, 5, [])
    assert clock.now == pytest.approx(5e-6)


def test_what_cannot_be_captured_is_called_for_every_set():
    called = []
    group = Group.make([lambda i=i: called.append(i) for i in range(3)], FakeClock())
    group.run()
    assert (group.captured, called) == (False, [0, 1, 2])


def test_results_are_kept_until_the_last_call():
    results = []
    cuda_race.call_all([lambda: results.append(torch.empty(8)) or results[-1:]] * 4)
    assert len({result.data_ptr() for result in results}) == 4


def test_a_copy_reads_and_writes(monkeypatch):
    clock = FakeClock()
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *pair: (copy(*pair), clock.spend(1e-3)))
    assert copy_rate(torch.zeros(10_000, dtype=torch.uint8), clock) == pytest.approx(2e7)


@pytest.fixture
def cuda(monkeypatch):
    """What is asked of torch.cuda, in the order it is asked; its graphs run what they capture."""
    asked = []

    class Graph:
        def __init__(self, into, stream):
            asked.append(("capture", stream))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            asked.append("captured")

    def set_sync_debug_mode(mode):
        asked.append(mode)
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    stand_ins = SimpleNamespace(
        synchronize=lambda: asked.append("wait"),
        set_sync_debug_mode=set_sync_debug_mode,
        CUDAGraph=lambda: SimpleNamespace(replay="replay"),
        graph=Graph,
        current_stream=lambda: "our stream",
        memory_allocated=lambda: 1000,
        max_memory_allocated=lambda: 1700,
        reset_peak_memory_stats=lambda: asked.append("reset"),
    )
    for name, stand_in in vars(stand_ins).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return asked


def test_a_graph_is_captured_on_the_current_stream_after_one_call_that_must_not_wait(cuda):
    clock = cuda_race.CudaClock()
    calls = [lambda: cuda.append("first"), lambda: cuda.append("second")]
    assert clock.capture(calls) == "replay"
    assert cuda == [
        "error",
        "first",
        "default",
        ("capture", "our stream"),
        "first",
        "second",
        "captured",
    ]


def failing(message: str):
    def call():
        raise RuntimeError(message)

    return call


def test_who_waits_for_the_gpu_is_not_captured(cuda):
    waiting = failing("called a synchronizing CUDA operation")
    assert cuda_race.CudaClock().capture([waiting]) is None
    assert cuda == ["error", "default"]


def test_who_fails_while_it_is_captured_is_not_captured(cuda):
    calls = [lambda: (), failing("operation not permitted when stream is capturing")]
    assert cuda_race.CudaClock().capture(calls) is None
    assert cuda[-1] == "captured"


def test_extra_memory_is_the_peak_less_results_and_what_was_there(cuda):
    result = torch.zeros(300, dtype=torch.uint8)
    assert extra_memory(lambda: (cuda.append("call"), result)[1:]) == 400
    assert cuda == ["wait", "reset", "call"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_keeps_time():
    with torch.cuda.stream(torch.cuda.Stream()):
        clock = cuda_race.CudaClock()
        source = torch.ones(MEBIBYTE, device="cuda")
        group = Group.make([lambda: (source + 1,)] * 3, clock)
        assert group.captured
        assert all(seconds > 0 for seconds in race({"a": group}, 2, clock)["a"].seconds)
        assert not Group.make([lambda: (source.sum().item(), ())[1:]] * 3, clock).captured
        extra = extra_memory(lambda: (source + 1 + 1,))
        assert extra == pytest.approx(source.nbytes, abs=MEBIBYTE)
        assert copy_rate(source, clock) > 1e9
