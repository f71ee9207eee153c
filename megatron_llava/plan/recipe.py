"""Steps of a run over so many samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pass over some samples, or so many steps as --train-iters says."""

    samples: int
    samples_per_step: float
    steps: int
    warmup: int
    """Of the steps."""

    passes: float | None = None
    """Over all samples, of the steps of --train-iters; None where neither is known."""


def recipe(
    config: RunConfig, world_size: int, workload: Workload, samples: int | None
) -> Recipe | None:
    """The steps that one pass takes, the last of them perhaps with fewer samples.

    With --drop-last all steps are whole, and the samples are those of the steps. Steps that
    --train-iters gives are these, however many passes they are.

    Args:
        samples: in place of the store's; None for those, and None is returned without a store.

    Raises:
        ValueError: with --drop-last, they fill no step.
    """
    batch = config.global_batch_size(world_size)
    per_step = batch * workload.samples_per_pack
    if "train_iters" in config.explicit:
        steps = known(config.training.train_iters)
        taken, of_a_pass = round(steps * per_step), samples or workload.samples
        return Recipe(
            samples=taken,
            samples_per_step=per_step,
            steps=steps,
            warmup=config.optimizer.warmup_iters(steps),
            passes=taken / of_a_pass if of_a_pass else None,
        )
    if samples is None:
        if workload.samples is None or workload.packs is None:
            return None
        samples, steps = workload.samples, math.ceil(workload.packs / batch)
    elif config.data.drop_last:
        steps = int(samples // per_step)
        if not steps:
            raise ValueError(
                f"--samples {samples} are fewer than the {per_step:g} of a step of "
                f"--global-batch-size {batch}, so --drop-last leaves out all of them: give more, "
                "or drop --drop-last"
            )
        samples = int(steps * per_step)
    else:
        steps = math.ceil(samples / per_step)
    return Recipe(
        samples=samples,
        samples_per_step=per_step,
        steps=steps,
        warmup=config.optimizer.warmup_iters(steps),
    )


def gpu_hours(gpus: int, seconds: float) -> float:
    """What a run of so many seconds costs, as model cards count it: GPUs x hours."""
    return gpus * seconds / 3600
