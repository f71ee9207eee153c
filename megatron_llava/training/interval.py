"""Sums between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Interval:
    """What happened since the last log line, over all data-parallel ranks."""

    steps: int = 0
    tokens: int = 0
    """Positions of the language model without padding."""
    padded_tokens: int = 0
    """Positions that packs of the full length would have had."""
    samples: int = 0
    images: int = 0
    data_seconds: float = 0.0
    """Longest time that a rank waited for batches."""
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out, so that a save does not look like slow training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began
