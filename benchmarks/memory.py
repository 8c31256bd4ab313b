"""Peak memory of one call on the CPU: all that its process held, or what the call needs beyond its
arguments and results.

For the latter a fresh process makes the arguments, hands all free memory back to the system, and
sets the kernel's mark of its largest resident size (VmHWM) to the present one. The extra memory of
the call is how far the mark then rises, less the size of the results, which are still held. So
scratch space counts in whatever way it was allocated, and free memory from before does not hide it.
Small parts of a MiB are noise: the kernel counts in pages, and code is paged in as it runs.

Only Linux lets a process set the mark, through a file that a sandbox may hide.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from benchmarks.processes import OwnProcess

MARK = Path("/proc/self/clear_refs")
AVAILABLE = os.access(MARK, os.W_OK)
STATUS = Path("/proc/self/status")
COUNTED = STATUS.exists()  # so that `peak` can say something
MMAP_THRESHOLD = -3  # a number of malloc.h
GIVEN_BACK = 2**20


def peak_extra(build: Callable[..., Callable[[], Iterable[Tensor]]], *arguments) -> int:
    """Bytes that one call needs beyond what was there before and what it returns.

    Args:
        build: a function of a module; called with `arguments` in another process, it warms up what
            is to be measured and returns the call.

    Raises:
        RuntimeError: that process failed; it says why on standard error.
    """
    with OwnProcess(_extra, build, arguments) as measured:
        return measured()


def peak(build: Callable[..., Callable[[], object]], *arguments) -> int:
    """Bytes that a process held at most which builds and runs the call, its libraries included.

    glibc would keep freed blocks of up to 32 MiB in a heap full of holes, how many depends on the
    order of everything before; here blocks of GIVEN_BACK bytes and more go back to the system.

    Arguments and errors are those of `peak_extra`.
    """
    with OwnProcess(_whole, build, arguments) as measured:
        return measured()


def _extra(build: Callable, arguments: tuple) -> Callable[[], int]:
    run = build(*arguments)

    def measured() -> int:
        gc.collect()
        _return_free_memory()
        MARK.write_text("5")  # VmHWM = VmRSS, see proc_pid_clear_refs(5)
        before = _status("VmRSS")
        results = run()
        extra = _status("VmHWM") - before - sum(tensor.nbytes for tensor in results)
        return max(extra, 0)

    return measured


def _whole(build: Callable, arguments: tuple) -> Callable[[], int]:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, GIVEN_BACK)
    run = build(*arguments)

    def measured() -> int:
        run()
        return _status("VmHWM")

    return measured


def _return_free_memory() -> None:
    """glibc keeps freed memory for the next allocation, which would then not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # musl has none and returns free memory by itself
        trim(0)


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kilobytes) * 1024
