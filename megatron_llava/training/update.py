"""The optimizer's step in two parts, so that a step can be given up between them.

Core's own ``step`` computes the norm of the gradient and goes on with the update whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import MegatronOptimizer


def gradients_are_finite(chunks: Iterable[DistributedDataParallel]) -> bool:
    """Whether every gradient on this rank is finite.

    The norm does not tell: of parameters that tensor-parallel ranks share it counts one copy.
    """
    buffers = [b for chunk in chunks for b in chunk.buffers + chunk.expert_parallel_buffers]
    sums = [buffer.grad_data.sum(dtype=torch.float32) for buffer in buffers]
    return not sums or bool(torch.stack(sums).isfinite().all())


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Give the reduced gradients to the optimizer; their norm, before clipping, on every rank."""
    overflow = optimizer.prepare_grads()
    assert not overflow, "an optimizer without loss scaling finds no overflow"
    return float(optimizer.get_grad_norm() or 0.0)


def update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the gradients that ``gradient_norm`` measured, and change moments and weights."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0.0:
            # The precision-aware optimizer has its gradients under another name.
            decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm, decoupled)
    updated = optimizer.step_with_ready_grads()
    assert updated, "an optimizer without loss scaling never skips a step"
