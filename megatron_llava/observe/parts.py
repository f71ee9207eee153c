"""The parts of the model that a pipeline rank holds: one, or as many as it has virtual stages."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.rules_pipeline import layers_of_stages
from megatron_llava.config.run import RunConfig


@dataclass(frozen=True)
class Part:
    """A pipeline stage, or one of the virtual stages of a rank."""

    layers: int
    first: bool
    """It has the embedding, the vision tower and the projector."""

    last: bool
    """It has the final norm and the output layer."""

    bucketed: bool
    """Its gradients are reduced in buckets; core reduces later parts and stages in one piece."""


def parts_of_rank(config: RunConfig, pipeline_rank: int) -> list[Part]:
    """The parts of a rank of a validated configuration, in the order of the layers."""
    stages, chunks = config.parallel.pipeline_model_parallel_size, config.virtual_stages or 1
    layers = layers_of_stages(config)[pipeline_rank] // chunks
    return [
        Part(
            layers=layers,
            first=pipeline_rank == 0 and chunk == 0,
            last=pipeline_rank == stages - 1 and chunk == chunks - 1,
            bucketed=pipeline_rank == 0 and chunk == 0,
        )
        for chunk in range(chunks)
    ]
