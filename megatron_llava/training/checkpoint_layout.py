"""What of a run's layout a checkpoint records, and what of it a resume must keep."""

from __future__ import annotations

import hashlib
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_llava.config.training import part_of
from megatron_llava.models.llava import LlavaModel
from megatron_llava.parallel.checkpoint_directory import CheckpointError
from megatron_llava.training.optimizer_state import (
    check_shares_can_be_saved,
    lr_multiples,
    optimizer_parts,
)

_SAME_WEIGHTS = ("tensor", "pipeline", "virtual", "layers")
"""The entries of a layout that decide which weights a rank holds."""


def layout(models: list[LlavaModel]) -> dict[str, Any]:
    """The parallel layout of the running world, the same on every rank.

    Returns:
        Sizes by the name of the axis, and under "layers" the decoder layers of each pipeline rank:
        of each of its virtual stages.
    """
    layers = _of_stages([len(model.language_model.decoder.layers) for model in models])
    return {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual": len(models),
        "context": parallel_state.get_context_parallel_world_size(),
        "data": parallel_state.get_data_parallel_world_size(),
        "layers": layers,
    }


def described(layout: dict[str, Any]) -> str:
    """A layout in words for the user."""
    return ", ".join(f"{axis} {size}" for axis, size in layout.items())


def optimizer_kind(
    optimizer: MegatronOptimizer | None, models: list[LlavaModel]
) -> dict[str, Any] | None:
    """What decides how an optimizer's state is stored, the same on every rank."""
    if optimizer is None:
        return None
    return {
        "distributed": _is_distributed(optimizer),
        "bf16": optimizer.config.bf16,
        "fp16": optimizer.config.fp16,
        "trained_parts": _trained_parts(models),
        "lr_multiples": lr_multiples(optimizer),
        "buffers": _buffers(optimizer, models) if _is_distributed(optimizer) else None,
        "padding_placed": True,
    }


def _trained_parts(models: list[LlavaModel]) -> list[str]:
    """The tunable parts that learn, of all pipeline stages."""
    named = [pair for model in models for pair in model.named_parameters()]
    own = {part_of(name) for name, parameter in named if parameter.requires_grad}
    return sorted(set.union(*_of_stages(own)))


def _of_stages(own: Any) -> list[Any]:
    """What every pipeline stage has, in their order."""
    found: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(found, own, group=parallel_state.get_pipeline_model_parallel_group())
    return found


def check_optimizer(
    where: str, saved: dict[str, Any], optimizer: MegatronOptimizer, models: list[LlavaModel]
) -> None:
    """Refuse optimizer state that is not there or does not fit the run.

    Args:
        where: names the checkpoint in the message.
        saved: what all ranks share of the checkpoint.

    Raises:
        CheckpointError: in one line, with what to do.
    """
    otherwise = "or use --no-load-optim"
    if not saved["has_optimizer"]:
        raise CheckpointError(f"{where} was saved without optimizer state; use --no-load-optim")
    if "optimizer_kind" not in saved:
        raise CheckpointError(
            f"{where} was saved by an older version, which did not say how it stored the optimizer "
            "state: use --no-load-optim"
        )
    before, now = saved["optimizer_kind"], optimizer_kind(optimizer, models)
    assert before is not None and now is not None
    # Checkpoints of older versions do not have it.
    learned = before.get("trained_parts", now["trained_parts"])
    if not set(now["trained_parts"]) <= set(learned):
        raise CheckpointError(
            f"{where} was trained with --mm-tunable-parts {','.join(learned)}, and has no "
            "optimizer state of others, but the run trains "
            f"{','.join(now['trained_parts'])}: train the same parts, {otherwise}"
        )
    if before["lr_multiples"] != now["lr_multiples"]:
        raise CheckpointError(
            f"{where} was trained at {before['lr_multiples']} times --lr, now it is "
            f"{now['lr_multiples']}: keep --mm-vision-tower-lr and --mm-projector-lr in the same "
            f"ratio to --lr, {otherwise}"
        )
    for flag, name in (
        ("--use-distributed-optimizer", "distributed"),
        ("--bf16", "bf16"),
        ("--fp16", "fp16"),
    ):
        # Checkpoints from before --fp16 do not have it.
        if before.get(name, False) != now[name]:
            had, has = ("with" if kind.get(name) else "without" for kind in (before, now))
            raise CheckpointError(
                f"{where} was saved {had} {flag} and the run is {has} it, which stores other "
                f"optimizer state: resume {had} {flag}, {otherwise}"
            )
    reshardable = saved["optimizer_sharding"] == "fully_reshardable"
    if reshardable and "padding_placed" not in before:
        raise CheckpointError(
            f"{where} was saved by an older version, which mixed up the optimizer state of "
            "neighbours where --overlap-grad-reduce had several buckets: use --no-load-optim"
        )
    if now["distributed"] and not reshardable:
        _check_buffers(where, saved, layout(models), before["buffers"] == now["buffers"])
        check_shares_can_be_saved(optimizer)


def _check_buffers(
    where: str, saved: dict[str, Any], now: dict[str, Any], same_buffers: bool
) -> None:
    """State that is stored as the distributed optimizer's buffers needs the same buffers."""
    instead = (
        "save with --dist-ckpt-optim-fully-reshardable to resume at any layout, or use "
        "--no-load-optim"
    )
    for axes in (_SAME_WEIGHTS[:2], _SAME_WEIGHTS[2:3], _SAME_WEIGHTS[3:]):
        before = " x ".join(str(saved["layout"][axis]) for axis in axes)
        after = " x ".join(str(now[axis]) for axis in axes)
        if before != after:
            names = {"tensor": "tensor x pipeline", "virtual": "virtual stages on each rank"}
            what = names.get(axes[0], "layers of the stages")
            raise CheckpointError(
                f"{where}: the distributed optimizer was saved at {what} {before} and cannot be "
                f"read at {after}; resume at that layout, {instead}"
            )
    if not same_buffers:
        raise CheckpointError(
            f"{where}: the distributed optimizer was saved in other buckets than the run has; keep "
            "--ddp-bucket-size, --overlap-grad-reduce, --grad-reduce-in-bf16, --vision-parallel "
            f"and --mm-tunable-parts, {instead}"
        )


def _is_distributed(optimizer: MegatronOptimizer) -> bool:
    return any(isinstance(part, DistributedOptimizer) for part in optimizer_parts(optimizer))


def _buffers(optimizer: MegatronOptimizer, models: list[LlavaModel]) -> list[str]:
    """What each model-parallel rank's optimizer buffers hold where, as digests.

    Places count from the start of a bucket: between buckets lies padding that depends on how many
    data-parallel ranks there are.
    """
    names = {
        parameter: f"{number}.{name}"
        for number, model in enumerate(models)
        for name, parameter in model.named_parameters()
    }
    content = []
    for part in optimizer_parts(optimizer):
        for buffer in part.buffers:
            content.append((str(buffer.param_dtype), str(buffer.grad_dtype)))
            for parameter, (start, end, bucket) in buffer.param_index_map.items():
                offset = buffer.buckets[bucket].offset
                content.append((names[parameter], bucket, start - offset, end - offset))
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    group = parallel_state.get_model_parallel_group()
    digests: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, digest, group=group)
    return digests
