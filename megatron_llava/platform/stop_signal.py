"""SIGTERM as the wish to stop in good order, which is how Slurm and clouds preempt a job."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

SECONDS_OF_ECHO = 5.0
"""Slurm signals every process of a job, and torchrun then its workers once more."""


class StopSignal:
    """Remembers a SIGTERM; a second one ends the process at once, unless it is the first's echo.

    Attributes:
        received: there was one.
    """

    def __init__(self) -> None:
        self.received = False
        self._first = 0.0

    def listen(self) -> None:
        """Take SIGTERM over, for the rest of the process. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, self._handle)

    def ignore(self) -> None:
        """All is saved: torchrun, seeing one rank end, signals those that end a moment later."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first = True, now
        elif now - self._first > SECONDS_OF_ECHO:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
