"""FLOPs of one optimizer step by part, and of recomputation apart from the work itself.

The parts' costs are those of ``parallel/part_cost.py``: decoder by the lengths of the samples,
tower by views, projector by features, what stands behind it also by the squares of the features
that see each other, output layer by rows with a loss; a backward only where something learns.
Training logs them of the packs that it was given, ``tools/plan.py`` of packs that it expects.
Padding of packs, views that stand in for none of a rank, and what tensor-parallel ranks compute
alike (the embedding of patches, the alignment loss) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.rules_pipeline import layers_of_stages
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.part_cost import (
    PartCost,
    decoder_layer,
    first_stage,
    output_layer,
)
from megatron_llava.parallel.trained import Trained


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Of all ranks together."""

    parts: dict[str, PartCost]
    """Decoder, vision tower, projector, what the settings add to it, output layer; by name."""

    slowest_stage: int
    """Everything that the pipeline stage with the most work does."""

    @property
    def useful(self) -> int:
        """Without recomputation."""
        return sum(part.forward + part.backward for part in self.parts.values())

    @property
    def recomputed(self) -> int:
        return sum(part.recomputed for part in self.parts.values())


def step_flops(config: RunConfig, sizes: PackSizes, learning: Trained) -> StepFlops:
    """FLOPs over some packs.

    Args:
        config: a validated configuration, its placement of layers included.
        sizes: what the packs of the step hold.
        learning: what is trained.
    """
    once = decoder_layer(config, sizes, learns=learning.language)
    stages = layers_of_stages(config)
    recomputed = [_recomputed_layers(config, layers) for layers in stages]
    decoder = PartCost(
        forward=sum(stages) * once.forward,
        backward=sum(stages) * once.backward,
        recomputed=sum(recomputed) * once.recomputed,
    )
    first = first_stage(config, sizes, learning)
    output = output_layer(config, sizes, learns=learning.language)
    own = [0] * len(stages)
    own[0] += sum(part.total for part in first.values())
    own[-1] += output.total
    busy = [
        layers * (once.forward + once.backward) + again * once.recomputed + more
        for layers, again, more in zip(stages, recomputed, own, strict=True)
    ]
    return StepFlops(
        parts={"decoder": decoder, **first, "output layer": output}, slowest_stage=max(busy)
    )


def _recomputed_layers(config: RunConfig, layers: int) -> int:
    """How many layers of a stage run again, in full or their attention."""
    recompute = config.recompute
    if recompute.granularity is None:
        return 0
    if recompute.granularity == "full" and recompute.recompute_method == "block":
        chunks = config.virtual_stages or 1
        return min(layers, chunks * known(recompute.recompute_num_layers))
    return layers
