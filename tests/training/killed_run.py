"""What `test_run.py` starts: a run left alone, and one killed again and again until it has ended.

Argument: the folder in which they get the folders `whole` and `killed`. The second is killed from
outside, some milliseconds after a step, or from inside, at a call of the system while it saves. How
each of its processes ended is printed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from mask2former.training.callback import Callback
from tests.training.killing import kill_at_call
from tests.training.scenes import RECIPE, train_scenes

SETTINGS = RECIPE.replace(max_steps=16, save_steps=1, ema=0.9)


class Ticks(Callback):
    """A byte for every step."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_step(self, *_) -> None:
        os.write(self.pipe, b".")


def start(out: Path, call: int = 0) -> tuple[int, int]:
    """A process that resumes the run, and kills itself at that call unless it is 0; and its ticks.

    Forked, because starting Python for each would take minutes.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if call:
            kill_at_call(call)
        train_scenes(out, SETTINGS, resume=True, callbacks=[Ticks(writer)])
        os._exit(0)
    os.close(writer)
    return child, reader


def killed(out: Path, numbers: random.Random) -> int:
    """How a process ended, which was killed unless it was done before."""
    call = numbers.choice((0, numbers.randrange(1, 60)))
    child, reader = start(out, call)
    ticks = numbers.randrange(2, 6)
    while ticks and os.read(reader, 1):
        ticks -= 1
    if call == 0:
        time.sleep(numbers.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left_alone(out: Path) -> None:
    child, _ = start(out)
    os.waitpid(child, 0)


if __name__ == "__main__":
    folder, numbers = Path(sys.argv[1]), random.Random(0)
    left_alone(folder / "whole")
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        status = killed(folder / "killed", numbers)
        print(status, flush=True)
    left_alone(folder / "killed")
