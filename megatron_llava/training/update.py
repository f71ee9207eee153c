"""The optimizer's step in two parts, so that a step can be given up between them.

Core's own ``step`` computes the norm of the gradient and goes on with the update whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.grad_scaler import DynamicGradScaler
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_llava.training.optimizer_state import optimizer_parts


def gradients_are_finite(chunks: Iterable[DistributedDataParallel]) -> bool:
    """Whether every gradient on this rank is finite.

    The norm does not tell: of parameters that tensor-parallel ranks share it counts one copy.
    """
    buffers = [b for chunk in chunks for b in chunk.buffers + chunk.expert_parallel_buffers]
    sums = [buffer.grad_data.sum(dtype=torch.float32) for buffer in buffers]
    return not sums or bool(torch.stack(sums).isfinite().all())


def adapting_scaler(optimizer: MegatronOptimizer) -> DynamicGradScaler | None:
    """Core's scale of the loss where it adapts (--fp16 without --loss-scale).

    Each optimizer of a chain has one, and all see the same overflows.
    """
    scalers = [getattr(part, "grad_scaler", None) for part in optimizer_parts(optimizer)]
    return next((one for one in scalers if isinstance(one, DynamicGradScaler)), None)


def take_gradients(optimizer: MegatronOptimizer) -> bool:
    """Give the reduced gradients to the optimizer, on all ranks together.

    Returns:
        Whether they are fit to be used. With --fp16 they are divided by the scale of the loss,
        which follows them: it falls where one is not finite.
    """
    return not optimizer.prepare_grads()


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """The norm, before clipping, of the gradients that were taken, on every rank."""
    return float(optimizer.get_grad_norm() or 0.0)


def update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the gradients that ``gradient_norm`` measured, and change moments and weights."""
    for part in optimizer_parts(optimizer):
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0.0:
            # The precision-aware optimizer has its gradients under another name.
            decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm, decoupled)
    updated = optimizer.step_with_ready_grads()
    assert updated, "core skips a step only where it takes the gradients"
