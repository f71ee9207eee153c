"""Sums between two log lines."""

from __future__ import annotations

import time
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
