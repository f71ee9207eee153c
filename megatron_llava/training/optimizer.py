"""The optimizer and its learning-rate schedule, with a rate of its own for tower and projector."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride

from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import CROSS_IMAGE_ATTENTION, TEMPORAL_ENCODER
from megatron_llava.models.core_config import params_dtype
from megatron_llava.training.optimizer_state import optimizer_parts

# As Transformer Engine's Adam takes them; FP8 is bytes with a scale.
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.uint8,
}


def build_optimizer(config: RunConfig, wrapped: list[DistributedDataParallel]) -> MegatronOptimizer:
    """Core's Adam (decoupled weight decay) over the parameters that learn.

    Biases and norms are not decayed (core's rule: parameters of one dimension).
    """
    optimizer, precision = config.optimizer, config.precision
    core = OptimizerConfig(
        optimizer=optimizer.optimizer,
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        bf16=precision.bf16,
        fp16=precision.fp16,
        params_dtype=params_dtype(config),
        loss_scale=precision.loss_scale,
        initial_loss_scale=precision.initial_loss_scale,
        min_loss_scale=precision.min_loss_scale,
        loss_scale_window=precision.loss_scale_window,
        hysteresis=precision.hysteresis,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_precision_aware_optimizer=optimizer.use_precision_aware_optimizer,
        # Else main weights are int16, the bits that bfloat16 lacks: core gathers them as float32
        # for a fully reshardable checkpoint, and a resume without the flag would read them as such.
        store_param_remainders=False,
        main_params_dtype=_DTYPES[optimizer.main_params_dtype],
        exp_avg_dtype=_DTYPES[optimizer.exp_avg_dtype],
        exp_avg_sq_dtype=_DTYPES[optimizer.exp_avg_sq_dtype],
        optimizer_cpu_offload=optimizer.optimizer_cpu_offload,
        optimizer_offload_fraction=optimizer.optimizer_offload_fraction,
        overlap_cpu_optimizer_d2h_h2d=optimizer.overlap_cpu_optimizer_d2h_h2d,
    )
    overrides = get_standard_config_overrides(core)
    overrides.update(_module_overrides(config))
    built = get_megatron_optimizer(core, wrapped, config_overrides=overrides)
    for part in optimizer_parts(built):
        if isinstance(part.optimizer, HybridDeviceOptimizer):
            # Classes, which are also in its defaults: a checkpoint with them cannot be read.
            for group in part.optimizer.param_groups:
                group.pop("cpu_optimizer_cls"), group.pop("gpu_optimizer_cls")
    if precision.fp16:
        for part in wrapped:
            # Core's schedules, and losses that are added elsewhere, scale with it.
            part.module.config.grad_scale_func = built.scale_loss
    return built


def build_scheduler(config: RunConfig, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Linear warmup from zero, then the decay; one scheduler step per optimizer step."""
    settings, train_iters = config.optimizer, config.training.train_iters
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_iters(train_iters),
        lr_decay_steps=settings.decay_iters(train_iters),
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def learning_rates(optimizer: MegatronOptimizer) -> dict[str, float]:
    """The rates in force: of the default groups as "lr", of others by their multiple of it."""
    rates = {}
    for group in optimizer.param_groups:
        name = "lr" if group["lr_mult"] == 1.0 else f"lr x{group['lr_mult']:g}"
        rates[name] = group["lr"]
    return rates


def _module_overrides(config: RunConfig) -> dict[ParamKey, ParamGroupOverride]:
    """Per-module peak rates.

    Each carries its ratio to --lr as ``lr_mult``. Core finds a group again after a resume by keys
    that do not include ``max_lr``: without a multiplier of its own a module would come back with
    the rate of another. The scheduler does not apply the multiplier.
    """
    settings = config.optimizer
    rates = {
        "*vision_model.*": settings.mm_vision_tower_lr,
        "*vision_projection.*": settings.mm_projector_lr,
        f"*{CROSS_IMAGE_ATTENTION}.*": settings.mm_projector_lr,
        f"*{TEMPORAL_ENCODER}.*": settings.mm_projector_lr,
    }
    overrides: dict[ParamKey, ParamGroupOverride] = {}
    for pattern, rate in rates.items():
        if rate is None or rate == settings.lr:
            continue
        # 2e-5 / 1e-4 and 2e-6 / 1e-5 differ in the last digit.
        ratio = float(f"{rate / settings.lr:.12g}")
        overrides[ParamKey(name=pattern)] = ParamGroupOverride(
            max_lr=rate, min_lr=settings.min_lr * ratio, lr_mult=ratio
        )
    return overrides
