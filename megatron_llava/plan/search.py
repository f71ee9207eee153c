"""The layouts of a run that fit into some GPUs, and what to change where one does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.validate import validate
from megatron_llava.plan.layout import Layout, Machine, WorkloadOf, plan_layout

_RANKS_OF_A_MACHINE = 8
"""Tensor- and context-parallel ranks talk in every layer and stay within a machine."""

MOST_GROWTH = 16
"""Times as many GPUs as were asked for are tried."""

_FULL = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
_FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
_RECOMPUTE: tuple[dict[str, Any], ...] = ({}, {"recompute_activations": True}, _FULL)


@dataclass(frozen=True)
class Planner:
    """What a search holds fixed."""

    config: RunConfig
    workload_of: WorkloadOf

    def plan(self, changes: dict[str, Any], machine: Machine) -> Layout | None:
        """The configuration with some changes; None where a rule of training forbids them."""
        config = self.config.with_values(changes, "flag")
        try:
            validate(config, machine.gpus)
        except ValueError:
            return None
        return plan_layout(config, machine, self.workload_of)


def search(planner: Planner, machine: Machine) -> list[Layout]:
    """Every layout that training accepts, those that fit first, the best of them first.

    What the user gave by flag or file is not changed.
    """
    found = {}
    for changes in _candidates(planner.config, machine.gpus):
        layout = planner.plan(changes, machine)
        if layout is not None:
            found[tuple(flags_of(layout, planner.config))] = layout
    return sorted(found.values(), key=_order)


def _order(layout: Layout) -> tuple[bool, float, int]:
    """By time where it fits, else by memory."""
    if layout.fits:
        return False, *layout.cost
    return True, layout.most, 0


def _candidates(config: RunConfig, gpus: int) -> Iterator[dict[str, Any]]:
    sizes = [size for size in range(1, gpus + 1) if gpus % size == 0]
    for tensor, stages, context, recompute, vision in product(
        sizes,
        sizes,
        sizes,
        _RECOMPUTE,
        ("tensor", "data"),
    ):
        ranks = tensor * stages * context
        if gpus % ranks or tensor * context > _RANKS_OF_A_MACHINE:
            continue
        if vision == "data" and tensor == 1:
            continue
        shared = gpus // (tensor * stages) > 1
        changes = {
            "tensor_model_parallel_size": tensor,
            "pipeline_model_parallel_size": stages,
            "context_parallel_size": context,
            "sequence_parallel": tensor > 1,
            "vision_parallel": vision,
            "use_distributed_optimizer": shared,
            "overlap_grad_reduce": shared,
            "overlap_param_gather": shared,
            **({} if config.precision.is_half else {"bf16": True}),
            **recompute,
        }
        if recompute and "mm_vision_tower" in config.training.mm_tunable_parts:
            changes["recompute_vision"] = True
        yield {name: value for name, value in changes.items() if name not in config.explicit}


def nearest_change(planner: Planner, machine: Machine) -> Layout | None:
    """A layout that fits, as near as possible to one that does not.

    First one flag (or a few that belong together) is changed, then anything that the user did not
    give, then the number of GPUs. None where nothing of that helps.
    """
    single = _best(planner, _single_changes(planner.config), machine)
    if single is not None:
        return single
    more = machine
    while more.gpus <= MOST_GROWTH * machine.gpus:
        best = next(iter(search(planner, more)), None)
        if best is not None and best.fits:
            return best
        more = replace(more, gpus=2 * more.gpus)
    return None


def change_to_four_bit(planner: Planner, machine: Machine) -> Layout | None:
    """A layout that fits with the frozen weights in 4 bits, with as few other changes as needed.

    None where nothing of that helps, or weights that learn are all that there is.
    """
    config = planner.config
    if not config.lora.adapts or "load_in_4bit" in config.explicit:
        return None
    packed = replace(planner, config=config.with_values(_FOUR_BIT, "flag"))
    alone = packed.plan({}, machine)
    if alone is not None and alone.fits:
        return alone
    single = _best(packed, _single_changes(config), machine)
    return single or _best(packed, _candidates(config, machine.gpus), machine)


def _best(
    planner: Planner, candidates: Iterable[dict[str, Any]], machine: Machine
) -> Layout | None:
    """The best layout that fits of some changes."""
    layouts = [planner.plan(changes, machine) for changes in candidates]
    fitting = [layout for layout in layouts if layout is not None and layout.fits]
    return min(fitting, key=lambda layout: layout.cost, default=None)


def _single_changes(config: RunConfig) -> Iterator[dict[str, Any]]:
    parallel = config.parallel
    if not config.precision.is_half:
        yield {"bf16": True}
    if not parallel.use_distributed_optimizer:
        yield {"use_distributed_optimizer": True}
    vision = {"recompute_vision": "mm_vision_tower" in config.training.mm_tunable_parts}
    if config.recompute.granularity is None:
        yield {"recompute_activations": True, **vision}
    if config.recompute.granularity != "full":
        yield {**_FULL, **vision, "recompute_activations": False}
    tensor = parallel.tensor_model_parallel_size
    yield {"tensor_model_parallel_size": 2 * tensor, "sequence_parallel": True}
    yield {"pipeline_model_parallel_size": 2 * parallel.pipeline_model_parallel_size}


def flags_of(layout: Layout, base: RunConfig) -> list[str]:
    """What to add to a command line to turn one configuration into a layout's."""
    flags = []
    for spec in all_fields().values():
        value = layout.config.get(spec.name)
        if value == base.get(spec.name):
            continue
        if spec.kind == "bool":
            flags.append(spec.option if value else spec.negation)
        else:
            flags += [spec.option, str(value)]
    return flags
