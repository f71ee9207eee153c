"""One rank's view of the settings: its groups, its parts, and what of them learns."""

from __future__ import annotations

from functools import cached_property

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.parts import parts_of_rank
from megatron_llava.observe.traffic_kinds import (
    CONTEXT,
    DATA,
    EMBEDDING,
    PIPELINE,
    TENSOR,
    VIEWS,
)
from megatron_llava.parallel.trained import trained
from megatron_llava.vision.settings import image_settings


class RankSettings:
    """What the formulas of ``communication`` need of the settings."""

    def __init__(self, config: RunConfig, data_ranks: int, pipeline_rank: int) -> None:
        self.config, parallel = config, config.parallel
        self.tensor = parallel.tensor_model_parallel_size
        self.context = parallel.context_parallel_size
        stages = parallel.pipeline_model_parallel_size
        whole = parallel.vision_parallel == "data"
        self.ranks = {
            TENSOR: self.tensor,
            CONTEXT: self.context,
            VIEWS: self.context * (self.tensor if whole else 1),
            PIPELINE: stages,
            DATA: data_ranks * self.context,
            EMBEDDING: 2 if stages > 1 else 1,
        }
        self.parts = parts_of_rank(config, pipeline_rank)
        self.learning = trained(config)
        self.tower_is_split = self.tensor > 1 and not whole
        self.tower_is_whole = self.tensor > 1 and whole
        self.data_ranks = data_ranks
        self.hidden = known(config.language.hidden_size)
        self.width = known(config.vision.vision_hidden_size)
        self.activation = 2 if config.precision.is_half else 4
        self.gradient = 4 if config.precision.reduce_grads_in_fp32 else self.activation

    @property
    def something_learns_before_the_layers(self) -> bool:
        """With adapters: the tower, the projector or the learned rows of images."""
        early = self.learning.tower or self.learning.projector
        return early or image_settings(self.config).image_newline

    @cached_property
    def recompute(self) -> str | None:
        return self.config.recompute.granularity

    def recomputed(self, layers: int) -> int:
        """How many of the layers of a part run their whole forward again."""
        if self.recompute != "full":
            return 0
        uniform = self.config.recompute.recompute_method == "uniform"
        return layers if uniform else min(layers, known(self.config.recompute.recompute_num_layers))
