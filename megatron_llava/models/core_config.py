"""Our configuration as the TransformerConfigs that Megatron-core's modules take."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.activations import quick_gelu
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.model import TEMPORAL_MLP_WIDTHS
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.run import RunConfig

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}
"""Hugging Face's ``hidden_act`` names of vision towers."""


def params_dtype(config: RunConfig) -> torch.dtype:
    """The dtype of weights and activations: that of --bf16 or --fp16, else float32."""
    if config.precision.fp16:
        return torch.float16
    return torch.bfloat16 if config.precision.bf16 else torch.float32


def language_transformer_config(config: RunConfig) -> TransformerConfig:
    """The decoder: RMSNorm, SwiGLU, grouped-query attention, no biases but an optional QKV bias."""
    language = config.language
    # Core overlaps with interleaved stages only. Lengths are equal within a step, so that it never
    # has to send them ahead: variable_seq_lengths hangs with batched exchanges over four ranks.
    overlap_p2p = bool(config.virtual_stages) and not config.parallel.no_overlap_p2p_communication
    return TransformerConfig(
        **_shared(config),
        **_recompute(config),
        num_layers=language.num_layers,
        hidden_size=language.hidden_size,
        ffn_hidden_size=language.ffn_hidden_size,
        num_attention_heads=language.num_attention_heads,
        num_query_groups=language.query_groups,
        kv_channels=language.head_width,
        layernorm_epsilon=language.norm_epsilon,
        normalization="RMSNorm",
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=language.add_qkv_bias,
        init_method_std=language.init_method_std,
        sequence_parallel=config.parallel.sequence_parallel,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_stages,
        overlap_p2p_comm=overlap_p2p,
        batch_p2p_comm=not overlap_p2p,
        context_parallel_size=config.parallel.context_parallel_size,
        cp_comm_type=config.parallel.context_exchange,
        num_layers_in_first_pipeline_stage=config.parallel.decoder_first_pipeline_num_layers,
        num_layers_in_last_pipeline_stage=config.parallel.decoder_last_pipeline_num_layers,
        pipeline_dtype=params_dtype(config),
        # gloo sends asynchronously from the tensor that core would empty: a race that was seen.
        deallocate_pipeline_outputs=config.parallel.device == "cuda",
        attention_backend=_core_attention_backend(config),
        # Transformer Engine's: core's own copies the lengths of a pack to the host in each layer.
        apply_rope_fusion=config.parallel.transformer_impl == "transformer_engine",
        **_fp8(config),
    )


def vision_transformer_config(config: RunConfig) -> TransformerConfig:
    """The vision encoder: LayerNorm, biases everywhere, all layers on the first pipeline stage."""
    vision = config.vision
    recompute = _recompute(config) if config.recompute.recompute_vision else {}
    chunk = recompute.get("recompute_num_layers") or 1
    if recompute.get("recompute_method") == "uniform" and vision.built_layers % chunk:
        # Core would reach beyond the last layer; the 23 of CLIP-L have no divisor.
        recompute["recompute_num_layers"] = 1
    shared = _shared(config)
    if config.parallel.vision_parallel == "data":
        shared["tensor_model_parallel_size"] = 1
    return TransformerConfig(
        **shared,
        **recompute,
        num_layers=vision.built_layers,
        hidden_size=vision.vision_hidden_size,
        ffn_hidden_size=vision.vision_ffn_hidden_size,
        num_attention_heads=vision.vision_num_attention_heads,
        layernorm_epsilon=vision.vision_norm_epsilon,
        normalization="LayerNorm",
        activation_func=ACTIVATIONS[vision.vision_hidden_act],
        add_bias_linear=True,
        add_qkv_bias=True,
        init_method_std=config.language.init_method_std,
    )


def projector_transformer_config(config: RunConfig) -> TransformerConfig:
    """The projector, all of the language model's width; exact-erf GELU or ReLU."""
    shape = parse_projector_type(config.vision.mm_projector_type)
    hidden_size = config.language.hidden_size
    return TransformerConfig(
        **_shared(config),
        num_layers=1,
        hidden_size=hidden_size,
        ffn_hidden_size=hidden_size,
        num_attention_heads=config.language.num_attention_heads,
        kv_channels=config.language.head_width,
        activation_func={"gelu": F.gelu, "relu": F.relu}[shape.activation],
        add_bias_linear=True,
        init_method_std=config.language.init_method_std,
    )


def temporal_transformer_config(config: RunConfig) -> TransformerConfig:
    """The temporal encoder: the projector's, with a wider MLP."""
    projector = projector_transformer_config(config)
    return replace(projector, ffn_hidden_size=TEMPORAL_MLP_WIDTHS * projector.hidden_size)


def _core_attention_backend(config: RunConfig) -> AttnBackend:
    """What core tells Transformer Engine, through the environment; local layers do not ask it."""
    if config.parallel.transformer_impl == "local":
        return AttnBackend.auto
    return AttnBackend[config.parallel.attention_backend]


def _fp8(config: RunConfig) -> dict[str, Any]:
    """The FP8 of Transformer Engine, and which layers keep out of either FP8."""
    precision = config.precision
    return {
        "fp8": None if precision.fp8_emulation else precision.fp8_format,
        "fp8_recipe": precision.fp8_recipe,
        "fp8_margin": precision.fp8_margin,
        "fp8_amax_history_len": precision.fp8_amax_history_len,
        "fp8_amax_compute_algo": precision.fp8_amax_compute_algo,
        "first_last_layers_bf16": precision.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": precision.num_layers_at_start_in_bf16,
        "num_layers_at_end_in_bf16": precision.num_layers_at_end_in_bf16,
    }


def _shared(config: RunConfig) -> dict[str, Any]:
    """What all three share. Fusions are off: core's fused GELU is the tanh approximation."""
    return {
        "tensor_model_parallel_size": config.parallel.tensor_model_parallel_size,
        "params_dtype": params_dtype(config),
        "bf16": config.precision.bf16,
        "fp16": config.precision.fp16,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "use_cpu_initialization": config.parallel.device == "cpu",
        "calculate_per_token_loss": True,
    }


def _recompute(config: RunConfig) -> dict[str, Any]:
    """Recomputation of activations."""
    recompute = config.recompute
    return {
        "recompute_granularity": recompute.granularity,
        "recompute_method": recompute.recompute_method,
        "recompute_num_layers": recompute.recompute_num_layers,
    }
