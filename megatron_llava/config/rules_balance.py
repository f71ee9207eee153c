"""Rules of ``validate`` about ``--pipeline-balance auto``."""

from __future__ import annotations

from megatron_llava.config.rules_model import check_divisible, known
from megatron_llava.config.run import RunConfig


def check_balance(config: RunConfig) -> None:
    """Balancing has stages to balance, layers for each, and nobody else who places layers."""
    parallel = config.parallel
    if parallel.pipeline_balance != "auto":
        return
    stages = parallel.pipeline_model_parallel_size
    if stages == 1:
        raise ValueError(
            "--pipeline-balance auto needs --pipeline-model-parallel-size 2 or more, not 1: drop it"
        )
    for option, count in (
        ("--decoder-first-pipeline-num-layers", parallel.decoder_first_pipeline_num_layers),
        ("--decoder-last-pipeline-num-layers", parallel.decoder_last_pipeline_num_layers),
    ):
        if count is not None:
            raise ValueError(f"--pipeline-balance auto contradicts {option} {count}: give one")
    layers_each = parallel.num_layers_per_virtual_pipeline_stage
    if layers_each is not None:
        raise ValueError(
            f"--num-layers-per-virtual-pipeline-stage {layers_each} needs as many layers on every "
            "rank: with --pipeline-balance auto give --num-virtual-stages-per-pipeline-rank"
        )
    _check_room(config, stages)


def _check_room(config: RunConfig, stages: int) -> None:
    """There is a placement: every stage has whole chunks and at least one layer in each."""
    layers = known(config.language.num_layers)
    chunks = config.virtual_stages or 1
    if chunks > 1:
        check_divisible(
            "--pipeline-balance auto: --num-layers",
            layers,
            "--num-virtual-stages-per-pipeline-rank",
            chunks,
        )
    if layers < stages * chunks:
        said = f" times {chunks} virtual stages" if chunks > 1 else ""
        raise ValueError(
            f"--num-layers {layers} is less than --pipeline-model-parallel-size {stages}{said}, "
            "and --pipeline-balance auto gives each stage a layer: give fewer stages"
        )
    recomputed = config.recompute.recompute_num_layers
    if recomputed is not None and config.recompute.recompute_method == "uniform":
        # Core recomputes that many layers at a time and would reach beyond the last of a stage.
        check_divisible(
            "--pipeline-balance auto with --recompute-method uniform: --num-layers"
            + (f" {layers} / {chunks} virtual stages =" if chunks > 1 else ""),
            layers // chunks,
            "--recompute-num-layers",
            recomputed,
        )
