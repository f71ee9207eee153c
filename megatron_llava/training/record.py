"""Train and write down every step: its loss, gradient norm, and every parameter of every rank."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_llava.config.run import RunConfig
from megatron_llava.parallel.model_shards import model_shards
from megatron_llava.parallel.recorded_steps import write_shards, write_values
from megatron_llava.training.interval import Interval
from megatron_llava.training.loop import Trainer
from megatron_llava.training.run import open_trainer


class StepRecorder:
    """A reporter that writes what ``recorded_steps`` reads; needs ``--log-interval 1``.

    Attributes:
        trainer: whose parameters are written; set before it runs.
    """

    trainer: Trainer

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def message(self, text: str) -> None:
        """What a run says beside its steps is not written."""

    def advance_to(self, iteration: int) -> None:
        """Write this rank's parameters after a step."""
        with self.trainer.parameters_in_place():
            shards = model_shards(self.trainer.models)
        write_shards(self._folder, iteration, dist.get_rank(), shards)

    def training(
        self, iteration: int, values: dict[str, float], interval: Interval, device: torch.device
    ) -> None:
        """Write the loss and the gradient norm of a step, which all ranks know."""
        if dist.get_rank() == 0:
            write_values(self._folder, iteration, values)

    def validation(self, iteration: int, loss: float, tokens: int, seconds: float) -> None:
        """Held-out losses are not written."""


def record_training(config: RunConfig, device: torch.device, folder: Path) -> None:
    """Train as ``config`` says and record every step under ``folder``.

    Raises:
        ValueError: one line for the user.
    """
    recorder = StepRecorder(folder)
    with open_trainer(config, device, recorder) as trainer:
        recorder.trainer = trainer
        trainer.run()
