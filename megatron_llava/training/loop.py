"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_llava.config.run import RunConfig
from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.step_flops import step_flops
from megatron_llava.parallel.trained import trained
from megatron_llava.platform.profile_window import ProfileWindow
from megatron_llava.platform.stop_signal import StopSignal
from megatron_llava.training.batches import BatchSource
from megatron_llava.training.checkpointing import TrainingState
from megatron_llava.training.interval import Interval
from megatron_llava.training.reporter import Reporter
from megatron_llava.training.run_saves import RunSaves
from megatron_llava.training.skipping import SkippedSteps, TrainingDiverged, check_weights
from megatron_llava.training.spikes import SpikeGuard
from megatron_llava.training.start import how_to_go_on
from megatron_llava.training.step import StepResult, run_batches, train_step
from megatron_llava.training.step_times import StepTimes
from megatron_llava.training.taken import Taken
from megatron_llava.training.time_report import report_times
from megatron_llava.training.user_loss import UserLoss


@dataclass(kw_only=True)
class Trainer:
    """Runs steps from ``iteration`` to ``--train-iters``, evaluating, logging and saving.

    Attributes:
        models: this rank's parts of the model, as in a checkpoint.
        wrapped: the same in core's wrappers.
        make_validation: a fresh source over the held-out store, None without one.
        saves: writes the checkpoints.
        iteration: steps already done.
        skipped_steps: those of them that changed nothing.
        times: where time goes on this rank, None where nothing asks.
        profile: profiles some steps on this rank, None where none are.
        user_loss: what steps minimise in place of the cross entropy, None without --loss-function.
        spike_guard: limits the loss of a step, None without --loss-spike-factor.
        stopped: some rank received SIGTERM before the last step.
    """

    config: RunConfig
    device: torch.device
    models: list[LlavaModel]
    wrapped: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    source: BatchSource
    make_validation: Callable[[], BatchSource] | None
    reporter: Reporter
    saves: RunSaves
    skipped_steps: SkippedSteps
    user_loss: UserLoss | None = None
    spike_guard: SpikeGuard | None = None
    profile: ProfileWindow | None = None
    times: StepTimes | None = None
    iteration: int = 0
    interval: Interval = field(default_factory=Interval)
    saved_at: int | None = None
    stopped: bool = False
    _stop_signal: StopSignal = field(default_factory=StopSignal)
    _gathers_ahead: bool = field(init=False)

    def __post_init__(self) -> None:
        self._gathers_ahead = self.config.parallel.overlap_param_gather

    def run(self, stop_signal: StopSignal | None = None) -> None:
        """Train to the end, to the next multiple of ``--exit-interval``, or to a SIGTERM.

        Args:
            stop_signal: listens while the run lasts; a signal to one rank stops all of them after
                the step, with a save.

        Raises:
            TrainingDiverged: more steps were skipped than ``--max-skipped-steps``.
        """
        checkpoint = self.config.checkpoint
        self._set_training(True)
        self.interval = Interval()
        if stop_signal is not None:
            self._stop_signal = stop_signal
            stop_signal.listen()
        try:
            self._train()
        except TrainingDiverged:
            # What was saved before is good.
            self.finish_saves()
            raise
        finally:
            if self.profile is not None:
                self.profile.close()
        if checkpoint.save is not None and self.saved_at != self.iteration:
            self.save()
        self.finish_saves()
        if self.stopped:
            self.reporter.message(f"step {self.iteration}: SIGTERM; {how_to_go_on(self.config)}")
        with self.parameters_in_place():
            pass  # the last update has reached every rank when this returns

    def _train(self) -> None:
        """Steps, evaluations and saves until something ends the run."""
        training, checkpoint = self.config.training, self.config.checkpoint
        while self.iteration < training.train_iters:
            if self.profile is not None:
                self.profile.advance_to(self.iteration)
            result = self._step()
            self.reporter.advance_to(self.iteration)
            leaves = self._due(training.exit_interval)
            ends = self.stopped or leaves or self.iteration == training.train_iters
            # What is logged adds up to the run: the last interval may be a short one.
            if ends or self._due(self.config.logging.log_interval) or self.iteration == 1:
                self._report(result)
            if self.stopped:
                break
            with self.interval.paused():
                if self.make_validation is not None and self._due(training.eval_interval):
                    self.validate()
                self.saves.publish(wait=False)
                if checkpoint.save is not None and self._due(checkpoint.save_interval):
                    self.save()
            if leaves:
                self.reporter.message(f"step {self.iteration}: leaving as --exit-interval says")
                break

    def validate(self) -> float:
        """The token loss over the held-out store, up to ``--eval-iters`` global batches."""
        assert self.make_validation is not None
        started = time.perf_counter()
        source = self.make_validation()
        total, count = 0.0, 0
        self._set_training(False)
        with self.parameters_in_place(), torch.no_grad():
            steps = source.schedule.num_packs // source.packs_per_step
            for _ in range(min(steps, self.config.training.eval_iters)):
                rows = source.step_rows()
                part = run_batches(
                    self.wrapped,
                    source.step(rows),
                    source.num_microbatches,
                    rows,
                    reduction="token",
                    forward_only=True,
                )
                total, count = total + part.total, count + part.count
        self._set_training(True)
        loss = total / max(count, 1)
        self.reporter.validation(self.iteration, loss, count, time.perf_counter() - started)
        return loss

    def save(self) -> None:
        """Write a checkpoint of this step; with --async-save, start to.

        Raises:
            CheckpointError: it could not be written, or the one before could not.
            TrainingDiverged: a weight is not finite; nothing was written.
        """
        self.finish_saves()
        state = TrainingState(
            models=self.models,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            iteration=self.iteration,
            consumed_packs=self.source.consumed_packs,
            data_fingerprint=self.source.schedule.fingerprint,
            skipped_steps=self.skipped_steps.count,
            recent_losses=self.spike_guard.losses if self.spike_guard is not None else [],
        )
        with self.parameters_in_place():
            check_weights(self.wrapped, self.iteration)
            self.saves.start(state)
        self.saved_at = self.iteration

    def finish_saves(self) -> None:
        """Wait for the checkpoint that --async-save is still writing, if any, and publish it.

        All ranks together.

        Raises:
            CheckpointError: it could not be written.
        """
        self.saves.publish(wait=True)

    @contextmanager
    def parameters_in_place(self) -> Any:
        """Have every updated parameter on this rank while --overlap-param-gather delays them."""
        if not self._gathers_ahead:
            yield
            return
        for part in self.wrapped:
            part.disable_forward_pre_hook()
        try:
            yield
        finally:
            for part in self.wrapped:
                part.enable_forward_pre_hook()

    def _step(self) -> StepResult:
        rows = self.source.step_rows()
        taken = Taken()

        def counted() -> Any:
            for batch in self.source.step(rows):
                taken.add(batch)
                yield batch

        if self.times is not None:
            self.times.begin_step()
        waited, first = self.source.data_seconds, self.source.consumed_packs
        result = train_step(
            self.wrapped,
            self.optimizer,
            self.scheduler,
            counted(),
            self.source.num_microbatches,
            rows,
            self.config.training.loss_reduction,
            times=self.times,
            largest_loss=self.spike_guard.limit if self.spike_guard is not None else math.inf,
            text_loss_coeff=self.config.training.text_loss_coeff,
            user_loss=self.user_loss,
        )
        self._count(taken, self.source.data_seconds - waited)
        if self.times is not None:
            self.times.end_step()
        self.iteration += 1
        if result.overflowed_at is not None:
            self.reporter.message(
                f"step {self.iteration}: the gradient overflows at a loss scale of "
                f"{result.overflowed_at:g}; skipped, the scale is now {self._loss_scale():g}"
            )
        elif result.skipped:
            reduction = self.config.training.loss_reduction
            self.reporter.message(
                self.skipped_steps.add(self.iteration, result, reduction, self.source, first)
            )
        elif self.spike_guard is not None and result.loss_count:
            self.spike_guard.add(result.loss)
        return result

    def _count(self, taken: Taken, data_seconds: float) -> None:
        """Add a step to the interval, over the data-parallel ranks, and heed a signal to any."""
        group = parallel_state.get_data_parallel_group()
        totals = taken.counts().to(self.device)
        largest = torch.tensor((data_seconds, self._stop_signal.received)).to(self.device)
        dist.all_reduce(totals, group=group)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        slowest, signalled = largest.tolist()
        self.stopped = bool(signalled) and self.iteration + 1 < self.config.training.train_iters
        of_all = Taken.of(totals)
        self.interval.add_step(
            of_all,
            padded_tokens=self.source.packs_per_step * self.config.data.seq_length,
            data_seconds=slowest,
            flops=step_flops(self.config, of_all.sizes, trained(self.config)),
        )

    def _report(self, result: StepResult) -> None:
        name = "lm loss" if self.user_loss is None else "user loss"
        values = {} if self.config.training.text_loss_coeff == 0 else {name: result.loss}
        if result.align_loss is not None:
            values["align loss"] = result.align_loss
        values |= {
            **result.learning_rates,
            "grad norm": result.grad_norm,
            "skipped steps": self.skipped_steps.count,
        }
        lines = []
        if self.times is not None:
            lines = report_times(self.times, self.config.logging, self.interval, self.device)
        if self.config.precision.fp16:
            values["loss scale"] = self._loss_scale()
        self.reporter.training(self.iteration, values, self.interval, self.device)
        for line in lines:
            self.reporter.message(line)
        self.interval = Interval()

    def _loss_scale(self) -> float:
        return float(self.optimizer.get_loss_scale())

    def _set_training(self, training: bool) -> None:
        for part in self.wrapped:
            part.train(training)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.iteration % every == 0
