"""What a torchrun of training would start, from its own command line; nothing is started or read.

    python examples/dry_run.py --nproc-per-node 2 -m megatron_llava.train FLAGS

Prints the settings that the flags and --model give, then the ranks and their layout, the steps,
the learning rates and saves, and an estimate of memory and FLOPs (see megatron_llava/plan).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from megatron_llava.config.cli import config_to_yaml, exit_with_error, parse_args
from megatron_llava.config.model_yaml import fill_named_model
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import part_of
from megatron_llava.config.validate import validate
from megatron_llava.config.video import video_settings
from megatron_llava.observe.parameters import part_parameters
from megatron_llava.plan.layout import Machine, plan_layout
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.plan.workload import SampleSizes, workload_of_samples
from megatron_llava.platform.torchrun import launched_ranks
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import (
    number_of_tokens,
    number_of_video_tokens,
    number_of_views,
)

FRAMES = 32
TYPICAL_IMAGE = (640, 480)
TEXT_TOKENS, LOSS_TOKENS = 200, 120
"""Of the typical sample that FLOPs are told of: assumed, not measured."""


def settings(config: RunConfig) -> list[str]:
    """The lines of --print-config that are no defaults."""
    lines = config_to_yaml(config).splitlines()
    chosen = [line for line in lines if "# default" not in line]
    following = [*chosen[1:], "end:"]
    return [
        line
        for line, after in zip(chosen, following, strict=True)
        if line.startswith(" ") or after.startswith(" ")
    ]


def layout(config: RunConfig, ranks: int) -> list[str]:
    parallel, data_ranks = config.parallel, config.data_parallel_size(ranks)
    parts = config.training.mm_tunable_parts
    whole = config.with_values({"tensor_model_parallel_size": 1}, "default")
    every = part_parameters(whole, layers=known(config.language.num_layers), first=True, last=True)
    total = sum(p.numel for p in every)
    learn = set(parts) - ({"mm_language_model"} if config.lora.adapts else set())
    learning = sum(p.numel for p in every if part_of(p.name) in learn)
    adapters = f" and adapters of rank {config.lora.lora_rank}" if config.lora.adapts else ""
    return [
        f"{ranks} GPUs: tensor {parallel.tensor_model_parallel_size} x pipeline "
        f"{parallel.pipeline_model_parallel_size} x context {parallel.context_parallel_size} x "
        f"data {data_ranks}",
        f"{total / 1e9:.2f} B parameters, of which {learning / 1e6:.1f} M learn{adapters} "
        f"({', '.join(parts)})",
    ]


def schedule(config: RunConfig, ranks: int) -> list[str]:
    """Steps, and what happens at which of them."""
    optimizer, checkpoint = config.optimizer, config.checkpoint
    steps, batch = known(config.training.train_iters), config.global_batch_size(ranks)
    each, data_ranks = config.num_microbatches(ranks), config.data_parallel_size(ranks)
    what = "samples" if config.data.packing_window == 1 else "packs of several samples"
    saves = steps // known(checkpoint.save_interval)
    final = " and the last step" if steps % known(checkpoint.save_interval) else ""
    kept = "all" if checkpoint.save_total_limit is None else str(checkpoint.save_total_limit)
    lr = optimizer.lr
    tower, projector = optimizer.mm_vision_tower_lr, optimizer.mm_projector_lr
    rates = [f"lr {lr:g}"] + [
        f"{name} {rate:g}" for name, rate in (("tower", tower), ("projector", projector)) if rate
    ]
    return [
        f"{steps} steps of {batch} {what} = {data_ranks} data-parallel ranks x {each}: "
        f"{steps * batch} in all",
        f"{', '.join(rates)}, {optimizer.warmup_iters(steps)} warmup steps, then "
        f"{optimizer.lr_decay_style}, weight decay {optimizer.weight_decay:g}",
        f"logs every {config.logging.log_interval} steps; {saves} saves every "
        f"{checkpoint.save_interval}{final}, {kept} kept",
    ]


def estimate(config: RunConfig, ranks: int) -> list[str]:
    """Memory at the longest pack, FLOPs at a typical sample."""
    image = image_settings(config)
    tile = known(config.vision.vision_image_size)
    largest = max(image.grid_pinpoints, key=lambda size: size[0] * size[1], default=(tile, tile))
    visual = number_of_tokens(TYPICAL_IMAGE, image)
    tokens, length = visual + TEXT_TOKENS, known(config.data.seq_length)
    sample = SampleSizes(image_size=TYPICAL_IMAGE, tokens=tokens, loss_tokens=LOSS_TOKENS)
    workload = workload_of_samples(config, sample)
    views = max(number_of_views(largest, image), workload.largest.views)
    load = PackLoad(
        rows=length,
        loss_rows=workload.largest.loss_rows,
        text_tokens=length,
        views=views,
        features=0,
    )
    full = replace(workload, largest=load)
    layout = plan_layout(config, Machine(gpus=ranks, memory=0, kind=None), lambda _: full)
    memory = max(stage.total for stage in layout.stages)
    flops, steps = layout.flops.useful, known(config.training.train_iters)
    return [
        f"an image of {largest[0]}x{largest[1]} is {number_of_views(largest, image)} views and "
        f"{number_of_tokens(largest, image)} tokens, one of {TYPICAL_IMAGE[0]}x{TYPICAL_IMAGE[1]} "
        f"{visual} tokens, a video of {FRAMES} frames "
        f"{number_of_video_tokens(FRAMES, video_settings(image))}; a pack holds {length}",
        f"about {memory / 2**30:.0f} GiB on a GPU at a full pack with {load.loss_rows} answer "
        "tokens, beside what CUDA and NCCL take",
        f"about {flops:.2e} FLOPs a step and {flops * steps:.2e} in all, at {workload.said}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Print it all for the arguments of a torchrun."""
    at = list(arguments).index("megatron_llava.train")
    ranks, config = launched_ranks(arguments[:at]), parse_args(arguments[at + 1 :])
    try:
        if ranks is None:
            raise ValueError("--nnodes and --nproc-per-node: give numbers, which a dry run needs")
        if config.checkpoint.model is not None:
            config = fill_named_model(config, config.checkpoint.model)
        elif config.get("num_layers") is None:
            raise ValueError("--model is not given, and no checkpoint is read here: add it")
        config = config.with_values({"device": "cuda"}, "default")
        validate(config, ranks)
        lines = [*layout(config, ranks), *schedule(config, ranks), *estimate(config, ranks)]
    except ValueError as error:
        exit_with_error(str(error), "dry_run.py")
    print("\n".join([*settings(config), "", *lines]))


if __name__ == "__main__":
    main(sys.argv[1:])
