"""Progress of a conversion as plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts converted bytes and prints a line every two seconds: total, rate, last tensor."""

    def __init__(self, verb: str, write: Callable[[str], None] = print) -> None:
        self.verb = verb
        self._write = write
        self._bytes = 0
        self._tensors = 0
        self._start = self._last = time.monotonic()

    def add(self, name: str, tensor: Tensor) -> None:
        self._bytes += tensor.numel() * tensor.element_size()
        self._tensors += 1
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._write(f"{self._amount(now)}; {name}")

    def _amount(self, now: float) -> str:
        gigabytes = self._bytes / 1e9
        rate = gigabytes / max(now - self._start, 1e-9)
        return f"{self.verb} {self._tensors} tensors, {gigabytes:.2f} GB, {rate:.2f} GB/s"

    def finish(self) -> None:
        """Print the last line, if anything was counted."""
        if self._tensors:
            self._write(self._amount(time.monotonic()))
