"""Build the LlavaModel of one pipeline stage from a RunConfig."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_llava.config.parallel import ParallelConfig, PrecisionConfig
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.run import RunConfig
from megatron_llava.models.alignment import AlignmentLoss
from megatron_llava.models.core_config import (
    language_transformer_config,
    projector_transformer_config,
    temporal_transformer_config,
    vision_transformer_config,
)
from megatron_llava.models.feature_attention import FeatureAttention
from megatron_llava.models.fp8_layers import connect_scales
from megatron_llava.models.hf_tower import HFTower
from megatron_llava.models.llava import LlavaModel
from megatron_llava.models.projector import DeepProjector, Projector, build_projector
from megatron_llava.models.specs import language_block_spec
from megatron_llava.models.temporal_encoder import TemporalEncoder
from megatron_llava.models.tower import Tower
from megatron_llava.models.vision_tower import VisionTower
from megatron_llava.ops.fp8 import Fp8Recipe
from megatron_llava.ops.fp8_delayed import DelayedScales
from megatron_llava.peft.layers import draw_adapters
from megatron_llava.vision.settings import image_settings


def build_llava_model(
    config: RunConfig,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> LlavaModel:
    """Build this rank's part of the model, or one of its parts; core's process groups must exist.

    Args:
        config: a validated configuration whose model fields are filled.
        pre_process: this is the first pipeline stage: it has the embedding, tower and projector.
        post_process: this is the last pipeline stage: it has the output layer.
        vp_stage: which of the rank's virtual pipeline stages this is, None where it has one part.
    """
    language = config.language
    core = language_transformer_config(config)
    language_model = GPTModel(
        core,
        language_block_spec(
            core,
            config.parallel,
            config.lora,
            vp_stage,
            fp8_emulation=config.precision.fp8_emulation,
        ),
        vocab_size=language.padded_vocab_size(config.parallel.tensor_model_parallel_size),
        max_sequence_length=language.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=not language.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=language.rotary_base,
        scatter_embedding_sequence_parallel=False,
        vp_stage=vp_stage,
    )
    draw_adapters(language_model.decoder.layers, config.training.seed)
    vision = _vision_modules(config) if pre_process else _VisionModules()
    return LlavaModel(
        core,
        language_model,
        language.vocab_size,
        vision.tower,
        vision.projection,
        image_settings(config),
        _view_group(config.parallel),
        _fp8_scales(config.precision, language_model) if config.precision.fp8_emulation else None,
        _alignment(config),
        vision.cross_image_attention,
        vision.temporal_encoder,
    )


class _VisionModules(NamedTuple):
    """What the first pipeline stage has beside the language model, and no other."""

    tower: Tower | None = None
    projection: Projector | DeepProjector | None = None
    cross_image_attention: FeatureAttention | None = None
    temporal_encoder: TemporalEncoder | None = None


def _vision_modules(config: RunConfig) -> _VisionModules:
    vision, tower = config.vision, vision_transformer_config(config)
    projector = projector_transformer_config(config)
    tower_class = VisionTower if vision.vision_hf_config is None else HFTower
    return _VisionModules(
        tower=tower_class(
            tower,
            vision,
            whole_on_each_rank=config.parallel.vision_parallel == "data",
            views_at_once=config.recompute.vision_views_at_once,
        ),
        projection=build_projector(
            projector, tower.hidden_size, parse_projector_type(vision.mm_projector_type)
        ),
        cross_image_attention=FeatureAttention(projector) if vision.cross_image_attention else None,
        temporal_encoder=TemporalEncoder(
            temporal_transformer_config(config),
            vision.temporal_encoder_layers,
            vision.temporal_encoder_max_frames,
        )
        if vision.temporal_encoder_layers
        else None,
    )


def _alignment(config: RunConfig) -> AlignmentLoss | None:
    """The loss that --align-loss-coeff adds, if it does."""
    if not config.training.align_loss_coeff:
        return None
    shares = config.parallel.context_parallel_size > 1
    group = parallel_state.get_context_parallel_group() if shares else None
    return AlignmentLoss(config.training, group, alone=config.aligns_only)


def _fp8_scales(precision: PrecisionConfig, language_model: GPTModel) -> DelayedScales | None:
    """Connect the emulated FP8 layers; an amax is that of all ranks of the stage, as in core."""
    assert precision.fp8_format is not None and precision.fp8_recipe != "blockwise"
    recipe = Fp8Recipe(
        format=precision.fp8_format,
        scaling=precision.fp8_recipe,
        margin=precision.fp8_margin,
        amax_history_len=precision.fp8_amax_history_len,
        amax_compute_algo=precision.fp8_amax_compute_algo,
    )
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    return connect_scales(language_model.decoder, recipe, group)


def _view_group(parallel: ParallelConfig) -> dist.ProcessGroup | None:
    """The ranks that share the views of a pack, as ``data.share`` orders them."""
    if not parallel.shares_views:
        return None
    if parallel.vision_parallel == "data":
        return parallel_state.get_tensor_and_context_parallel_group()
    return parallel_state.get_context_parallel_group()
