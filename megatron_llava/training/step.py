"""One optimizer step over core's pipeline schedules, and the statistics of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.training.optimizer import learning_rates

_REMEDY = "lower --lr, lengthen the warmup, or look at the last batches with tools/inspect_data.py"


COUNTED = {"token": "supervised tokens", "sample": "samples", "microbatch-mean": "packs"}
"""What a loss is the mean of, by --loss-reduction."""


class TrainingDiverged(ValueError):
    """The loss or the gradient norm is not a number; the message is one line for the user."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, over all ranks."""

    loss: float
    """Mean loss over the global batch, as --loss-reduction weighs it."""
    loss_count: int
    """What that is the mean of: supervised tokens, samples or packs."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rates: dict[str, float]
    """The rates of this step, as ``optimizer.learning_rates`` names them."""


def reduced_loss(
    reduction: str, batch: TensorBatch, losses: torch.Tensor
) -> tuple[torch.Tensor, Any, Any]:
    """The loss of one microbatch as core wants it: sum, count, and what to report.

    Core adds up sums and counts over all microbatches, data- and context-parallel ranks and divides
    the gradient by the total count once, so that the things counted weigh the same wherever they
    were packed.

    Args:
        reduction: "token" counts supervised tokens; "sample" counts samples that have any, each
            with the mean of its tokens; "microbatch-mean" counts packs that have any, likewise.
        batch: the pack, or this rank's share of it.
        losses: float32, the loss of each loss row here.
    """
    rows, tokens = batch.loss_rows.numel(), batch.sample_loss_tokens
    if reduction == "token":
        total, count = losses.sum(), rows
    elif reduction == "microbatch-mean":
        total, count = losses.sum() / tokens.sum().clamp(min=1), tokens.any()
    else:
        # A rank without loss rows has one loss, which is zero.
        parts = losses / tokens[batch.loss_samples] if rows else losses
        total, count = parts.sum(), torch.count_nonzero(tokens)
    if reduction != "token" and not batch.counts_samples:
        count = 0
    counted = torch.as_tensor(count, dtype=torch.int, device=losses.device)
    return total, counted, torch.stack((total.detach().double(), counted.double()))


def forward_step(
    batches: Iterator[TensorBatch], model: torch.nn.Module, *, reduction: str
) -> tuple[torch.Tensor, Any]:
    """Run one microbatch through this pipeline stage (core's forward_step_func protocol)."""
    batch = next(batches)
    return model(batch), partial(reduced_loss, reduction, batch)


def run_batches(
    wrapped: list[DistributedDataParallel],
    batches: Iterator[TensorBatch],
    num_microbatches: int,
    rows: int,
    *,
    reduction: str,
    forward_only: bool,
) -> tuple[float, int]:
    """Run the microbatches of one global batch.

    Args:
        rows: rows of every pack of this step; pipeline stages exchange tensors of this length.
        reduction: what counts alike, see ``reduced_loss``.

    Returns:
        The summed loss and the number of things counted, over all ranks.
    """
    reports = get_forward_backward_func()(
        forward_step_func=partial(forward_step, reduction=reduction),
        # Each virtual stage runs every microbatch, at another time.
        data_iterator=list(tee(batches, len(wrapped))) if len(wrapped) > 1 else batches,
        model=wrapped,
        num_microbatches=num_microbatches,
        seq_length=rows,
        micro_batch_size=1,
        forward_only=forward_only,
    )
    device = next(wrapped[0].parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        total += torch.stack(list(reports)).sum(0).to(device)
    dist.all_reduce(total)
    # Every tensor-parallel rank of the last stage counted the same microbatches.
    total /= parallel_state.get_tensor_model_parallel_world_size()
    return float(total[0]), round(float(total[1]))


def train_step(
    wrapped: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: Any,
    batches: Iterator[TensorBatch],
    num_microbatches: int,
    rows: int,
    reduction: str = "token",
) -> StepResult:
    """Forward, backward, reduce, clip, update, and advance the schedule.

    Raises:
        TrainingDiverged: the loss is not finite, and no weight was changed; or the gradient norm is
            not, and the weights are spoilt: they must not be saved.
    """
    for part in wrapped:
        part.zero_grad_buffer()
    optimizer.zero_grad()
    total, count = run_batches(
        wrapped, batches, num_microbatches, rows, reduction=reduction, forward_only=False
    )
    loss = total / max(count, 1)
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the loss is {loss} over {count} {COUNTED[reduction]}; {_REMEDY}")
    rates = learning_rates(optimizer)
    # Core computes the norm inside its step only, the same on every rank.
    updated, norm, _ = optimizer.step()
    assert updated, "an optimizer without loss scaling never skips a step"
    grad_norm = float(norm or 0.0)
    if not math.isfinite(grad_norm):
        raise TrainingDiverged(f"the gradient norm is {grad_norm} at a loss of {loss}; {_REMEDY}")
    scheduler.step(increment=1)
    return StepResult(loss=loss, loss_count=count, grad_norm=grad_norm, learning_rates=rates)
