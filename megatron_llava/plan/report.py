"""A plan as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.plan.assumptions import LINK_UTILISATION, RESERVE, UTILISATION
from megatron_llava.plan.image_budget import image_budget
from megatron_llava.plan.layout import Layout, Machine
from megatron_llava.plan.memory import RankMemory
from megatron_llava.plan.recipe import Recipe, gpu_hours
from megatron_llava.plan.search import MOST_GROWTH, flags_of
from megatron_llava.platform.gpus import GIB, TERA
from megatron_llava.vision.settings import image_settings

_SECONDS_OF_A_DAY = 86400


def report(layout: Layout, said: str, recipe: Recipe | None) -> str:
    """Everything about one layout.

    Args:
        layout: the plan.
        said: what packs hold, in words.
        recipe: steps of the run, None where its samples are not known.
    """
    lines = [
        _title(layout),
        said,
        _images(layout.config),
        "",
        *_memory(layout),
        "",
        *_flops(layout),
    ]
    if layout.time is not None:
        lines += ["", *_time(layout, recipe)]
    if recipe is not None:
        lines += ["", *_recipe(recipe)]
    return "\n".join(lines)


def _title(layout: Layout) -> str:
    config, machine = layout.config, layout.machine
    parallel = config.parallel
    data = config.data_parallel_size(machine.gpus)
    sizes = {
        "tensor": parallel.tensor_model_parallel_size,
        "pipeline": parallel.pipeline_model_parallel_size,
        "context": parallel.context_parallel_size,
        "data": data,
    }
    ranks = ", ".join(f"{size} {name}-parallel" for name, size in sizes.items() if size > 1)
    name = config.checkpoint.model or f"{known(config.language.num_layers)} layers"
    return f"{name} on {_gpus(machine)}: {ranks or 'one rank'}"


def _images(config: RunConfig) -> str:
    settings = image_settings(config)
    budget = image_budget(settings)
    views = " + ".join(str(part) for part in (budget.tiles, budget.base) if part)
    about = "about " if settings.max_merged_views is not None else ""
    return (
        f"an image has at most {about}({views}) x {budget.tokens_per_view} = {budget.tokens:,} "
        f"tokens beside newlines ({settings.image_aspect_ratio}, {settings.mm_patch_merge_type})"
    )


def _gpus(machine: Machine) -> str:
    word = "GPU" if machine.gpus == 1 else "GPUs"
    return f"{machine.gpus} {word} of {machine.memory / GIB:.3g} GiB"


def _memory(layout: Layout) -> Iterator[str]:
    stages = layout.stages
    columns = [f"stage {number}" for number in range(len(stages))] if len(stages) > 1 else ["rank"]
    yield f"{'GiB of a rank':<28}" + "".join(f"{column:>10}" for column in columns)
    for field in fields(RankMemory):
        numbers = [getattr(stage, field.name) for stage in stages]
        if field.name != "loading":
            yield _row(field.name, numbers)
        elif any(numbers):
            yield _row("(loading, before all that)", numbers)
    yield _row("reserve (assumed)", [RESERVE] * len(stages))
    yield _row("total", [stage.total + RESERVE for stage in stages])
    config = layout.config
    if config.parallel.transformer_impl != "local" or config.precision.fp8_format is not None:
        yield "  (activations are those of --transformer-impl local without FP8)"
    verdict = "fits" if layout.fits else "does not fit"
    yield f"{verdict}: {layout.most / GIB:.1f} of {layout.machine.memory / GIB:.1f} GiB"


def _row(name: str, numbers: Sequence[int]) -> str:
    return f"  {name:<26}" + "".join(f"{number / GIB:10.2f}" for number in numbers)


def _flops(layout: Layout) -> Iterator[str]:
    yield f"{'TFLOPs of a step':<28}{'forward':>10}{'backward':>10}{'again':>10}"
    for name, part in layout.flops.parts.items():
        numbers = part.forward, part.backward, part.recomputed
        yield f"  {name:<26}" + "".join(f"{number / TERA:10.1f}" for number in numbers)
    useful, again = layout.flops.useful / TERA, layout.flops.recomputed / TERA
    yield f"  {'all':<26}{useful:20.1f}{again:10.1f}"


def _time(layout: Layout, recipe: Recipe | None) -> Iterator[str]:
    time = layout.time
    assert time is not None
    yield (
        f"{time.total:.2f} s a step: {time.compute:.2f} compute, {time.bubble:.2f} pipeline "
        f"bubble, {time.communication:.2f} communication"
    )
    yield (
        f"  not measured: {UTILISATION:.0%} of the published FLOPs and {LINK_UTILISATION:.0%} of "
        "the published link are assumed"
    )
    if recipe is not None:
        seconds = recipe.steps * time.total
        hours = gpu_hours(layout.machine.gpus, seconds)
        yield (
            f"  {seconds / _SECONDS_OF_A_DAY:.2f} days for {recipe.steps:,} steps, {hours:,.0f} "
            "GPU-hours"
        )


def _recipe(recipe: Recipe) -> Iterator[str]:
    passes = "" if recipe.passes is None else f", {recipe.passes:.2f} passes over all of them"
    yield (
        f"{recipe.steps:,} steps of {recipe.samples:,} samples at {recipe.samples_per_step:g} a "
        f"step{passes}; {recipe.warmup:,} of the steps are warm-up"
    )


def listing(layouts: Sequence[Layout], base: RunConfig, limit: int) -> str:
    """The best layouts, one a line, as flags to paste."""
    return "\n".join(_line(layout, base) for layout in layouts[:limit])


def _line(layout: Layout, base: RunConfig) -> str:
    time = f"{layout.time.total:8.2f} s  " if layout.time is not None else ""
    return f"{layout.most / GIB:7.1f} GiB  {time}{flags(layout, base)}"


def flags(layout: Layout, base: RunConfig) -> str:
    """What a layout adds to a command line."""
    return shlex.join(flags_of(layout, base)) or "(as given)"


def change_needed(
    found: Layout | None, base: RunConfig, machine: Machine, packed: Layout | None = None
) -> str:
    """What to do where a layout does not fit.

    Args:
        found: the nearest that fits, None where nothing was found.
        base: the configuration as given.
        machine: what it was planned for.
        packed: one that fits with frozen weights in 4 bits, where there is one.
    """
    if found is None and packed is None:
        return (
            f"does not fit; no layout does, on up to {MOST_GROWTH} times as many GPUs either: give "
            "a shorter --seq-length, more --gpu-memory, or --lora-rank"
        )
    changes = []
    if found is not None:
        where = "" if found.machine == machine else f"{_gpus(found.machine)} and "
        changes.append(f"nearest change is {where}{_with_memory(found, base)}")
    if packed is not None:
        changes.append(
            "the frozen weights of the decoder's layers can be rounded to 4 bits: "
            + _with_memory(packed, base)
        )
    return "does not fit; " + "; or\n".join(changes)


def _with_memory(layout: Layout, base: RunConfig) -> str:
    return f"{flags(layout, base)} ({layout.most / GIB:.1f} GiB)"
