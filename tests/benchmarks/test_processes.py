"""Calls in processes of their own."""

import os
import time

import pytest
import torch

from benchmarks.processes import OwnProcess


def counting(start):
    """A call that returns the process's number, its threads, and one more each time."""
    count = [start]

    def run():
        count[0] += 1
        return os.getpid(), torch.get_num_threads(), count[0]

    return run


def failing_when_built():
    raise ValueError("out of luck")


def failing_when_called():
    return failing_when_built


def test_what_was_built_lives_on_in_another_process():
    with OwnProcess(counting, 5) as one, OwnProcess(counting, 0) as other:
        (first, threads, count), again, (second, _, _) = one(), one(), other()
    assert len({os.getpid(), first, second}) == 3
    assert threads == torch.get_num_threads()
    assert count == 6 and again == (first, threads, 7)


@pytest.mark.parametrize("build", [failing_when_built, failing_when_called])
def test_a_failure_there_is_a_failure_here(build):
    with (
        pytest.raises(RuntimeError, match="ended with status 1; it says above why"),
        OwnProcess(build) as run,
    ):
        run()


def sleeping(seconds):
    time.sleep(seconds)


def test_the_end_waits_for_no_work_that_is_not_wanted():
    begun = time.monotonic()
    with OwnProcess(sleeping, 600):
        pass
    assert time.monotonic() - begun < 300
