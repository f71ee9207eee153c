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
from megatron.core.utils import get_attr_wrapped_model

from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.training.optimizer import learning_rates
from megatron_llava.training.step_times import (
    COMMUNICATION,
    COMPUTE,
    DATA,
    OPTIMIZER,
    OTHER,
    StepTimes,
)
from megatron_llava.training.update import (
    adapting_scaler,
    gradient_norm,
    gradients_are_finite,
    take_gradients,
    update,
)
from megatron_llava.training.user_loss import UserLoss

COUNTED = {"token": "supervised tokens", "sample": "samples", "microbatch-mean": "packs"}
"""What a loss is the mean of, by --loss-reduction."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, over all ranks."""

    loss: float
    """Mean loss over the global batch, as --loss-reduction weighs it."""
    loss_count: int
    """What that is the mean of: supervised tokens, samples or packs."""
    align_loss: float | None
    """Mean of --align-loss-coeff's loss, weighed alike; None where that is off."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rates: dict[str, float]
    """The rates of this step, as ``optimizer.learning_rates`` names them."""
    skipped: bool
    """The loss or the gradient is not finite, or the loss too large: weights, moments and schedule
    are as they were."""
    largest_loss: float
    """What the loss could have been at most; infinite where nothing limits it."""
    overflowed_at: float | None
    """The scale of the loss at which the gradient overflowed, where a lower one is tried next."""
    microbatches_not_finite: tuple[int, ...]
    """Of this rank those with a loss that is not finite; the last pipeline stage knows."""


@dataclass(frozen=True, kw_only=True)
class BatchesResult:
    """What the microbatches of a step gave, over all ranks where nothing else is said."""

    total: float
    """Sum of the losses."""
    align_total: float | None
    """Sum of the alignment losses, None where those are off."""
    count: int
    """What was counted, see ``reduced_loss``."""
    finite: bool
    """The losses and the gradients are."""
    microbatches_not_finite: tuple[int, ...]
    """See ``StepResult``."""


def reduced_loss(
    reduction: str,
    batch: TensorBatch,
    losses: torch.Tensor,
    weight: float = 1.0,
    user_loss: UserLoss | None = None,
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
        weight: of the loss beside others; what is reported is without it.
        user_loss: takes the place of the losses where there is a loss row.
    """
    rows, tokens = batch.loss_rows.numel(), batch.sample_loss_tokens
    if user_loss is not None and rows:
        losses = user_loss(batch, losses)
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
    report = torch.stack((total.detach().double(), counted.double()))
    return total if weight == 1.0 else total * weight, counted, report


def forward_step(
    batches: Iterator[TensorBatch],
    model: torch.nn.Module,
    *,
    reduction: str,
    weight: float,
    user_loss: UserLoss | None = None,
    times: StepTimes | None = None,
) -> tuple[torch.Tensor, Any]:
    """Run one microbatch through this pipeline stage (core's forward_step_func protocol)."""
    reduce = partial(reduced_loss, reduction, weight=weight, user_loss=user_loss)
    if times is None:
        batch = next(batches)
        return model(batch), partial(reduce, batch)
    times.mark(DATA)
    batch = next(batches)
    times.mark(COMPUTE)
    output = times.follow_backward(model(batch))
    times.mark(COMMUNICATION)
    return output, partial(reduce, batch)


