"""Steps that are given up because a number is none or too large: named, counted and limited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_llava.training.batches import BatchSource
from megatron_llava.training.step import COUNTED, StepResult

_REMEDY = "lower --lr, lengthen the warmup, or look at these samples with tools/inspect_data.py"


class TrainingDiverged(ValueError):
    """Too many steps were given up, or weights are no numbers; one line for the user."""


@dataclass(kw_only=True)
class SkippedSteps:
    """The steps of a run that were given up.

    Attributes:
        limit: ``--max-skipped-steps``.
        count: of the whole run, also before a resume.
    """

    limit: int
    count: int = 0

    def add(
        self, iteration: int, result: StepResult, reduction: str, source: BatchSource, first: int
    ) -> str:
        """Count a skipped step. All ranks call this together.

        Args:
            iteration: the step.
            reduction: what its loss is the mean of.
            first: its first pack in the schedule of ``source``.

        Returns:
            What happened and which samples the step or the microbatches at fault held.

        Raises:
            TrainingDiverged: more steps were skipped than may be.
        """
        self.count += 1
        packs = _packs_at_fault(result, source, first)
        samples = f"the step held {source.samples_of(packs)}"
        if not math.isfinite(result.loss):
            reason = f"the loss is {result.loss} over {result.loss_count} {COUNTED[reduction]}"
            samples = f"not finite on {source.samples_of(packs)}"
        elif result.loss > result.largest_loss:
            reason = (
                f"the loss {result.loss:.6g} is more than the {result.largest_loss:.6g} that "
                "--loss-spike-factor allows after the last steps"
            )
        elif result.loss_count == 0:
            reason = "no position of it has a label"
        else:
            reason = f"the gradient is not finite at a loss of {result.loss:.6g}"
        told = f"step {iteration}: {reason}; {samples}"
        if self.count > self.limit:
            raise TrainingDiverged(
                f"{told}; {self.count} skipped steps are more than --max-skipped-steps "
                f"{self.limit}: {_REMEDY}"
            )
        return f"{told}; skipped, {self.count} of --max-skipped-steps {self.limit}"


def check_weights(parts: Sequence[torch.nn.Module], iteration: int) -> None:
    """Refuse to save what cannot be trained on. All ranks call this together.

    Raises:
        TrainingDiverged: a parameter of some rank is not finite.
    """
    weights = [parameter.detach() for part in parts for parameter in part.parameters()]
    finite = torch.stack([weight.sum(dtype=torch.float32).isfinite() for weight in weights])
    count = torch.count_nonzero(~finite)
    dist.all_reduce(count)
    if int(count):
        raise TrainingDiverged(
            f"step {iteration}: some weights are not finite: nothing was saved, the "
            "checkpoints before this step are untouched; lower --lr or lengthen the warmup"
        )


def _packs_at_fault(result: StepResult, source: BatchSource, first: int) -> list[int]:
    """Packs whose loss is not finite, on whichever rank; where all are finite, all of the step."""
    at_fault = torch.zeros(source.packs_per_step, dtype=torch.int64, device=source.device)
    for microbatch in result.microbatches_not_finite:
        at_fault[microbatch * source.size + source.rank] = 1
    dist.all_reduce(at_fault, op=dist.ReduceOp.MAX)
    if not at_fault.any():
        at_fault.fill_(1)
    return [first + int(pack) for pack in at_fault.nonzero()]
