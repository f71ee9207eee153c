"""Where a run reports to; ``observe.metrics.Reporter`` is the one that a run uses."""

from __future__ import annotations

from typing import Protocol

import torch

from megatron_llava.training.interval import Interval


class Reporter(Protocol):
    """Takes what the loop says."""

    def message(self, text: str) -> None: ...

    def advance_to(self, iteration: int) -> None: ...

    def training(
        self, iteration: int, values: dict[str, float], interval: Interval, device: torch.device
    ) -> None: ...

    def validation(self, iteration: int, loss: float, tokens: int, seconds: float) -> None: ...


class RunReporter(Reporter, Protocol):
    """Also notes the start of a run."""

    def started(self, iteration: int, run_yaml: str, device: torch.device) -> None: ...
