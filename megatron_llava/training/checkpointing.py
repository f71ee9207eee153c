"""The state of a training run, saved so that a resumed run continues bit by bit."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.checkpoint_directory import (
    MODEL_YAML,
    SIDE_FILES,
    CheckpointError,
    Iteration,
    iteration_directory,
)
from megatron_llava.parallel.checkpoint_io import load_sharded, save_sharded


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a checkpoint holds."""

    model: LlavaModel
    optimizer: MegatronOptimizer | None
    scheduler: OptimizerParamScheduler | None
    distributed_optimizer: bool
    iteration: int
    consumed_packs: int
    data_fingerprint: str
    """Identifies the store, the packing and the seed that ``consumed_packs`` counts in."""


def layout() -> dict[str, int]:
    """The parallel layout of the running world."""
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(),
    }


def save_training_state(
    root: str,
    state: TrainingState,
    *,
    with_optimizer: bool,
    fully_reshardable: bool,
    checkpoint_format: str,
) -> None:
    """Write ``iter_<iteration>`` under ``root`` on all ranks together.

    Raises:
        CheckpointError: it could not be written; the checkpoints before it stay in force.
    """
    content: dict[str, Any] = {
        "model": state.model.sharded_state_dict(),
        "rng_state": _sharded_rng_state(),
        "iteration": state.iteration,
        "consumed_packs": state.consumed_packs,
        "data_fingerprint": state.data_fingerprint,
        "layout": layout(),
        "has_optimizer": with_optimizer,
    }
    if with_optimizer:
        assert state.optimizer is not None and state.scheduler is not None
        sharding = "fully_reshardable" if fully_reshardable else "dp_reshardable"
        content["optimizer_sharding"] = sharding
        content["optimizer"] = state.optimizer.sharded_state_dict(
            content["model"], is_loading=False, metadata=_optimizer_metadata(sharding)
        )
        content["opt_param_scheduler"] = state.scheduler.state_dict()
    save_sharded(root, state.iteration, content, checkpoint_format)


def load_weights(root: str, iteration: Iteration, model: LlavaModel) -> None:
    """Load only the weights of a checkpoint, at any layout.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    loaded = load_sharded(root, iteration, {"model": model.sharded_state_dict()}, strict=False)
    model.load_state_dict(loaded["model"], strict=True)


def load_training_state(
    root: str, iteration: int, state: TrainingState, *, with_optimizer: bool, with_rng: bool
) -> list[str]:
    """Load a checkpoint into ``state`` and set the random generators.

    Returns:
        Remarks for the user about what was not restored.

    Raises:
        CheckpointError: the checkpoint does not fit the model, the data or the layout.
    """
    common = dist_checkpointing.load_common_state_dict(str(iteration_directory(root, iteration)))
    if common["data_fingerprint"] != state.data_fingerprint:
        raise CheckpointError(
            f"{root}: the run at step {iteration} read other data or packed it otherwise (data, "
            "--seq-length, image settings, --packing-window or --seed changed); restore them, or "
            "start over from its weights with --finetune"
        )
    same_layout = common["layout"] == layout()
    remarks = []
    if with_optimizer:
        _check_optimizer(root, iteration, common, state.distributed_optimizer)
    content: dict[str, Any] = {"model": state.model.sharded_state_dict()}
    if with_optimizer and state.optimizer is not None:
        _allocate_adam_state(state.optimizer)
        with torch.no_grad():
            content["optimizer"] = state.optimizer.sharded_state_dict(
                content["model"],
                is_loading=True,
                metadata=_optimizer_metadata(common["optimizer_sharding"]),
            )
    if with_rng and same_layout:
        content["rng_state"] = _sharded_rng_state()
    elif with_rng:
        remarks.append(
            f"random states are not restored: saved at {common['layout']}, now {layout()}"
        )
    loaded = load_sharded(root, iteration, content, strict=False)
    state.model.load_state_dict(loaded["model"], strict=True)
    if "optimizer" in content and state.optimizer is not None and state.scheduler is not None:
        _load_optimizer(state.optimizer, loaded["optimizer"])
        state.scheduler.load_state_dict(common["opt_param_scheduler"])
    elif state.optimizer is not None and state.scheduler is not None:
        # The optimizer keeps float32 copies from before the load; the schedule goes on.
        state.optimizer.reload_model_params()
        state.scheduler.step(increment=common["iteration"])
    if "rng_state" in content:
        _restore_rng_state(loaded["rng_state"])
    state.iteration = common["iteration"]
    state.consumed_packs = common["consumed_packs"]
    return remarks


def write_side_files(source: str | None, root: str, model_yaml: str) -> None:
    """Put beside a run's checkpoints what conversion and evaluation need to understand them.

    Args:
        source: root of the checkpoint that the run started from, whose Hugging Face files and
            untrained tensors travel along; None for a run from random weights.
        root: what --save names.
        model_yaml: the architecture and the image settings that the run trains with.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    (Path(root) / MODEL_YAML).write_text(model_yaml, encoding="utf-8")
    if source is None or Path(source).resolve() == Path(root).resolve():
        return
    for name in (name for name in SIDE_FILES if name != MODEL_YAML):
        origin, target = Path(source) / name, Path(root) / name
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True)
        elif origin.is_file():
            shutil.copy2(origin, target)


