"""The state of a training run, saved so that a resumed run continues bit by bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.agreement import one_line
from megatron_llava.parallel.checkpoint_directory import (
    CheckpointError,
    Iteration,
    find_checkpoint,
    iteration_directory,
)
from megatron_llava.parallel.checkpoint_files import check_checkpoint
from megatron_llava.parallel.checkpoint_io import PendingSave, load_sharded, start_save
from megatron_llava.training.bucket_padding import without_core_warning
from megatron_llava.training.checkpoint_layout import (
    check_optimizer,
    described,
    layout,
    optimizer_kind,
)
from megatron_llava.training.held_weights import EXTRA_STATE, base_weights, held_weights, put
from megatron_llava.training.optimizer_state import (
    allocate_adam_state,
    load_optimizer,
    optimizer_metadata,
    saved_optimizer,
)


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a checkpoint holds."""

    models: list[LlavaModel]
    """This rank's parts of the model: one, or as many as it has virtual stages."""
    optimizer: MegatronOptimizer | None
    scheduler: OptimizerParamScheduler | None
    iteration: int
    consumed_packs: int
    data_fingerprint: str
    """Identifies the store, the packing and the seed that ``consumed_packs`` counts in."""
    skipped_steps: int
    """Steps of the run that changed nothing because a number was none or too large."""
    recent_losses: list[float] = field(default_factory=list)
    """What ``SpikeGuard`` remembers; nothing where there is none."""


def save_training_state(
    root: str,
    state: TrainingState,
    *,
    with_optimizer: bool,
    fully_reshardable: bool,
    checkpoint_format: str,
    fully_parallel: bool = True,
    write_beside: Callable[[], None] | None = None,
) -> PendingSave:
    """Start to write ``iter_<iteration>`` under ``root`` on all ranks together.

    Training may go on when this returns; the checkpoint is there when the returned save has been
    finished.

    Raises:
        CheckpointError: it could not be started; the checkpoints before it stay in force.
    """
    models = held_weights(state.models)
    content: dict[str, Any] = {
        **models,
        "rng_state": _sharded_rng_state(),
        "rng_of_each_rank": True,
        "iteration": state.iteration,
        "consumed_packs": state.consumed_packs,
        "data_fingerprint": state.data_fingerprint,
        "skipped_steps": state.skipped_steps,
        "layout": layout(state.models),
        "has_optimizer": with_optimizer,
        "optimizer_kind": optimizer_kind(state.optimizer, state.models),
    }
    if state.recent_losses:
        content["recent_losses"] = state.recent_losses
    if with_optimizer:
        assert state.optimizer is not None and state.scheduler is not None
        allocate_adam_state(state.optimizer, state.iteration)
        sharding = "fully_reshardable" if fully_reshardable else "dp_reshardable"
        content["optimizer_sharding"] = sharding
        content["optimizer"] = saved_optimizer(state.optimizer, models, sharding)
        content["opt_param_scheduler"] = state.scheduler.state_dict()
    return start_save(
        root,
        state.iteration,
        content,
        checkpoint_format=checkpoint_format,
        fully_parallel=fully_parallel,
        write_beside=write_beside,
    )


def load_weights(
    root: str,
    iteration: Iteration,
    models: list[LlavaModel],
    *,
    fully_parallel: bool = False,
    may_lack: Sequence[str] = (),
    of_adapters: bool = False,
) -> list[str]:
    """Load only the weights of a checkpoint, at any layout.

    Args:
        may_lack: parameters that keep their values where the checkpoint has none.
        of_adapters: of a run with adapters, which holds no frozen weights; else of a whole model.

    Returns:
        Those of ``may_lack`` that kept their values.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    directory = _find_whole(root, iteration)
    wanted = held_weights(models) if of_adapters else base_weights(models)
    # Transformer Engine's own state (FP8 histories) starts fresh where a checkpoint has none.
    for name, part in wanted.items():
        wanted[name] = {k: v for k, v in part.items() if not k.endswith(EXTRA_STATE)}
    fresh = _without_values(directory, wanted, may_lack)
    for part in wanted.values():
        for name in fresh:
            part.pop(name, None)
    asked = {name: set(part) for name, part in wanted.items()}
    loaded = load_sharded(root, iteration, wanted, strict=False, fully_parallel=fully_parallel)
    put(root, models, asked, loaded)
    return fresh


def _find_whole(root: str, iteration: Iteration) -> Path:
    """The folder of a checkpoint of which no file is missing."""
    directory = find_checkpoint(root, iteration)
    if directory is None:
        raise CheckpointError(f"{iteration_directory(root, iteration)}: no such checkpoint")
    check_checkpoint(directory)
    return directory


def _without_values(directory: Path, wanted: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Which of the names the models have and the checkpoint does not."""
    present = [name for name in names if any(name in part for part in wanted.values())]
    if not present:
        return []
    stored = dist_checkpointing.load_tensors_metadata(str(directory))
    return [name for name in present if name not in stored]


