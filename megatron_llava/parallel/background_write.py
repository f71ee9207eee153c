"""Write a checkpoint's tensors from a child process of every rank, while the rank goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import (
    AsyncRequest,
    TemporalAsyncCaller,
)


class BackgroundWrite:
    """One save that is being written; all ranks make it, ask it and finish it together.

    The child is forked, so it sees the tensors as they are now, whatever the rank does to them
    afterwards (on CUDA core copies them to the host first).
    """

    def __init__(self, request: AsyncRequest) -> None:
        self._finalize_functions = request.finalize_fns
        self._caller = TemporalAsyncCaller()
        self._not_started: Exception | None = None
        if request.async_fn is not None:
            request = request._replace(async_fn=partial(_write_or_die, request.async_fn))
        try:
            self._caller.schedule_async_call(request)
        except Exception as caught:  # told in check(), where all ranks agree on it
            self._not_started = caught
        self._process = self._caller.process

    def is_done(self, *, wait: bool) -> bool:
        """Whether every rank's child has ended, well or not."""
        return self._caller.is_current_async_call_done(blocking=wait)

    def check(self) -> None:
        """Raise RuntimeError where this rank's child did not write everything that it had to.

        Core does not look at how the child ended.
        """
        if self._not_started is not None:
            raise RuntimeError(f"its writer did not start: {self._not_started}")
        code = self._process.exitcode if self._process is not None else 0
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise RuntimeError(f"its writer {how}")

    def finalize(self) -> None:
        """Collect what all children wrote, and describe it in the checkpoint's own metadata.

        Runs after a failed ``check`` too: core keeps results in a queue that the next save shares.
        """
        for function in self._finalize_functions:
            function()


@contextmanager
def termination_waits() -> Iterator[None]:
    """Hold SIGTERM back until the end of the block.

    The first save starts a process for core's queue of results. It inherits this, and so outlives
    the SIGTERM with which a launcher asks a rank, and all processes of its group, for a last save.
    """
    resource_tracker.ensure_running()  # python would release the signal when it starts this one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write_or_die(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """In the child: write, and leave where one of its helper processes dies.

    Core waits for ever for a helper that was killed, when memory runs out for instance.
    """
    signal.signal(signal.SIGCHLD, _leave_with_a_dead_helper)
    write(*args, **kwargs)


def _leave_with_a_dead_helper(signal_number: int, frame: object) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        if status != 0:
            os._exit(1)
