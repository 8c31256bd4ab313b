"""For tests that kill a process while it saves."""

import os
import signal


def kill_at_call(left: int) -> None:
    """Kill this process in its call number `left` of those by which files are made and moved."""

    def watched(call):
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("mkdir", "replace", "fsync", "rmdir", "unlink"):
        setattr(os, name, watched(getattr(os, name)))
