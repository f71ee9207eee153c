"""What watches a run where its flags ask for it: losses, times, a profiler."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_llava.config.run import RunConfig
from megatron_llava.models.llava import LlavaModel
from megatron_llava.platform.profile_window import ProfileWindow
from megatron_llava.training.module_times import watch_modules
from megatron_llava.training.spikes import SpikeGuard
from megatron_llava.training.step_times import CudaStepTimes, StepTimes


def spike_guard(config: RunConfig, losses: list[float]) -> SpikeGuard | None:
    """What --loss-spike-factor asks for, with the losses before a resumption."""
    factor = config.training.loss_spike_factor
    if factor is None:
        return None
    return SpikeGuard(factor, config.training.loss_spike_window, losses)


def step_times(
    config: RunConfig, models: list[LlavaModel], device: torch.device
) -> StepTimes | None:
    """What --log-straggler and --timing-log-level need, which watch nothing where they are off."""
    level = config.logging.timing_log_level
    if not level and not config.logging.log_straggler:
        return None
    times = CudaStepTimes() if device.type == "cuda" else StepTimes()
    if level > 1:
        for model in models:
            watch_modules(model, times)
    return times


def profile_window(config: RunConfig) -> ProfileWindow | None:
    """What --profile asks of this rank."""
    profiling, rank = config.profiling, dist.get_rank()
    if not profiling.profile or rank not in map(int, profiling.profile_ranks):
        return None
    start, end, trace = profiling.profile_step_start, profiling.profile_step_end, None
    if profiling.use_pytorch_profiler:
        name = f"rank-{rank}.steps-{start + 1}-{end}.pt.trace.json"
        trace = Path(config.logging.tensorboard_dir) / name
    return ProfileWindow(start, end, trace)
