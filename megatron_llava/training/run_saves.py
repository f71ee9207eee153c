"""The checkpoints that a run writes: started, published, and the oldest removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_llava.config.cli import config_to_yaml
from megatron_llava.config.model_yaml import model_to_yaml
from megatron_llava.config.run import RunConfig
from megatron_llava.parallel.adapter_record import AdapterRecord
from megatron_llava.parallel.agreement import is_first_rank
from megatron_llava.parallel.checkpoint_directory import (
    ADAPTER_JSON,
    MODEL_YAML,
    RUN_YAML,
    CheckpointError,
    Iteration,
    remove_oldest,
)
from megatron_llava.parallel.checkpoint_io import PendingSave
from megatron_llava.training.checkpointing import TrainingState, save_training_state
from megatron_llava.training.optimizer_state import check_shares_can_be_saved
from megatron_llava.training.side_files import write_side_files


@dataclass(kw_only=True)
class RunSaves:
    """Writes to ``--save``; all ranks call its methods together.

    Attributes:
        message: what the first rank says goes here.
        side_files: what the run started from, whose architecture and Hugging Face files go along
            with a save.
        adapter_record: what is written beside checkpoints that hold adapters, None for others.
        started_from: the checkpoint in --save that the run started from, which --save-total-limit
            spares; None where it started elsewhere.
    """

    config: RunConfig
    message: Callable[[str], None]
    side_files: tuple[str, Iteration] | None
    adapter_record: AdapterRecord | None
    started_from: Iteration | None
    _pending: PendingSave | None = field(init=False, default=None)
    _started: float = field(init=False, default=0.0)

    def start(self, state: TrainingState) -> None:
        """Write a checkpoint; with --async-save, start to.

        The one before must have been published.

        Raises:
            CheckpointError: it could not be written.
        """
        assert self._pending is None
        checkpoint, self._started = self.config.checkpoint, time.perf_counter()
        root = checkpoint.save
        self._pending = save_training_state(
            root,
            state,
            with_optimizer=not checkpoint.no_save_optim,
            fully_reshardable=checkpoint.dist_ckpt_optim_fully_reshardable,
            checkpoint_format=checkpoint.ckpt_format,
            fully_parallel=not checkpoint.no_ckpt_fully_parallel_save,
            write_beside=lambda: write_side_files(self.side_files, root, self._side_texts()),
        )
        if checkpoint.async_save:
            seconds = time.perf_counter() - self._started
            self.message(f"step {state.iteration}: saving to {root} ({seconds:.1f} s here)")
        else:
            self.publish(wait=True)

    def _side_texts(self) -> dict[str, str]:
        """Files beside the checkpoints: the model, all settings of the run, and its adapters."""
        texts = {MODEL_YAML: model_to_yaml(self.config), RUN_YAML: config_to_yaml(self.config)}
        if self.adapter_record is not None:
            texts[ADAPTER_JSON] = self.adapter_record.text()
        return texts

    def publish(self, *, wait: bool) -> None:
        """Give the checkpoint that was started its name, if there is one and it is written.

        Args:
            wait: until it is.

        Raises:
            CheckpointError: it could not be written.
        """
        pending = self._pending
        if pending is None:
            return
        try:
            if not pending.finish(wait=wait):
                return
        except CheckpointError:
            self._pending = None
            raise
        self._pending = None
        seconds = time.perf_counter() - self._started
        checkpoint = self.config.checkpoint
        self.message(f"step {pending.iteration}: saved to {checkpoint.save} in {seconds:.1f} s")
        keep = checkpoint.save_total_limit
        if keep is not None and is_first_rank():
            removed = remove_oldest(
                checkpoint.save,
                int(pending.iteration),
                keep,
                self.started_from,
                retain_every=checkpoint.save_retain_interval,
            )
            if removed:
                self.message(f"removed {', '.join(removed)}, as --save-total-limit {keep} says")


def check_state_can_be_saved(config: RunConfig, optimizer: MegatronOptimizer) -> None:
    """Raise ValueError on every rank where --save would fail after the first steps."""
    checkpoint = config.checkpoint
    as_they_are = not (checkpoint.no_save_optim or checkpoint.dist_ckpt_optim_fully_reshardable)
    if checkpoint.save and as_they_are and config.parallel.use_distributed_optimizer:
        check_shares_can_be_saved(optimizer)
