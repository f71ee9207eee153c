"""Rules of ``validate`` about logs and profiling."""

from __future__ import annotations

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig, all_fields

_OF_WINDOW = ("profile_step_start", "profile_step_end", "profile_ranks", "use_pytorch_profiler")


def check_wandb_flags(config: RunConfig) -> None:
    """What describes a run at Weights & Biases has one."""
    for name in ("wandb_exp_name", "wandb_save_dir"):
        if config.get(name) is not None and config.logging.wandb_project is None:
            raise ValueError(
                f"{all_fields()[name].option} {config.get(name)} is for --wandb-project, which is "
                "not given: add it, or drop the flag"
            )


def check_profiling(config: RunConfig, world_size: int) -> None:
    """The window lies in the run, its ranks exist, and its traces have somewhere to go."""
    profiling = config.profiling
    if not profiling.profile:
        for name in _OF_WINDOW:
            if config.asks_for(name):
                option = all_fields()[name].option
                raise ValueError(f"{option} says how to --profile, which is not given: add it")
        return
    start, end = profiling.profile_step_start, profiling.profile_step_end
    if start >= end:
        raise ValueError(
            f"--profile-step-start {start} is not before --profile-step-end {end}: give less"
        )
    steps = known(config.training.train_iters)
    if end > steps:
        raise ValueError(
            f"--profile-step-end {end} is beyond --train-iters {steps}: profile earlier steps"
        )
    for rank in profiling.profile_ranks:
        if not rank.isdecimal() or int(rank) >= world_size:
            raise ValueError(
                f"--profile-ranks: {rank!r} is none of the ranks 0 to {world_size - 1}"
            )
    if profiling.use_pytorch_profiler and config.logging.tensorboard_dir is None:
        raise ValueError(
            "--use-pytorch-profiler writes its traces to --tensorboard-dir, which is not given: "
            "add it"
        )
    if not profiling.use_pytorch_profiler and config.parallel.device == "cpu":
        raise ValueError(
            "--profile on --device cpu has nothing to mark steps for: add --use-pytorch-profiler"
        )


def check_memory_history(config: RunConfig) -> None:
    """There is GPU memory to record."""
    profiling = config.profiling
    if profiling.record_memory_history and config.parallel.device == "cpu":
        raise ValueError(
            "--record-memory-history records a GPU's memory, and --device is cpu: drop it"
        )
    if config.asks_for("memory_snapshot_path") and not profiling.record_memory_history:
        raise ValueError(
            f"--memory-snapshot-path {profiling.memory_snapshot_path} is for "
            "--record-memory-history, which is not given: add it, or drop the flag"
        )
