"""The state of core's optimizer with torch's Adam inside, which core handles only in part.

Torch's Adam is inside core's optimizer, or on the host inside its HybridDeviceOptimizer. Of
Transformer Engine's Adam, which counts its steps elsewhere, core has all that is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_llava.parallel.agreement import failure
from megatron_llava.training.bucket_padding import place_gathered, without_core_warning


def lr_multiples(optimizer: MegatronOptimizer | None) -> list[float]:
    """The rates of the parameter groups as multiples of --lr, the same on every rank."""
    groups = optimizer.param_groups if optimizer is not None else []
    return sorted({float(group["lr_mult"]) for group in groups})


def optimizer_parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Core's optimizers inside the chain that it makes of them."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def check_shares_can_be_saved(optimizer: MegatronOptimizer) -> None:
    """Raise ValueError on every rank where padding leaves one of them nothing of a bucket.

    Core saves the shares of buckets as they are, unless they are made fully reshardable, and
    asserts then that none is empty.
    """
    reason = failure(lambda: _check_shares(optimizer))
    if reason is not None:
        raise ValueError(reason)


def _check_shares(optimizer: MegatronOptimizer) -> None:
    """Of the ranks that share a bucket the last has the padding."""
    for part in optimizer_parts(optimizer):
        for buffer in getattr(part, "buffers", ()):
            ranks = buffer.data_parallel_world_size
            for bucket in buffer.buckets:
                if bucket.numel_unpadded <= bucket.grad_data.numel() // ranks * (ranks - 1):
                    raise ValueError(
                        f"--save cannot write, nor --load read, a bucket of "
                        f"{bucket.numel_unpadded} gradients that {ranks} data-parallel ranks "
                        "share, one of them only its padding: save with "
                        "--dist-ckpt-optim-fully-reshardable, or give another --ddp-bucket-size"
                    )


def _adams(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    """The optimizers inside core's."""
    return [part.optimizer for part in optimizer_parts(optimizer) if part.optimizer is not None]


def _counts_by_parameter(adam: torch.optim.Optimizer) -> bool:
    """Whether the state of each parameter has its number of steps, as torch's Adam has it."""
    return isinstance(adam, (torch.optim.Adam, torch.optim.AdamW, HybridDeviceOptimizer))


def allocate_adam_state(optimizer: MegatronOptimizer, steps: int = 0) -> None:
    """Give Adam a state where it has none: core's distributed optimizer reads the count there.

    Args:
        steps: the count for an Adam without parameters, on a stage where everything is frozen.
    """
    for part in optimizer_parts(optimizer):
        adam = part.optimizer
        if isinstance(adam, HybridDeviceOptimizer):
            _allocate_hybrid_state(adam)
        elif adam is not None and _counts_by_parameter(adam):
            if isinstance(part, DistributedOptimizer) and not part.get_parameters():
                adam.state["no parameters"] = {"step": torch.tensor(float(steps))}
            _allocate_state(adam)
        elif adam is not None and not part.config.use_precision_aware_optimizer:
            part.init_state_fn(adam, part.config)


