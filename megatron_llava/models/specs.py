"""Layer specs: which modules a core TransformerLayer is composed of.

``local`` uses core's parallel linears with the norms and the attention of this file; it is the only
implementation that runs on CPU. ``transformer_engine`` is core's own spec. Core's local norm
asserts that sequence parallelism is off, and its local attention refuses packed sequences: hence
ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from megatron_llava.config.lora import LoraConfig
from megatron_llava.config.parallel import ParallelConfig
from megatron_llava.models.fp8_layers import Fp8TransformerLayer
from megatron_llava.models.layer_linears import layer_linears
from megatron_llava.ops.attention import dense_attention, packed_attention
from megatron_llava.ops.exchange import context_parallel_attention
from megatron_llava.ops.fp8_delayed import ForwardPass
from megatron_llava.ops.key_value_cache import KeyValueCache
from megatron_llava.peft.layers import add_adapters

# As in core's own local spec: a checkpoint has Transformer Engine's names, in which the norms
# belong to the linears after them, and loads into either implementation.
NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Where a checkpoint has the norms of a layer, by their names in this file's layers."""


@dataclass
class PackedSequences(PackedSeqParams):
    """Core's description of a pack, and what the attention of this file reads instead.

    ``cu_seqlens_q`` is left out where core would copy it to the host in each layer to turn queries
    and keys; it turns them by the row then, see ``LlavaModel.decode``.
    """

    cu_seqlens: torch.Tensor | None = None
    """int32 [P + 1], cumulative lengths of the P sequences."""
    max_seqlen: int = 0
    row_order: torch.Tensor | None = None
    """int64, the positions that context-parallel ranks hold, rank after rank."""
    fp8_pass: ForwardPass | None = None
    """The scales of this microbatch, with emulated FP8 and delayed scaling."""
    cache: KeyValueCache | None = None
    """Of generation: what the rows before have left for those to come."""


class Norm(torch.nn.Module):
    """LayerNorm or RMSNorm over the last dimension, as ``config.normalization`` says.

    ``weight.sequence_parallel`` tells core to sum the gradient over the tensor-parallel ranks when
    each of them normalised only its share of the rows.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__()
        assert config.normalization in ("LayerNorm", "RMSNorm"), config.normalization
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel
        self.bias: torch.nn.Parameter | None = None
        if config.normalization == "LayerNorm":
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
            self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` [..., hidden_size], keeping its dtype."""
        if self.bias is not None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class CoreAttention(MegatronModule):
    """The attention between core's QKV and output projections; packed (thd) or dense (sbhd)."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(config=config)
        self.backend = backend
        self.layer_number = layer_number
        assert not config.attention_dropout, "local attention has no dropout"
        assert attn_mask_type in (AttnMaskType.causal, AttnMaskType.no_mask), attn_mask_type
        self.causal = attn_mask_type == AttnMaskType.causal
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Packed: [T, heads, D] to [T, heads * D]. Dense: [S, B, heads, D] to [S, B, heads * D]."""
        assert attention_mask is None and attention_bias is None, "masks come from the spec"
        if packed_seq_params is None:
            return dense_attention(query, key, value, causal=self.causal, scale=self.softmax_scale)
        assert isinstance(packed_seq_params, PackedSequences)
        cache = packed_seq_params.cache
        if cache is not None:
            assert self.causal and self.context_group is None
            if cache.holds_prompt:
                return cache.attend(self.layer_number, query, key, value, self.softmax_scale)
            cache.fill(self.layer_number, key, value)
        if self.context_group is not None:
            assert self.causal
            return context_parallel_attention(
                query,
                key,
                value,
                packed_seq_params.cu_seqlens,
                packed_seq_params.max_seqlen,
                packed_seq_params.row_order,
                self.context_group,
                scale=self.softmax_scale,
                backend=self.backend,
            )
        return packed_attention(
            query,
            key,
            value,
            packed_seq_params.cu_seqlens,
            packed_seq_params.max_seqlen,
            causal=self.causal,
            scale=self.softmax_scale,
            backend=self.backend,
        )


def local_layer_spec(
    attn_mask_type: AttnMaskType,
    backend: str = "auto",
    lora: LoraConfig | None = None,
    *,
    fp8: bool = False,
) -> ModuleSpec:
    """A pre-norm layer of core's parallel linears and this file's norm and attention.

    Args:
        lora: adapters beside the linears, where there are any.
        fp8: whether its linears multiply in emulated FP8.
    """
    linears = layer_linears(fp8=fp8, four_bit=lora is not None and lora.load_in_4bit)
    attention = SelfAttentionSubmodules(
        linear_qkv=linears.column,
        core_attention=_core_attention(backend),
        linear_proj=linears.row,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    mlp = MLPSubmodules(linear_fc1=linears.column, linear_fc2=linears.row)
    add_adapters(attention, mlp, lora, linears.lora_column, linears.lora_row)
    return ModuleSpec(
        module=Fp8TransformerLayer if fp8 else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": attn_mask_type},
                submodules=attention,
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=NORM_KEYS,
        ),
    )


def mlp_submodules() -> MLPSubmodules:
    """A column-parallel linear, an activation and a row-parallel linear."""
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)


def language_block_spec(
    config: TransformerConfig,
    parallel: ParallelConfig,
    lora: LoraConfig,
    vp_stage: int | None = None,
    *,
    fp8_emulation: bool = False,
) -> Any:
    """The decoder of the language model: causal layers and a final norm.

    Layers of Transformer Engine keep its attention, unless the local one is asked for or has to
    exchange heads between context-parallel ranks.

    Args:
        fp8_emulation: whether linears multiply in emulated FP8; not those of the first and last
            layers where ``config.first_last_layers_bf16``.
    """
    backend = parallel.attention_backend
    if parallel.transformer_impl == "transformer_engine":
        assert not lora.adapts, "the linears of Transformer Engine contain the norms before them"
        spec = get_gpt_layer_with_transformer_engine_spec()
        exchanges = parallel.context_parallel_size > 1 and parallel.context_exchange == "a2a"
        if backend == "local" or exchanges:
            spec.submodules.self_attention.submodules.core_attention = _core_attention(backend)
        return spec
    first = get_transformer_layer_offset(config, vp_stage)
    layers = []
    for number in range(first, first + get_num_layers_to_build(config, vp_stage)):
        fp8 = fp8_emulation and _in_fp8(config, number)
        layers.append(local_layer_spec(AttnMaskType.causal, backend, lora, fp8=fp8))
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=Norm)


def _in_fp8(config: TransformerConfig, number: int) -> bool:
    """Whether a layer, counted from zero over all stages, is none that stays in bfloat16."""
    if not config.first_last_layers_bf16:
        return True
    last = config.num_layers - config.num_layers_at_end_in_bf16
    return config.num_layers_at_start_in_bf16 <= number < last


def _core_attention(backend: str) -> ModuleSpec:
    return ModuleSpec(module=CoreAttention, params={"backend": backend})


def vision_block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The encoder of the vision tower: full attention, no final norm."""
    layer = local_layer_spec(AttnMaskType.no_mask)
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers)
