"""Rules of ``validate`` about pipeline stages and the layers on them."""

from __future__ import annotations

from megatron_llava.config.rules_model import check_divisible, known
from megatron_llava.config.run import RunConfig


def check_stages(config: RunConfig) -> None:
    """The layers divide among the pipeline stages, the first and last counted apart if given."""
    parallel = config.parallel
    layers, stages = known(config.language.num_layers), parallel.pipeline_model_parallel_size
    apart = {
        "--decoder-first-pipeline-num-layers": parallel.decoder_first_pipeline_num_layers,
        "--decoder-last-pipeline-num-layers": parallel.decoder_last_pipeline_num_layers,
    }
    given = {option: count for option, count in apart.items() if count is not None}
    if parallel.pipeline_balance == "auto":
        return  # check_balance has its own rules
    if not given:
        check_divisible("--num-layers", layers, "--pipeline-model-parallel-size", stages)
        return
    said = " and ".join(f"{option} {count}" for option, count in given.items())
    if stages == 1:
        raise ValueError(f"{said} needs --pipeline-model-parallel-size 2 or more, not 1: drop it")
    rest, others = layers - sum(given.values()), stages - len(given)
    if len(given) == 2 and stages == 2 and config.virtual_stages:
        # Core divides by the number of stages in between to find the layers of a virtual stage.
        raise ValueError(
            f"{said} with virtual stages on --pipeline-model-parallel-size 2 say the same twice: "
            "give one of them"
        )
    if rest < others or (rest % others if others else rest):
        raise ValueError(
            f"{said} leaves {rest} of --num-layers {layers} for {others} other pipeline stages of "
            f"--pipeline-model-parallel-size {stages}: give counts that leave a multiple of that, "
            "at least one for each"
        )


def check_virtual_stages(config: RunConfig) -> None:
    """The layers of each rank divide among its virtual stages, and core's schedule can run them."""
    parallel = config.parallel
    ranks = parallel.pipeline_model_parallel_size
    layers_each = parallel.num_layers_per_virtual_pipeline_stage
    stages_each = parallel.num_virtual_stages_per_pipeline_rank
    if layers_each is None and stages_each is None:
        _check_overlap(config)
        return
    if layers_each is not None and stages_each is not None:
        raise ValueError(
            f"--num-layers-per-virtual-pipeline-stage {layers_each} and "
            f"--num-virtual-stages-per-pipeline-rank {stages_each} say the same: give one"
        )
    said = (
        f"--num-layers-per-virtual-pipeline-stage {layers_each}"
        if layers_each is not None
        else f"--num-virtual-stages-per-pipeline-rank {stages_each}"
    )
    if ranks == 1:
        raise ValueError(f"{said} needs --pipeline-model-parallel-size 2 or more, not 1: drop it")
    if parallel.pipeline_balance == "even":
        _check_layers_of_virtual_stages(config, said)
    _check_overlap(config)
    # Core's schedule then gives right losses and wrong gradients, and says nothing.
    if config.virtual_stages and ranks == 2 and parallel.no_overlap_p2p_communication:
        raise ValueError(
            f"--no-overlap-p2p-communication with {said} needs --pipeline-model-parallel-size 3 or "
            "more, not 2: drop it"
        )


def _check_overlap(config: RunConfig) -> None:
    if config.parallel.no_overlap_p2p_communication and not config.virtual_stages:
        raise ValueError(
            "--no-overlap-p2p-communication is for two or more virtual pipeline stages on each "
            "rank, and there is one: drop it"
        )


def _check_layers_of_virtual_stages(config: RunConfig, said: str) -> None:
    parallel = config.parallel
    layers, ranks = known(config.language.num_layers), parallel.pipeline_model_parallel_size
    layers_each = parallel.num_layers_per_virtual_pipeline_stage
    if layers_each is None:
        for count in sorted(set(layers_of_stages(config))):
            if count % known(parallel.num_virtual_stages_per_pipeline_rank) != 0:
                raise ValueError(
                    f"{said} does not divide the {count} layers of a rank (--num-layers {layers} "
                    f"over --pipeline-model-parallel-size {ranks}): give a divisor of {count}"
                )
        return
    if len(set(layers_of_stages(config))) > 1:
        raise ValueError(
            f"{said} needs as many layers on every rank: with uneven stages give "
            "--num-virtual-stages-per-pipeline-rank"
        )
    if layers // ranks % layers_each != 0:
        raise ValueError(
            f"{said} does not divide the {layers // ranks} layers of a rank (--num-layers "
            f"{layers} over --pipeline-model-parallel-size {ranks}): give a divisor of "
            f"{layers // ranks}"
        )


def check_virtual_microbatches(config: RunConfig, num_microbatches: int) -> None:
    """Virtual stages take turns in groups of as many microbatches as there are ranks."""
    ranks = config.parallel.pipeline_model_parallel_size
    if config.virtual_stages and num_microbatches % ranks != 0:
        raise ValueError(
            f"virtual pipeline stages need the {num_microbatches} microbatches of a step "
            f"(--global-batch-size over the data-parallel ranks) to be a multiple of "
            f"--pipeline-model-parallel-size {ranks}: change --global-batch-size"
        )


def layers_of_stages(config: RunConfig) -> list[int]:
    """Decoder layers of each pipeline rank, in order; ``check_stages`` holds."""
    parallel = config.parallel
    layers, ranks = known(config.language.num_layers), parallel.pipeline_model_parallel_size
    first = parallel.decoder_first_pipeline_num_layers
    last = parallel.decoder_last_pipeline_num_layers
    given = [count for count in (first, last) if count is not None]
    others = ranks - len(given)
    share = (layers - sum(given)) // others if others else 0
    middle = [share] * others
    return [*([first] if first is not None else []), *middle, *([last] if last is not None else [])]


def smallest_stage(config: RunConfig) -> int:
    """Decoder layers of the model chunk that has the fewest; ``check_virtual_stages`` holds.

    Where ``--pipeline-balance auto`` places them later: the most that every chunk can have.
    """
    parallel, chunks = config.parallel, config.virtual_stages or 1
    if parallel.pipeline_balance == "auto":
        return known(config.language.num_layers) // (parallel.pipeline_model_parallel_size * chunks)
    return min(layers_of_stages(config)) // chunks
