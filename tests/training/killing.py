"""For tests that kill a process while it saves."""

import os
import signal


def kill_at_call(left: int) -> None:
    """Kill this process in call number `left` of the functions that make and move files."""

    def counting(call):
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("mkdir", "replace", "fsync", "rmdir", "unlink"):
        setattr(os, name, counting(getattr(os, name)))
