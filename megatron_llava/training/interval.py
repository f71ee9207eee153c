"""Sums between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from megatron_llava.data.sample_kinds import SAMPLE_KINDS
from megatron_llava.parallel.step_flops import StepFlops
from megatron_llava.training.taken import Taken


@dataclass(kw_only=True)
class Interval:
    """What happened since the last log line, over all data-parallel ranks."""

    steps: int = 0
    tokens: int = 0
    """Positions of the language model without padding."""
    padded_tokens: int = 0
    """Positions that packs of the full length would have had."""
    samples: int = 0
    kinds: tuple[int, ...] = (0,) * len(SAMPLE_KINDS)
    """Samples of each of SAMPLE_KINDS."""
    images: int = 0
    useful_flops: int = 0
    """Of forward and backward, of all ranks together; ``parallel.step_flops`` says what counts."""
    recomputed_flops: int = 0
    """Of what the backward computed again."""
    details: dict[str, float | str] = field(default_factory=dict)
    """More for the record of the log line, by name."""
    data_seconds: float = 0.0
    """Longest time that a rank waited for batches."""
    started: float = field(default_factory=time.perf_counter)

    def add_step(
        self, taken: Taken, *, padded_tokens: int, data_seconds: float, flops: StepFlops
    ) -> None:
        """Count a step by what its packs held; arguments are those of the attributes."""
        self.steps += 1
        self.tokens += taken.sizes.rows
        self.samples += taken.samples
        self.kinds = tuple(map(sum, zip(self.kinds, taken.kinds, strict=True)))
        self.images += taken.images
        self.padded_tokens += padded_tokens
        self.data_seconds += data_seconds
        self.useful_flops += flops.useful
        self.recomputed_flops += flops.recomputed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out, so that a save does not look like slow training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began