def _allocate_state(adam: torch.optim.Optimizer) -> None:
    for parameter in (p for group in adam.param_groups for p in group["params"]):
        if not adam.state[parameter]:
            adam.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _allocate_hybrid_state(adam: HybridDeviceOptimizer) -> None:
    """A step that changes nothing: only that makes the copies and moments on the host."""
    if adam.state:
        return
    rates = [group["lr"] for group in adam.param_groups]
    for group in adam.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.decoupled_grad = torch.zeros_like(parameter, dtype=torch.float32)
    adam.step()
    adam.zero_grad()
    for group, rate in zip(adam.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in _counted_states(adam, adam.param_groups):
        state["step"].zero_()
    if adam.gpu_optimizer is not None:
        for group in adam.gpu_optimizer.param_groups:
            group.pop("step", None)


@torch.no_grad()
def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load core's optimizer with torch's Adam inside, whose step count core does not handle."""
    parts = optimizer_parts(optimizer)
    contents = _of_parts(parts, loaded)
    settings = [_settings(group) for adam in _adams(optimizer) for group in adam.param_groups]
    moments = []
    for part, content in zip(parts, contents, strict=True):
        if part.optimizer is not None and _counts_by_parameter(part.optimizer):
            _count_from_zero(content)
        _fill_in_nothing(part, content)
        if part.config.use_precision_aware_optimizer:
            _hide_marks(content)
        reshardable = content.get("param_state_sharding_type") == "fully_reshardable"
        moments.append(content.pop("param_state") if reshardable else None)
    optimizer.load_state_dict(loaded)
    for part, moment in zip(parts, moments, strict=True):
        if moment is not None:
            for adam_state in part.optimizer.state.values():
                adam_state.pop("step", None)
            part.load_parameter_state_from_fully_reshardable(moment)
    _restore_step_counts(optimizer)
    for adam in _adams(optimizer):
        if isinstance(adam, HybridDeviceOptimizer):
            # Core forgets to with "dp_reshardable" state.
            adam._sync_hdo_state_to_sub_optimizers()
            _count_on(adam)
    # What the command line says now wins over what it said when the checkpoint was saved.
    groups = [group for adam in _adams(optimizer) for group in adam.param_groups]
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)


def saved_optimizer(
    optimizer: MegatronOptimizer, models: dict[str, Any], sharding: str
) -> dict[str, Any]:
    """Core's sharded state of an optimizer, to be saved; the caller has given Adam its state."""
    with without_core_warning():
        state: dict[str, Any] = optimizer.sharded_state_dict(
            models, is_loading=False, metadata=optimizer_metadata(sharding)
        )
    parts = optimizer_parts(optimizer)
    for part, content in zip(parts, _of_parts(parts, state), strict=True):
        place_gathered(part, content)
    return state


def _of_parts(parts: Sequence[MegatronOptimizer], state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of each of core's optimizers in that of their chain."""
    return [state] if len(parts) == 1 else [state[number] for number in range(len(parts))]


def _count_on(adam: HybridDeviceOptimizer) -> None:
    """Let what stays on the GPU count its own steps: Transformer Engine's Adam does it in its
    groups, over which core puts the outer ones before every step, with the count that was loaded.
    """
    counts = [group.pop("step") for group in adam.param_groups if "step" in group]
    if adam.gpu_optimizer is not None and counts:
        for group in adam.gpu_optimizer.param_groups:
            group["step"] = int(counts[0])


class _Unmarked(dict[str, Any]):
    """A parameter's state without core's mark of padding among its items."""

    def items(self) -> Any:
        return {name: value for name, value in super().items() if name != "padding"}.items()


def _hide_marks(content: dict[str, Any]) -> None:
    """Core hands all items of a share of a bucket to Transformer Engine's Adam, its own mark among
    them, which is no tensor."""
    if content.get("param_state_sharding_type") != "dp_reshardable":
        return
    for buffer in content["param_state"].values():
        for buckets in buffer.values() if isinstance(buffer, dict) else ():
            buckets[:] = [[_Unmarked(share) for share in bucket] for bucket in buckets]


def _count_from_zero(content: dict[str, Any]) -> None:
    """Core leaves out a count of 0: where every step so far was skipped."""
    state = content.get("optimizer", {}).get("state")
    if state and "common_step" not in state and all("step" not in s for s in state.values()):
        state["common_step"] = torch.tensor(0.0)


def _fill_in_nothing(part: MegatronOptimizer, content: dict[str, Any]) -> None:
    """Give an optimizer without parameters, on a stage where everything is frozen, the entries that
    core asks for: without a tensor in them, none was stored."""
    if part.get_parameters():
        return
    if content.get("param_state_sharding_type") == "fully_reshardable":
        content.setdefault("param_state", {})
    elif not isinstance(part, DistributedOptimizer):
        content.setdefault("fp32_from_fp16_params", [])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What flags decide about a parameter group of Adam; the scheduler sets the rate from it."""
    return {name: group[name] for name in ("max_lr", "min_lr", "betas", "eps")}


def _restore_step_counts(optimizer: MegatronOptimizer) -> None:
    """Give every state its own tensor with the saved count.

    Core's distributed optimizer puts the count into the parameter groups, one shared tensor into
    the states, and then copies the count from before the load over it.
    """
    for adam in filter(_counts_by_parameter, _adams(optimizer)):
        for group in adam.param_groups:
            for state in _counted_states(adam, [group]):
                count = group["step"] if "step" in group else state["step"]
                state["step"] = torch.tensor(float(count))


def _counted_states(
    adam: torch.optim.Optimizer, groups: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The states that count steps: of a hybrid optimizer, those on the host."""
    for parameter in (p for group in groups for p in group["params"]):
        hybrid = isinstance(adam, HybridDeviceOptimizer)
        if not hybrid or parameter in adam.gpu_params_map_cpu_copy:
            yield adam.state[parameter]


def optimizer_metadata(sharding: str) -> dict[str, Any]:
    """How core lays out the optimizer state; its own default refuses the distributed optimizer."""
    return {
        "distrib_optim_sharding_type": sharding,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
