"""Calls in processes of their own, so that none finds the memory or the caches of another."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch


class OwnProcess:
    """Calls `build(*arguments)` in another process, and there what it returned whenever this is
    called.

    The first one decides what the process has loaded from which all are forked, so that they start
    fast: the modules of `build` and of functions among the arguments. It has run nothing; a fork of
    this one would inherit its free memory, and locks of threads that it lacks. Used in a `with`
    block, at whose end the process is ended, whatever it does.

    Raises:
        RuntimeError: the process failed; it says why on standard error.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        functions = [build, *filter(callable, arguments)]
        context.set_forkserver_preload([function.__module__ for function in functions])
        self._connection, theirs = context.Pipe()
        serving = theirs, torch.get_num_threads(), build, arguments
        self._process = context.Process(target=_serve, args=serving, daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def __call__(self) -> Any:
        """What the call there returns."""
        try:
            self._connection.send(None)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(
                f"a process of the benchmark ended with status {self._process.exitcode}; "
                "it says above why, unless the system was out of memory"
            ) from None

    def __enter__(self) -> "OwnProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, threads: int, build: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    run = build(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(run())
