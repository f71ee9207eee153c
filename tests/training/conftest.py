"""A tiny model in core's wrappers with its optimizer, as a run builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_model import pack, tiny_config, tiny_sample

from megatron_llava.config.run import RunConfig
from megatron_llava.data.packed_batch import TensorBatch


@dataclass
class Parts:
    """What a training step needs."""

    config: RunConfig
    model: Any
    wrapped: Any
    optimizer: Any
    scheduler: Any

    def step(self, *batches: TensorBatch, **options: Any) -> Any:
        """One optimizer step over the given microbatches, with options of ``train_step``."""
        from megatron_llava.training.step import train_step

        rows = len(batches[0].position_ids)
        return train_step(
            self.wrapped,
            self.optimizer,
            self.scheduler,
            iter(batches),
            len(batches),
            rows,
            self.config.training.loss_reduction,
            text_loss_coeff=self.config.training.text_loss_coeff,
            **options,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of all parameters by name."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


@pytest.fixture(scope="session")
def make_parts(single_rank: None) -> Callable[..., Parts]:
    """Build the parts of a run of 20 steps at a constant rate of 1e-3, with the given changes."""

    def make(**changes: Any) -> Parts:
        from megatron_llava.training.distributed_model import build_distributed_model
        from megatron_llava.training.optimizer import build_optimizer, build_scheduler

        settings = {"train_iters": 20, "lr": 1e-3, "lr_decay_style": "constant", **changes}
        config = tiny_config(**settings)
        torch.manual_seed(0)
        models, wrapped = build_distributed_model(config, torch.device("cpu"))
        optimizer = build_optimizer(config, wrapped)
        return Parts(config, models[0], wrapped, optimizer, build_scheduler(config, optimizer))

    return make


@pytest.fixture(scope="module")
def batches() -> list[TensorBatch]:
    """A pack of an image sample and one of text, and a pack of text."""
    config = tiny_config()
    return [
        pack(config, [tiny_sample([(90, 80)], 9, 1), tiny_sample([], 5, 2)]),
        pack(config, [tiny_sample([], 30, 3)]),
    ]


@pytest.fixture
def batch() -> TensorBatch:
    """Two samples with an image each, and one of text."""
    samples = [tiny_sample([(90, 80)], 9, 1), tiny_sample([(25, 70)], 6, 2), tiny_sample([], 7, 3)]
    return pack(tiny_config(), samples)