def run_batches(
    wrapped: list[DistributedDataParallel],
    batches: Iterator[TensorBatch],
    num_microbatches: int,
    rows: int,
    *,
    reduction: str,
    forward_only: bool,
    weight: float = 1.0,
    user_loss: UserLoss | None = None,
    times: StepTimes | None = None,
) -> BatchesResult:
    """Run the microbatches of one global batch.

    Args:
        rows: rows of every pack of this step; pipeline stages exchange tensors of this length.
        reduction: what counts alike, see ``reduced_loss``.
        weight: of the text loss in the gradient.
        user_loss: takes the place of the text loss.
        times: told of data, compute and communication.
    """
    reports = get_forward_backward_func()(
        forward_step_func=partial(
            forward_step, reduction=reduction, weight=weight, user_loss=user_loss, times=times
        ),
        # Each virtual stage runs every microbatch, at another time.
        data_iterator=list(tee(batches, len(wrapped))) if len(wrapped) > 1 else batches,
        model=wrapped,
        num_microbatches=num_microbatches,
        seq_length=rows,
        micro_batch_size=1,
        forward_only=forward_only,
    )
    device = next(wrapped[0].parameters()).device
    last_stage = parallel_state.is_pipeline_last_stage()
    alignments = _of_parts(wrapped, "alignment")
    sums = torch.zeros(4 if alignments else 3, dtype=torch.float64, device=device)
    for alignment in alignments:
        sums[3] += alignment.take().to(device)
    if last_stage:
        sums[:2] = torch.stack(list(reports)).sum(0).to(device)
    # Every rank learns of a gradient that is not finite on any: all of them must skip the step.
    sums[2] = 0.0 if forward_only else float(not gradients_are_finite(wrapped))
    dist.all_reduce(sums)
    # Every tensor-parallel rank of the last stage counted the same microbatches.
    # Those of the first stage likewise its alignment.
    spoilt = bool(sums[2])
    sums /= parallel_state.get_tensor_model_parallel_world_size()
    total, count, _, *align_total = sums.tolist()
    not_finite: tuple[int, ...] = ()
    if last_stage and not math.isfinite(total):
        not_finite = tuple(i for i, report in enumerate(reports) if not report.isfinite().all())
    return BatchesResult(
        total=total,
        align_total=align_total[0] if align_total else None,
        count=round(count),
        finite=math.isfinite(total) and not spoilt,
        microbatches_not_finite=not_finite,
    )


def train_step(
    wrapped: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: Any,
    batches: Iterator[TensorBatch],
    num_microbatches: int,
    rows: int,
    reduction: str = "token",
    *,
    largest_loss: float = math.inf,
    text_loss_coeff: float = 1.0,
    user_loss: UserLoss | None = None,
    times: StepTimes | None = None,
) -> StepResult:
    """Forward, backward, reduce, clip, update, and advance the schedule.

    Where the loss or the gradient is not finite on any rank, the loss of all of them is more than
    ``largest_loss``, or none of their positions has a label, all ranks skip the update.
    """
    for part in wrapped:
        part.zero_grad_buffer()
    optimizer.zero_grad()
    fp8_scales = _of_parts(wrapped, "fp8_scales")
    for scales in fp8_scales:
        scales.begin_step()
    batch = run_batches(
        wrapped,
        batches,
        num_microbatches,
        rows,
        reduction=reduction,
        forward_only=False,
        weight=text_loss_coeff,
        user_loss=user_loss,
        times=times,
    )
    if times is not None:
        times.mark(OPTIMIZER)
    for scales in fp8_scales:
        scales.end_step()
    rates = learning_rates(optimizer)
    scaler = adapting_scaler(optimizer)
    scale = float(scaler.scale) if scaler is not None and scaler.scale > scaler.min_scale else None
    # A scale that adapts has to learn of every overflow.
    usable = (batch.finite or scaler is not None) and take_gradients(optimizer) and batch.finite
    grad_norm = gradient_norm(optimizer) if usable else math.nan
    # Finite gradients have an infinite norm where their squares overflow.
    count, align_total = max(batch.count, 1), batch.align_total
    loss = batch.total / count
    # Without a label the update would be of old moments and weight decay alone.
    skipped = not math.isfinite(grad_norm) or loss > largest_loss or batch.count == 0
    if not skipped:
        update(optimizer, grad_norm)
        scheduler.step(increment=1)
    if times is not None:
        times.mark(OTHER)
    return StepResult(
        loss=loss,
        align_loss=None if align_total is None else align_total / count,
        loss_count=batch.count,
        grad_norm=grad_norm,
        learning_rates=rates,
        skipped=skipped,
        largest_loss=largest_loss,
        overflowed_at=scale if not usable and math.isfinite(batch.total) else None,
        microbatches_not_finite=batch.microbatches_not_finite,
    )


def _of_parts(wrapped: list[DistributedDataParallel], name: str) -> list[Any]:
    """An attribute of the parts of this rank's model, of those that have it."""
    return [
        value
        for part in wrapped
        if (value := get_attr_wrapped_model(part, name, allow_none=True)) is not None
    ]
