"""A profiler that runs over some steps of a run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch


class ProfileWindow:
    """Profiles the steps after ``start`` up to ``end`` on this rank; each has a range of its own.

    Args:
        start: steps done when profiling starts.
        end: steps done when it ends.
        trace: file that torch's profiler writes in Chrome's format; None marks steps and operators
            for Nsight Systems instead, which needs CUDA.
    """

    def __init__(self, start: int, end: int, trace: Path | None) -> None:
        self._start, self._end, self._trace = start, end, trace
        self._running: ExitStack | None = None
        self._step: Any = None

    def advance_to(self, done: int) -> None:
        """Start or stop between steps, of which so many are done."""
        self._leave_step()
        if self._running is not None and done >= self._end:
            self.close()
        elif self._running is None and done == self._start:
            self._running = ExitStack()
            self._running.enter_context(self._profiler())
        if self._running is not None:
            self._step = torch.profiler.record_function(f"step {done + 1}")
            self._step.__enter__()

    def close(self) -> None:
        """Stop where it runs, and write what it saw."""
        self._leave_step()
        if self._running is not None:
            self._running.close()
            self._running = None

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _profiler(self) -> Any:
        if self._trace is None:
            return _marked_for_nsight()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return torch.profiler.profile(
            activities=activities, record_shapes=True, on_trace_ready=self._write
        )

    def _write(self, profiler: Any) -> None:
        assert self._trace is not None
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._trace))


def _marked_for_nsight() -> ExitStack:
    """A capture range in which autograd names its operators."""
    stack = ExitStack()
    torch.cuda.cudart().cudaProfilerStart()
    stack.callback(torch.cuda.cudart().cudaProfilerStop)
    stack.enter_context(torch.autograd.profiler.emit_nvtx(record_shapes=True))
    return stack
