"""Rules of ``validate`` about where optimizer state is kept, and in which types."""

from __future__ import annotations

from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.training import OptimizationConfig

_TYPES = ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
_OFFLOAD = ("optimizer_offload_fraction", "overlap_cpu_optimizer_d2h_h2d")


def check_optimizer(config: RunConfig) -> None:
    """The state has a device, an optimizer that keeps it so, and no flag is without effect."""
    optimizer = config.optimizer
    _check_unused(config)
    if optimizer.use_precision_aware_optimizer:
        _check_precision_aware(config)
    if optimizer.optimizer_cpu_offload:
        _check_offload(config)


def _check_unused(config: RunConfig) -> None:
    optimizer = config.optimizer
    for names, needed in (
        (_TYPES, "use_precision_aware_optimizer"),
        (_OFFLOAD, "optimizer_cpu_offload"),
    ):
        for name in names:
            if _changed(optimizer, name) and not getattr(optimizer, needed):
                raise ValueError(
                    f"{_option(name)} {getattr(optimizer, name)} needs {_option(needed)}: add it, "
                    "or drop the flag"
                )


def _check_precision_aware(config: RunConfig) -> None:
    flag = "--use-precision-aware-optimizer"
    if not config.parallel.use_distributed_optimizer:
        raise ValueError(f"{flag} needs --use-distributed-optimizer: add it")
    if config.parallel.device == "cpu":
        raise ValueError(
            f"{flag} needs a GPU, and --device is cpu: drop it, or run on --device cuda"
        )
    if config.precision.fp16 and not config.precision.reduce_grads_in_fp32:
        raise ValueError(
            f"{flag} with --fp16 takes no gradients in float16: add "
            "--accumulate-allreduce-grads-in-fp32"
        )


def _check_offload(config: RunConfig) -> None:
    flag, optimizer = "--optimizer-cpu-offload", config.optimizer
    # The hybrid optimizer of core takes its gradients as the precision-aware one does.
    if not optimizer.use_precision_aware_optimizer:
        raise ValueError(f"{flag} needs --use-precision-aware-optimizer: add it")
    # It resumes from its float32 copies, which it has of parameters in bfloat16 alone.
    if not config.precision.bf16:
        raise ValueError(f"{flag} needs --bf16: add it")
    for name in _TYPES:
        if _changed(optimizer, name):
            raise ValueError(
                f"{_option(name)} {getattr(optimizer, name)} with {flag}: what is updated on the "
                "host is float32; drop one"
            )
    fraction = optimizer.optimizer_offload_fraction
    if optimizer.overlap_cpu_optimizer_d2h_h2d and config.precision.grad_reduce_in_bf16:
        raise ValueError(
            "--overlap-cpu-optimizer-d2h-h2d with --grad-reduce-in-bf16: core updates what is on "
            "the GPU before the copies of its gradients are made; drop one"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"--optimizer-offload-fraction {fraction}: give more than 0, at most 1")


def _changed(optimizer: OptimizationConfig, name: str) -> bool:
    return bool(getattr(optimizer, name) != all_fields()[name].default)


def _option(name: str) -> str:
    return all_fields()[name].option
