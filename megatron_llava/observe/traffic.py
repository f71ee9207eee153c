"""One training step of a run, with what this rank sent beside what was predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.observe.collective_counter import CollectiveCounter, payload_by_kind
from megatron_llava.observe.communication import communication
from megatron_llava.observe.microbatch_sizes import MicrobatchSizes, microbatch_sizes
from megatron_llava.observe.traffic_kinds import Kind
from megatron_llava.training.loop import Trainer
from megatron_llava.training.step import train_step


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank sent in one step."""

    predicted: dict[Kind, int]
    counted: dict[Kind, int]

    small: int
    """Counted in messages that are not predicted: losses, counts, norms."""


def counted_step(trainer: Trainer) -> Traffic:
    """Train one step on the CPU; every rank must call it."""
    source, sizes = trainer.source, []

    def seen(batches: Iterator[TensorBatch]) -> Iterator[TensorBatch]:
        for batch in batches:
            patches = source.settings.tokens_per_view
            sizes.append(microbatch_sizes(batch, source.share.view_rank, patches))
            yield batch

    rows = source.step_rows()
    with CollectiveCounter() as counter:
        train_step(
            trainer.wrapped,
            trainer.optimizer,
            trainer.scheduler,
            seen(source.step(rows)),
            source.num_microbatches,
            rows,
            trainer.config.training.loss_reduction,
        )
    counted, small = payload_by_kind(counter)
    predicted = _predicted(trainer, sizes)
    return Traffic(predicted=predicted, counted=counted, small=small)


def _predicted(trainer: Trainer, sizes: list[MicrobatchSizes]) -> dict[Kind, int]:
    return communication(
        trainer.config,
        dist.get_world_size(),
        sizes,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
    )
