"""RunConfig: every setting of a run, by group, with where each came from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from megatron_llava.config.checkpoint import CheckpointConfig
from megatron_llava.config.data import DataConfig
from megatron_llava.config.fields import FieldSpec, field_specs
from megatron_llava.config.image_flags import ImageConfig
from megatron_llava.config.log import LoggingConfig
from megatron_llava.config.lora import LoraConfig
from megatron_llava.config.model import LanguageConfig, VisionConfig
from megatron_llava.config.parallel import ParallelConfig, PrecisionConfig
from megatron_llava.config.profiling import ProfilingConfig
from megatron_llava.config.training import (
    PARTS_WITH_ADAPTERS,
    OptimizationConfig,
    RecomputeConfig,
    TrainingConfig,
)

# Where a value came from. A field without an entry in RunConfig.sources has its default.
Source = Literal["default", "file", "flag", "model", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All groups of settings.

    Attributes:
        sources: for each field that does not have its default, where its value came from.
        config_file: the ``--config`` file, where one was given.
    """

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizationConfig = field(default_factory=OptimizationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)
    sources: Mapping[str, Source] = field(default_factory=dict)
    config_file: str | None = None

    @property
    def explicit(self) -> set[str]:
        """Names of the fields that the user gave, by flag or by ``--config`` file."""
        return {name for name, source in self.sources.items() if source in ("file", "flag")}

    def asks_for(self, name: str) -> bool:
        """Whether the user gave a field another value than its default: a file of all settings
        states defaults too, and means nothing by them."""
        return name in self.explicit and self.get(name) != all_fields()[name].default

    def get(self, name: str) -> Any:
        """The value of the field ``name``, whatever its group."""
        return getattr(getattr(self, all_fields()[name].group), name)

    def with_values(self, values: Mapping[str, Any], source: Source) -> RunConfig:
        """A copy with ``values`` (field name to value) that records ``source`` for them."""
        by_group: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            by_group.setdefault(all_fields()[name].group, {})[name] = value
        groups = {
            group: dataclasses.replace(getattr(self, group), **changes)
            for group, changes in by_group.items()
        }
        sources = {**self.sources, **dict.fromkeys(values, source)}
        return dataclasses.replace(self, sources=sources, **groups)

    def with_adapter_defaults(self) -> RunConfig:
        """A copy in which the projector, and no tower, learns beside adapters; the user's choice
        of parts stays."""
        if not self.lora.adapts or "mm_tunable_parts" in self.explicit:
            return self
        return self.with_values({"mm_tunable_parts": PARTS_WITH_ADAPTERS}, "default")

    def data_parallel_size(self, world_size: int) -> int:
        """Ranks that hold the same weights and read other data: world / (TP * PP * CP).

        Raises:
            ValueError: the world cannot be divided so.
        """
        parallel = self.parallel
        tensor, pipeline = (
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
        )
        context = parallel.context_parallel_size
        replica = tensor * pipeline * context
        if world_size % replica != 0:
            more = f" times --context-parallel-size {context}" if context > 1 else ""
            raise ValueError(
                f"{world_size} ranks cannot be divided by --tensor-model-parallel-size {tensor} "
                f"times --pipeline-model-parallel-size {pipeline}{more} = {replica}: "
                f"start a multiple of {replica} ranks"
            )
        return world_size // replica

    @property
    def virtual_stages(self) -> int | None:
        """Virtual pipeline stages on each rank, None for ordinary pipelines; rules hold."""
        parallel = self.parallel
        stages = parallel.num_virtual_stages_per_pipeline_rank
        if parallel.num_layers_per_virtual_pipeline_stage is not None:
            assert self.language.num_layers is not None
            on_rank = self.language.num_layers // parallel.pipeline_model_parallel_size
            stages = on_rank // parallel.num_layers_per_virtual_pipeline_stage
        return stages if stages is not None and stages > 1 else None

    @property
    def aligns_only(self) -> bool:
        """Whether nothing depends on the decoder, which the first stage has all of and leaves out
        while training."""
        training, parallel = self.training, self.parallel
        alone = training.align_loss_coeff > 0 and training.text_loss_coeff == 0
        precision = self.precision
        has_scales = precision.fp8_emulation and precision.fp8_recipe == "delayed"
        return alone and parallel.pipeline_model_parallel_size == 1 and not has_scales

    def global_batch_size(self, world_size: int) -> int:
        """Packs per optimizer step: as given, else one micro-batch per data-parallel rank."""
        if self.training.global_batch_size is not None:
            return self.training.global_batch_size
        return self.training.micro_batch_size * self.data_parallel_size(world_size)

    def num_microbatches(self, world_size: int) -> int:
        """Micro-batches that each data-parallel rank runs per optimizer step.

        Raises:
            ValueError: the global batch cannot be divided evenly.
        """
        micro = self.training.micro_batch_size
        data_parallel = self.data_parallel_size(world_size)
        batch = self.global_batch_size(world_size)
        step = micro * data_parallel
        if batch % step != 0:
            raise ValueError(
                f"--global-batch-size {batch} cannot be divided by --micro-batch-size {micro} "
                f"times {data_parallel} data-parallel ranks = {step}: "
                f"give {_neighbours(batch, step)}"
            )
        return batch // step


def _neighbours(number: int, step: int) -> str:
    """The multiples of ``step`` next to ``number``, as words."""
    below = number // step * step
    return f"{below} or {below + step}" if below else str(step)


@functools.cache
def group_classes() -> dict[str, type]:
    """The groups of RunConfig by name, in order."""
    return {
        name: hint
        for name, hint in get_type_hints(RunConfig).items()
        if name not in ("sources", "config_file")
    }


@functools.cache
def all_fields() -> dict[str, FieldSpec]:
    """Every field of every group by its name, which is unique."""
    specs: dict[str, FieldSpec] = {}
    for group, cls in group_classes().items():
        for spec in field_specs(group, cls):
            assert spec.name not in specs, f"{spec.name} is in {group} and {specs[spec.name].group}"
            specs[spec.name] = spec
    return specs