def _check_optimizer(root: str, iteration: int, common: dict[str, Any], distributed: bool) -> None:
    if not common["has_optimizer"]:
        raise CheckpointError(
            f"{root}: step {iteration} was saved without optimizer state; use --no-load-optim"
        )
    saved, now = common["layout"], layout()
    same = all(saved[key] == now[key] for key in ("tensor", "pipeline"))
    if not same and distributed and common["optimizer_sharding"] == "dp_reshardable":
        raise CheckpointError(
            f"{root}: the distributed optimizer was saved at tensor x pipeline {saved['tensor']} "
            f"x {saved['pipeline']} and cannot be read at {now['tensor']} x {now['pipeline']}; "
            "resume at that layout, save with --dist-ckpt-optim-fully-reshardable, or use "
            "--no-load-optim"
        )


def _adams(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    """The torch optimizers inside core's; none where everything on this rank is frozen."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if part.optimizer is not None]


def _allocate_adam_state(optimizer: MegatronOptimizer) -> None:
    """Give Adam the state of step 0: core's distributed optimizer reads the count there."""
    for adam in _adams(optimizer):
        for parameter in (p for group in adam.param_groups for p in group["params"]):
            if not adam.state[parameter]:
                adam.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


@torch.no_grad()
def _load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load core's optimizer with torch's Adam inside, whose step count core does not handle."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    contents = [loaded] if len(parts) == 1 else [loaded[i] for i in range(len(parts))]
    moments = []
    for content in contents:
        reshardable = content.get("param_state_sharding_type") == "fully_reshardable"
        moments.append(content.pop("param_state") if reshardable else None)
    optimizer.load_state_dict(loaded)
    for part, moment in zip(parts, moments, strict=True):
        if moment is not None:
            for adam_state in part.optimizer.state.values():
                adam_state.pop("step", None)
            part.load_parameter_state_from_fully_reshardable(moment)
    _restore_step_counts(optimizer)


def _restore_step_counts(optimizer: MegatronOptimizer) -> None:
    """Give every state its own tensor with the saved count.

    Core's distributed optimizer puts the count into the parameter groups, one shared tensor into
    the states, and then copies the count from before the load over it.
    """
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            for state in (adam.state[parameter] for parameter in group["params"]):
                count = group["step"] if "step" in group else state["step"]
                state["step"] = torch.tensor(float(count))


def _optimizer_metadata(sharding: str) -> dict[str, Any]:
    """How core lays out the optimizer state; its own default refuses the distributed optimizer."""
    return {
        "distrib_optim_sharding_type": sharding,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _sharded_rng_state() -> ShardedObject:
    """The random states of this rank; data-parallel ranks of one model part share them."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    return ShardedObject(
        "rng_state",
        [state],
        (stages, ranks),
        (
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_rank(),
        ),
        replica_id=parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )


def _restore_rng_state(states: list[dict[str, Any]]) -> None:
    state = states[0]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
