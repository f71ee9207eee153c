"""Steps of a run over so many samples."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.run import RunConfig
from megatron_llava.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pass over some samples."""

    samples: int
    samples_per_step: float
    steps: int
    warmup: int
    """Of the steps."""


def recipe(config: RunConfig, world_size: int, workload: Workload, samples: int) -> Recipe:
    """The steps that one pass takes, the last of them perhaps with fewer samples."""
    per_step = config.global_batch_size(world_size) * workload.samples_per_pack
    steps = -int(-samples // per_step)
    return Recipe(
        samples=samples,
        samples_per_step=per_step,
        steps=steps,
        warmup=config.optimizer.warmup_iters(steps),
    )


def gpu_hours(gpus: int, seconds: float) -> float:
    """What a run of so many seconds costs, as model cards count it: GPUs x hours."""
    return gpus * seconds / 3600