def _stored_of(models: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The entries of models without those of Transformer Engine's own state that a checkpoint has
    not: which module has any depends on --transformer-impl and --attention-backend."""
    stored = dist_checkpointing.serialization.load_sharded_metadata(str(directory))
    return {
        model: {
            name: entry
            for name, entry in part.items()
            if not name.endswith(EXTRA_STATE) or entry.unique_key in stored
        }
        for model, part in models.items()
    }


def _common_state(directory: Path) -> dict[str, Any]:
    """What all ranks share of a checkpoint."""
    if not (directory / "common.pt").is_file():
        raise CheckpointError(f"{directory}: common.pt is missing; name another step or --load")
    try:
        return dict(dist_checkpointing.load_common_state_dict(str(directory)))
    # Core and torch raise half a dozen kinds for a file that is damaged.
    except Exception as caught:
        raise CheckpointError(f"{directory}: common.pt: {one_line(caught)}") from caught


def load_training_state(
    root: str,
    iteration: int,
    state: TrainingState,
    *,
    with_optimizer: bool,
    with_rng: bool,
    fully_parallel: bool = False,
) -> list[str]:
    """Load a checkpoint into ``state`` and set the random generators.

    Returns:
        Remarks for the user about what was not restored.

    Raises:
        CheckpointError: the checkpoint does not fit the model, the data or the layout.
    """
    directory = _find_whole(root, iteration)
    common = _common_state(directory)
    if common["data_fingerprint"] != state.data_fingerprint:
        raise CheckpointError(
            f"{root}: the run at step {iteration} read other data or packed it otherwise (data, "
            "--seq-length, image settings, --packing-window, --seed or --drop-last with its "
            "--global-batch-size changed); restore them, or start over from its weights with "
            "--finetune"
        )
    before, now = common["layout"], layout(state.models)
    remarks = []
    if with_optimizer and state.optimizer is not None:
        check_optimizer(f"{root}: step {iteration}", common, state.optimizer, state.models)
    models = _stored_of(held_weights(state.models), directory)
    asked = {name: set(part) for name, part in models.items()}
    content: dict[str, Any] = dict(models)
    if with_optimizer and state.optimizer is not None:
        allocate_adam_state(state.optimizer)
        with torch.no_grad(), without_core_warning():
            content["optimizer"] = state.optimizer.sharded_state_dict(
                models,
                is_loading=True,
                metadata=optimizer_metadata(common["optimizer_sharding"]),
            )
    if with_rng and before != now:
        remarks.append(
            f"random states are not restored: saved at {described(before)}; now {described(now)}"
        )
    elif with_rng and "rng_of_each_rank" not in common:
        remarks.append("random states are not restored: an older version saved those of some ranks")
    elif with_rng:
        content["rng_state"] = _sharded_rng_state()
    loaded = load_sharded(root, iteration, content, strict=False, fully_parallel=fully_parallel)
    put(root, state.models, asked, loaded)
    if "optimizer" in content and state.optimizer is not None and state.scheduler is not None:
        load_optimizer(state.optimizer, loaded["optimizer"])
        state.scheduler.load_state_dict(common["opt_param_scheduler"])
    elif state.optimizer is not None and state.scheduler is not None:
        # The optimizer keeps float32 copies from before the load; the schedule goes on.
        state.optimizer.reload_model_params()
        state.scheduler.step(increment=common["iteration"])
    if "rng_state" in content:
        _restore_rng_state(loaded["rng_state"])
    state.iteration = common["iteration"]
    state.consumed_packs = common["consumed_packs"]
    # Checkpoints of older versions do not have it: a step that could not be used ended the run.
    state.skipped_steps = common.get("skipped_steps", 0)
    state.recent_losses = common.get("recent_losses", [])
    return remarks


def _sharded_rng_state() -> ShardedObject:
    """The random states of this rank.

    Those of replicas differ too: their packs have other lengths, and dropout draws as many numbers.
    """
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    return ShardedObject(
        "rng_state",
        [state],
        (stages, ranks, replicas),
        (
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_data_parallel_rank(with_context_parallel=True),
        ),
    )


def _restore_rng_state(states: list[dict[str, Any]]) -> None:
    state = states[0]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
