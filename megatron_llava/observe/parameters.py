"""The parameters of one model part (a pipeline stage or a virtual one), without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from megatron_llava.config.lora import targeted_parts
from megatron_llava.config.model import TEMPORAL_MLP_WIDTHS
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.config.training import CROSS_IMAGE_ATTENTION, TEMPORAL_ENCODER
from megatron_llava.vision.hf_tower import shapes_of
from megatron_llava.vision.settings import image_settings


class Parameter(NamedTuple):
    """One parameter as one tensor-parallel rank holds it."""

    name: str
    """As in LlavaModel, layers counted from 0 in their part."""

    numel: int


def part_parameters(config: RunConfig, *, layers: int, first: bool, last: bool) -> list[Parameter]:
    """Parameters of the local implementation, in the order in which the model registers them.

    Args:
        config: a validated configuration whose model fields are filled.
        layers: decoder layers of the part.
        first: it has the embedding, the vision tower and the projector.
        last: it has the final norm and the output layer.
    """
    found = list(_language(config, layers, first, last))
    if first:
        found = [*_image_rows(config), *found, *_tower(config), *_projector(config)]
        found += [*_cross_image_attention(config), *_temporal_encoder(config)]
    return found


def _image_rows(config: RunConfig) -> Iterator[Parameter]:
    hidden, settings = known(config.language.hidden_size), image_settings(config)
    if settings.image_newline:
        yield Parameter("image_newline", hidden)
    if settings.image_separator:
        yield Parameter("image_separator", hidden)
    if settings.image_start_end:
        yield Parameter("image_start", hidden)
        yield Parameter("image_end", hidden)
    if settings.tile_position_embedding:
        yield Parameter("tile_position_embedding", math.prod(settings.position_grid) * hidden)


def _language(config: RunConfig, layers: int, first: bool, last: bool) -> Iterator[Parameter]:
    language, tensor = config.language, config.parallel.tensor_model_parallel_size
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size) // tensor
    head = known(language.head_width)
    query = known(language.num_attention_heads) * head
    fused = (query + 2 * known(language.query_groups) * head) // tensor
    vocabulary = language.padded_vocab_size(tensor) // tensor * hidden
    if first:
        yield Parameter("language_model.embedding.word_embeddings.weight", vocabulary)
    for number in range(layers):
        prefix = f"language_model.decoder.layers.{number}."
        yield Parameter(prefix + "input_layernorm.weight", hidden)
        proj, qkv = prefix + "self_attention.linear_proj", prefix + "self_attention.linear_qkv"
        yield Parameter(proj + ".weight", query // tensor * hidden)
        yield from _adapter(config, proj, query // tensor, hidden)
        yield Parameter(qkv + ".weight", fused * hidden)
        if language.add_qkv_bias:
            yield Parameter(qkv + ".bias", fused)
        yield from _adapter(config, qkv, hidden, fused)
        yield Parameter(prefix + "pre_mlp_layernorm.weight", hidden)
        yield Parameter(prefix + "mlp.linear_fc1.weight", 2 * ffn * hidden)
        yield from _adapter(config, prefix + "mlp.linear_fc1", hidden, 2 * ffn)
        yield Parameter(prefix + "mlp.linear_fc2.weight", ffn * hidden)
        yield from _adapter(config, prefix + "mlp.linear_fc2", ffn, hidden)
    if last:
        yield Parameter("language_model.decoder.final_layernorm.weight", hidden)
        if language.untie_embeddings_and_output_weights or not first:
            yield Parameter("language_model.output_layer.weight", vocabulary)


def _adapter(config: RunConfig, linear: str, inputs: int, outputs: int) -> Iterator[Parameter]:
    """The two factors beside a linear of these inputs and outputs on a rank, if it has them."""
    lora = config.lora
    parts = targeted_parts(linear.rpartition(".")[2], lora.lora_target_modules)
    if lora.adapts and parts:
        yield Parameter(linear + ".lora.a", len(parts) * lora.lora_rank * inputs)
        yield Parameter(linear + ".lora.b", outputs * lora.lora_rank)


def _tower(config: RunConfig) -> Iterator[Parameter]:
    if config.vision.vision_hf_config is not None:
        for name, shape in shapes_of(config.vision).items():
            yield Parameter(f"vision_model.{name}", math.prod(shape))
        return
    vision, parallel = config.vision, config.parallel
    split = parallel.vision_parallel == "tensor"
    tensor = parallel.tensor_model_parallel_size if split else 1
    width, ffn = known(vision.vision_hidden_size), known(vision.vision_ffn_hidden_size) // tensor
    patch = known(vision.vision_patch_size)
    clip = vision.vision_model_type == "clip"
    rows = (known(vision.vision_image_size) // patch) ** 2 + clip
    if clip:
        yield Parameter("vision_model.class_token", width)
    yield Parameter("vision_model.conv1.weight", width * 3 * patch**2)
    if not clip:
        yield Parameter("vision_model.conv1.bias", width)
    yield Parameter("vision_model.position_embeddings.weight", rows * width)
    if clip:
        yield from _with_bias("vision_model.ln_pre", width, width)
    for number in range(known(vision.built_layers)):
        prefix = f"vision_model.decoder.layers.{number}."
        share = width // tensor
        yield from _with_bias(prefix + "input_layernorm", width, width)
        yield from _with_bias(prefix + "self_attention.linear_proj", share * width, width)
        yield from _with_bias(prefix + "self_attention.linear_qkv", 3 * share * width, 3 * share)
        yield from _with_bias(prefix + "pre_mlp_layernorm", width, width)
        yield from _with_bias(prefix + "mlp.linear_fc1", ffn * width, ffn)
        yield from _with_bias(prefix + "mlp.linear_fc2", ffn * width, width)


def _projector(config: RunConfig) -> Iterator[Parameter]:
    width, hidden = known(config.vision.vision_hidden_size), known(config.language.hidden_size)
    share = hidden // config.parallel.tensor_model_parallel_size
    shape = parse_projector_type(config.vision.mm_projector_type)
    prefix = "vision_projection."
    if shape.linears == 2 and not shape.blocks:
        yield from _mlp(prefix + "encoder.", width, share, hidden)
        return
    for number in range(1, shape.linears + 1):
        rows = hidden if number % 2 == 0 else share
        weight = share * (width if number == 1 else hidden)
        yield from _with_bias(f"{prefix}linear_{number}", weight, rows)
    for number in range(1, shape.blocks + 1):
        yield from _with_bias(f"{prefix}block_{number}.norm", hidden, hidden)
        yield from _mlp(f"{prefix}block_{number}.mlp.", hidden, share, hidden)


def _cross_image_attention(config: RunConfig) -> Iterator[Parameter]:
    if not config.vision.cross_image_attention:
        return
    yield from _feature_attention(config, f"{CROSS_IMAGE_ATTENTION}.")


def _temporal_encoder(config: RunConfig) -> Iterator[Parameter]:
    layers = config.vision.temporal_encoder_layers
    if not layers:
        return
    hidden = known(config.language.hidden_size)
    share = TEMPORAL_MLP_WIDTHS * hidden // config.parallel.tensor_model_parallel_size
    rows = config.vision.temporal_encoder_max_frames
    yield Parameter(f"{TEMPORAL_ENCODER}.frame_positions", rows * hidden)
    for number in range(1, layers + 1):
        prefix = f"{TEMPORAL_ENCODER}.layer_{number}."
        yield from _feature_attention(config, f"{prefix}attention.")
        yield from _with_bias(f"{prefix}norm", hidden, hidden)
        yield from _mlp(f"{prefix}mlp.", hidden, share, hidden)


def _feature_attention(config: RunConfig, prefix: str) -> Iterator[Parameter]:
    hidden = known(config.language.hidden_size)
    share = hidden // config.parallel.tensor_model_parallel_size
    yield from _with_bias(f"{prefix}norm", hidden, hidden)
    yield from _with_bias(f"{prefix}linear_qkv", 3 * share * hidden, 3 * share)
    yield from _with_bias(f"{prefix}linear_proj", share * hidden, hidden)


def _mlp(prefix: str, width: int, share: int, hidden: int) -> Iterator[Parameter]:
    """A column-parallel linear of which this rank has a share of the rows, and a row-parallel."""
    yield from _with_bias(prefix + "linear_fc1", share * width, share)
    yield from _with_bias(prefix + "linear_fc2", share * hidden, hidden)


def _with_bias(name: str, weight: int, bias: int) -> Iterator[Parameter]:
    yield Parameter(name + ".weight", weight)
    yield Parameter(name + ".bias", bias)
