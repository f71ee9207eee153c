"""Where the time of steps goes on this rank.

Time belongs to one part at any moment: from when the part is marked to the next mark. On CUDA marks
are events on the stream, read when they have passed, so that the host never waits for the device
between log lines.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

DATA, COMPUTE, COMMUNICATION = "data", "compute", "communication"
OPTIMIZER, OTHER = "optimizer", "other"
TOWER, PROJECTOR, LANGUAGE = "vision tower", "projector", "language model"
"""These three are taken out of ``COMPUTE`` where ``module_times`` watches a model."""

PARTS = (DATA, TOWER, PROJECTOR, LANGUAGE, COMPUTE, COMMUNICATION, OPTIMIZER, OTHER)


class StepTimes:
    """Seconds by part, of steps only: marks outside of a step do nothing."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part: str | None = None
        self._since = 0.0

    def begin_step(self) -> None:
        """Start to count, with ``OTHER``."""
        self._enter(OTHER)

    def end_step(self) -> None:
        """Count no further."""
        self._enter(None)

    def mark(self, part: str) -> None:
        """From here on time belongs to a part."""
        if self._part is not None:
            self._enter(part)

    def follow_backward(self, output: torch.Tensor) -> torch.Tensor:
        """Count the backward from this output of a model as ``COMPUTE``, what follows as
        ``COMMUNICATION``: core's schedules wait for other ranks there."""

        def begins(_: torch.Tensor) -> None:
            self.mark(COMPUTE)
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self.mark(COMMUNICATION))

        if output.requires_grad:
            output.register_hook(begins)
        return output

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call, between steps."""
        assert self._part is None, "a step is under way"
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _enter(self, part: str | None) -> None:
        now = time.perf_counter()
        if self._part is not None:
            self._seconds[self._part] += now - self._since
        self._part, self._since = part, now


class CudaStepTimes(StepTimes):
    """The same by the clock of the device."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: deque[tuple[str | None, Any]] = deque()

    def take(self) -> dict[str, float]:
        torch.cuda.synchronize()
        self._read()
        return super().take()

    def _enter(self, part: str | None) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._passed.append((part, event))
        self._part = part
        self._read()

    def _read(self) -> None:
        """Add what lies between events that have passed."""
        while len(self._passed) > 1 and self._passed[1][1].query():
            part, event = self._passed.popleft()
            if part is not None:
                self._seconds[part] += event.elapsed_time(self._passed[0][1]) / 1000
