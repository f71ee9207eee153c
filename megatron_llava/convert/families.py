"""The rows of every supported part: text models, vision towers, projector, newline.

Hugging Face names are those of the hub layout (`hf_reader.HUB`); Megatron names are those of
megatron-core's layers without Transformer Engine. A `mapping` is described in `hf_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.towers import HF_TOWERS
from megatron_llava.convert.hf_tower_rules import (
    VISION,
    built_layers,
    hf_tower_passthrough,
    hf_tower_rules,
)
from megatron_llava.convert.rules import (
    COLUMN,
    GATE_UP,
    QKV,
    REPLICATED,
    ROW,
    VOCABULARY,
    Copy,
    GateUp,
    GroupedQKV,
    PassThrough,
    Reshape,
    Rule,
    Shape,
    Vocabulary,
    for_layers,
)

EMBEDDING = "language_model.model.embed_tokens.weight"
LM_HEAD = "language_model.lm_head.weight"
TEXT_LAYER = "language_model.model.layers.{layer}."
PROJECTOR = "multi_modal_projector."
VISION_LAYER = VISION + "encoder.layers.{layer}."
_BUFFER = "a buffer that is computed again"


@dataclass(frozen=True)
class Table:
    """All rows of one model. `alias`: tensors that repeat another one (a tied output weight)."""

    rules: tuple[Rule, ...]
    passthrough: tuple[PassThrough, ...]
    alias: dict[str, str]  # Hugging Face name -> the Hugging Face name whose bytes it repeats


def table(mapping: dict[str, Any], padded_vocab_size: int | None = None) -> Table:
    """Every row of the model that `mapping` describes.

    padded_vocab_size: rows of the Megatron embedding; the true vocabulary where not given.
    """
    rules = [
        *text_rules(mapping, padded_vocab_size),
        *vision_rules(mapping),
        *projector_rules(mapping),
    ]
    if mapping["image_newline"]:
        rules.append(_copy("image_newline", "image_newline", (mapping["hidden_size"],)))
    frequencies = ["language_model.model.rotary_emb.inv_freq"]
    frequencies += [
        TEXT_LAYER.format(layer=layer) + "self_attn.rotary_emb.inv_freq"
        for layer in range(mapping["num_layers"])
    ]
    passthrough = [PassThrough(name, None, _BUFFER, is_buffer=True) for name in frequencies]
    passthrough += vision_passthrough(mapping)
    alias = {LM_HEAD: EMBEDDING} if mapping["hf_stores_tied_output_weight"] else {}
    return Table(tuple(rules), tuple(passthrough), alias)


def _copy(megatron: str, hf: str, shape: Shape, tensor_parallel: str = REPLICATED) -> Rule:
    return Rule(megatron, (hf,), Copy(), (shape,), tensor_parallel)


def text_rules(mapping: dict[str, Any], padded_vocab_size: int | None = None) -> list[Rule]:
    """Llama, Mistral and Qwen2: embedding, layers, final norm, and the output weight if untied."""
    hidden, vocab = mapping["hidden_size"], mapping["vocab_size"]
    vocabulary = Vocabulary(vocab, padded_vocab_size or vocab)
    word_embeddings = "language_model.embedding.word_embeddings.weight"
    final_norm = "language_model.decoder.final_layernorm.weight"
    rules = [
        Rule(word_embeddings, (EMBEDDING,), vocabulary, ((vocab, hidden),), VOCABULARY),
        *for_layers(text_layer(mapping), mapping["num_layers"]),
        _copy(final_norm, "language_model.model.norm.weight", (hidden,)),
    ]
    if mapping["untie_embeddings_and_output_weights"]:
        output = "language_model.output_layer.weight"
        rules.append(Rule(output, (LM_HEAD,), vocabulary, ((vocab, hidden),), VOCABULARY))
    return rules


def text_layer(mapping: dict[str, Any]) -> list[Rule]:
    """RMSNorm, grouped-query attention and SwiGLU; a bias on query, key and value for Qwen2."""
    hidden, ffn = mapping["hidden_size"], mapping["ffn_hidden_size"]
    heads, groups = mapping["num_attention_heads"], mapping["num_query_groups"]
    channels = mapping["kv_channels"]
    decoder = "language_model.decoder.layers.{layer}."
    attention = TEXT_LAYER + "self_attn."
    projections = tuple(attention + name for name in ("q_proj", "k_proj", "v_proj"))
    rows = (heads * channels, groups * channels, groups * channels)
    qkv = GroupedQKV(groups, heads // groups, channels)
    layer = [
        _copy(decoder + "input_layernorm.weight", TEXT_LAYER + "input_layernorm.weight", (hidden,)),
        Rule(
            decoder + "self_attention.linear_qkv.weight",
            tuple(name + ".weight" for name in projections),
            qkv,
            tuple((count, hidden) for count in rows),
            QKV,
        ),
        _copy(
            decoder + "self_attention.linear_proj.weight",
            attention + "o_proj.weight",
            (hidden, heads * channels),
            ROW,
        ),
        _copy(
            decoder + "pre_mlp_layernorm.weight",
            TEXT_LAYER + "post_attention_layernorm.weight",
            (hidden,),
        ),
        Rule(
            decoder + "mlp.linear_fc1.weight",
            (TEXT_LAYER + "mlp.gate_proj.weight", TEXT_LAYER + "mlp.up_proj.weight"),
            GateUp(),
            ((ffn, hidden), (ffn, hidden)),
            GATE_UP,
        ),
        _copy(
            decoder + "mlp.linear_fc2.weight",
            TEXT_LAYER + "mlp.down_proj.weight",
            (hidden, ffn),
            ROW,
        ),
    ]
    if mapping["add_qkv_bias"]:
        names = tuple(name + ".bias" for name in projections)
        bias = decoder + "self_attention.linear_qkv.bias"
        layer.insert(2, Rule(bias, names, qkv, tuple((count,) for count in rows), QKV))
    return layer


def _vision_layer(mapping: dict[str, Any]) -> list[Rule]:
    """One pre-norm layer of CLIP or SigLIP: biases everywhere, one key and value per head."""
    hidden, ffn = mapping["vision_hidden_size"], mapping["vision_ffn_hidden_size"]
    heads = mapping["vision_num_attention_heads"]
    decoder = "vision_model.decoder.layers.{layer}."
    attention = VISION_LAYER + "self_attn."
    qkv = GroupedQKV(heads, 1, hidden // heads)
    rules = []
    for suffix, tail in (("weight", (hidden,)), ("bias", ())):
        copies = (
            ("input_layernorm.", "layer_norm1.", (hidden,), REPLICATED),
            ("pre_mlp_layernorm.", "layer_norm2.", (hidden,), REPLICATED),
            ("mlp.linear_fc1.", "mlp.fc1.", (ffn, *tail), COLUMN),
        )
        rules += [
            _copy(decoder + megatron + suffix, VISION_LAYER + hf + suffix, shape, axis)
            for megatron, hf, shape, axis in copies
        ]
        names = tuple(attention + f"{name}_proj.{suffix}" for name in "qkv")
        linear_qkv = decoder + "self_attention.linear_qkv." + suffix
        rules.append(Rule(linear_qkv, names, qkv, ((hidden, *tail),) * 3, QKV))
    # The bias of a row-parallel layer is added after the reduction, so every rank holds it.
    proj, fc2 = decoder + "self_attention.linear_proj.", decoder + "mlp.linear_fc2."
    rules += [
        _copy(proj + "weight", attention + "out_proj.weight", (hidden, hidden), ROW),
        _copy(proj + "bias", attention + "out_proj.bias", (hidden,)),
        _copy(fc2 + "weight", VISION_LAYER + "mlp.fc2.weight", (hidden, ffn), ROW),
        _copy(fc2 + "bias", VISION_LAYER + "mlp.fc2.bias", (hidden,)),
    ]
    return rules


def vision_rules(mapping: dict[str, Any]) -> list[Rule]:
    """The tower as far as it is built: CLIP has a class token and a norm in front of it."""
    if mapping["vision_model_type"] in HF_TOWERS:
        return hf_tower_rules(mapping)
    hidden, patch = mapping["vision_hidden_size"], mapping["vision_patch_size"]
    clip = mapping["vision_model_type"] == "clip"
    positions = (mapping["vision_image_size"] // patch) ** 2 + clip
    embeddings = VISION + "embeddings."
    conv1 = "vision_model.conv1."
    rules = [
        _copy(conv1 + "weight", embeddings + "patch_embedding.weight", (hidden, 3, patch, patch)),
        _copy(
            "vision_model.position_embeddings.weight",
            embeddings + "position_embedding.weight",
            (positions, hidden),
        ),
    ]
    if clip:
        token = Reshape((hidden,), (1, 1, hidden))
        name = (embeddings + "class_embedding",)
        rules += [
            Rule("vision_model.class_token", name, token, ((hidden,),), REPLICATED),
            _copy("vision_model.ln_pre.weight", VISION + "pre_layrnorm.weight", (hidden,)),
            _copy("vision_model.ln_pre.bias", VISION + "pre_layrnorm.bias", (hidden,)),
        ]
    else:
        rules.append(_copy(conv1 + "bias", embeddings + "patch_embedding.bias", (hidden,)))
    return rules + for_layers(_vision_layer(mapping), built_layers(mapping))


def vision_passthrough(mapping: dict[str, Any]) -> list[PassThrough]:
    """What the selected feature layer leaves unused: later layers, the norm and head after them."""
    if mapping["vision_model_type"] in HF_TOWERS:
        return hf_tower_passthrough(mapping)
    hidden = (mapping["vision_hidden_size"],)
    built, stored = built_layers(mapping), mapping["vision_num_layers"]
    reason = f"after the selected feature layer {mapping['mm_vision_select_layer']}"
    unused = [rule.at(layer) for layer in range(built, stored) for rule in _vision_layer(mapping)]
    rows = [
        PassThrough(name, shape, reason)
        for rule in unused
        for name, shape in zip(rule.hf, rule.hf_shapes, strict=True)
    ]
    norm = VISION + "post_layernorm."
    rows += [PassThrough(norm + suffix, hidden, reason) for suffix in ("weight", "bias")]
    if mapping["vision_model_type"] == "siglip":
        rows += [PassThrough(VISION + "head." + name, None, reason) for name in _SIGLIP_HEAD]
    rows.append(PassThrough(VISION + "embeddings.position_ids", None, _BUFFER, is_buffer=True))
    return rows


_SIGLIP_HEAD = (
    "probe",
    *(
        f"{module}.{suffix}"
        for module in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
        for suffix in ("weight", "bias")
    ),
    "attention.in_proj_weight",
    "attention.in_proj_bias",
)


def projector_rules(mapping: dict[str, Any]) -> list[Rule]:
    """Linears of which the first has the tower's width, then residual blocks.

    The classes of transformers have two linears, `linear_1` and `linear_2`. Other shapes exist in
    the original code only and keep its numbers, under `multi_modal_projector.`.
    """
    vision, hidden = mapping["vision_hidden_size"], mapping["hidden_size"]
    shape = parse_projector_type(mapping["mm_projector_type"])
    megatron, hf = "vision_projection.", PROJECTOR
    if shape.linears == 2 and not shape.blocks:
        first, second = megatron + "encoder.linear_fc1.", megatron + "encoder.linear_fc2."
        return [
            *_linear(first, hf + "linear_1.", (hidden, vision), COLUMN),
            *_linear(second, hf + "linear_2.", (hidden, hidden), ROW),
        ]
    rules = []
    for number in range(shape.linears):
        place = f"{2 * number}." if shape.in_sequence else ""
        widths = (hidden, hidden if number else vision)
        axis = ROW if number % 2 else COLUMN
        rules += _linear(f"{megatron}linear_{number + 1}.", hf + place, widths, axis)
    for number in range(shape.blocks):
        block = f"{megatron}block_{number + 1}."
        theirs = f"{hf}{2 * shape.linears - 1 + number}."
        rules += [
            _copy(block + "norm.weight", theirs + "pre_norm.weight", (hidden,)),
            _copy(block + "norm.bias", theirs + "pre_norm.bias", (hidden,)),
            *_linear(block + "mlp.linear_fc1.", theirs + "proj.0.", (hidden, hidden), COLUMN),
            *_linear(block + "mlp.linear_fc2.", theirs + "proj.2.", (hidden, hidden), ROW),
        ]
    return rules


def _linear(megatron: str, hf: str, shape: Shape, axis: str) -> list[Rule]:
    """Weight and bias; every rank holds the bias of a row-parallel linear."""
    bias_axis = COLUMN if axis == COLUMN else REPLICATED
    return [
        _copy(megatron + "weight", hf + "weight", shape, axis),
        _copy(megatron + "bias", hf + "bias", shape[:1], bias_axis),
    ]
