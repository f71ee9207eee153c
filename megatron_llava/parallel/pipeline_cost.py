"""What the pipeline stages of a run cost, estimated in matrix-product FLOPs (``part_cost``).

Costs are those of forward and backward over some packs. Recomputation adds a forward to what has a
backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.part_cost import decoder_layer, first_stage, output_layer
from megatron_llava.parallel.pipeline_balance import costs_of_stages, place_layers
from megatron_llava.parallel.trained import trained


@dataclass(frozen=True, kw_only=True)
class PipelineCost:
    """FLOPs of forward and backward, integers, and what limits the placement of layers."""

    layer: int
    """One decoder layer."""

    stages: tuple[int, ...]
    """What each stage does besides: the tower and projector, the output layer, and with
    ``--recompute-method block`` the layers that every stage computes again."""

    multiple: int
    """What the layers of every stage divide by."""

    minimum: int
    """Layers that every stage has at least."""


def balanced(config: RunConfig, sizes: PackSizes) -> tuple[RunConfig, str]:
    """The configuration with the best placement filled in, and one line that says what it is.

    Args:
        config: a validated configuration with ``--pipeline-balance auto``.
        sizes: what packs hold.
    """
    cost = pipeline_cost(config, sizes)
    layers = known(config.language.num_layers)
    placement = place_layers(
        layers, cost.layer, cost.stages, multiple=cost.multiple, minimum=cost.minimum
    )
    shares = _percentages(costs_of_stages(placement, cost.layer, cost.stages))
    average = [total / sizes.packs for total in (sizes.views, sizes.rows, sizes.loss_rows)]
    message = (
        f"--pipeline-balance auto: {_listed(placement)} of {layers} layers on pipeline stages 0 to "
        f"{len(placement) - 1}, {shares} % of the estimated cost, for packs of "
        f"{average[0]:.1f} views, {average[1]:.0f} rows and {average[2]:.0f} rows with a loss"
    )
    counts = {"decoder_first_pipeline_num_layers": placement[0]}
    if len(placement) > 2:
        # Of two stages the last has the rest: with both given, core's layer numbers of virtual
        # stages divide by the zero stages between them.
        counts["decoder_last_pipeline_num_layers"] = placement[-1]
    return config.with_values(counts, "default"), message


def pipeline_cost(config: RunConfig, sizes: PackSizes) -> PipelineCost:
    """The cost of every part of the pipeline."""
    recompute = config.recompute
    stages = config.parallel.pipeline_model_parallel_size
    learning = trained(config)
    decoder = decoder_layer(config, sizes, learns=learning.language)
    layer, recomputed = decoder.forward + decoder.backward, decoder.recomputed
    # Each virtual stage has a share of the layers, and is recomputed apart from the others.
    multiple = minimum = chunks = config.virtual_stages or 1
    every = 0
    if recompute.granularity == "full":
        chunk = known(recompute.recompute_num_layers)
        if recompute.recompute_method == "block":
            every, minimum = chunks * chunk * recomputed, chunks * chunk
        else:
            layer, multiple = layer + recomputed, chunks * chunk
    elif recompute.granularity == "selective":
        layer += recomputed
    own = [every] * stages
    own[0] += sum(part.total for part in first_stage(config, sizes, learning).values())
    own[-1] += output_layer(config, sizes, learns=learning.language).total
    return PipelineCost(layer=layer, stages=tuple(own), multiple=multiple, minimum=minimum)


def _listed(numbers: Sequence[object]) -> str:
    return ", ".join(str(number) for number in numbers)


def _percentages(costs: Sequence[int]) -> str:
    return _listed([f"{100 * cost / sum(costs):.1f}" for cost in costs])
