"""Losses that jump far above those before them."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable


class SpikeGuard:
    """Knows the losses of the last steps, and how high the next one may be.

    Losses of a step are the same on all ranks, so each decides alike. A loss that was refused is
    not remembered: a run whose losses stay high ends at ``--max-skipped-steps``.

    Args:
        factor: how many times the median of the window a loss may be.
        window: losses that are remembered; until there are as many, none is refused.
        losses: those before, oldest first, of a run that is resumed; more than the window are cut.
    """

    def __init__(self, factor: float, window: int, losses: Iterable[float] = ()) -> None:
        self._factor = factor
        self._losses = deque(losses, maxlen=window)

    @property
    def losses(self) -> list[float]:
        """What is remembered, oldest first."""
        return list(self._losses)

    @property
    def limit(self) -> float:
        """The largest loss that the next step may have."""
        if len(self._losses) < self._losses.maxlen:
            return float("inf")
        return self._factor * statistics.median(self._losses)

    def add(self, loss: float) -> None:
        """Remember the loss of a step that was not skipped."""
        self._losses.append(loss)
