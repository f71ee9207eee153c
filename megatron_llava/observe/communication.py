"""How many bytes a rank sends in one optimizer step, by kind, from the settings alone.

For the local layer implementation. What the formulas are made of: b bytes of an activation, g of a
gradient, H and D the widths of the language model and the tower; of one microbatch on one rank R
positions, P feature rows that the projector takes, E encoder rows (views times rows of a view), N
text tokens and L rows with a loss; t tensor- and c context-parallel ranks. Each line is the full
tensor of one call; ``traffic_kinds.bytes_sent`` turns it into what a rank sends.

Tensor parallelism, a decoder layer: the forward all-reduces [R, H] b twice, after the attention's
and the MLP's second product, and the backward twice more, of the gradients before their first ones.
With sequence parallelism each of these is a reduce-scatter, paired with an all-gather of [R, H] b
on the other side of the products; where the weights learn, the backward gathers the two inputs
again. Where there are fewer key/value heads than ranks, the fused [R, Q] b is gathered in the
forward and its gradient scattered in the backward.
Beside linears with adapters of rank r go what their factors exchange, for p adapted parts: of
column-parallel ones the backward all-reduces [R, p r] b, of row-parallel ones the forward does [R,
r] b; with sequence parallelism the former are gathered and their gradients scattered, and the
latter the other way round.
A layer of the tower: the same two and two with [E, D] b, never with sequence parallelism.
The projector: [P, H] b forward, [P, D] b backward. Behind it, --cross-image-attention: [P, H] b
forward and backward; a layer of the temporal encoder twice that, of the features of videos.
The embedding: [N, H] b forward; the alignment loss embeds the L labels too, and sums two [samples,
H + 1] float32 over context-parallel ranks.
The output layer: [L, H] b backward, and three times L float32 for the softmax. With sequence
parallelism [R, H] b is gathered before it, and in the backward of the embedding.
Once a step, in the gradients' type: the norms and factors of adapters that saw a share of the rows
(sequence parallelism) and the whole tower (``--vision-parallel data``) are all-reduced.

Context parallelism, a decoder layer: all-to-alls of [R, n + 2 lcm(k, c), d] b and [R, n, d] b, for
n query and k key/value heads of width d on a rank, and the same backward. Ranks that share views
send each other encoded rows [., D] b, and their gradients where the tower learns.

Pipeline: [R / t with sequence parallelism, H] b from each part to the next, and its gradient back.
Data parallelism: the gradients of all parameters that learn, all-reduced over the data- and
context-parallel ranks; with the distributed optimizer reduce-scattered, padded as core pads its
buckets, and the parameters gathered. Tied embeddings on two stages: their gradient all-reduced.

What is left out are the tens of bytes that carry losses, counts and norms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from megatron_llava.config.lora import PARTS, targeted_parts
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.observe.gradient_buffer import bucket_size, is_vocabulary, padded_numel
from megatron_llava.observe.microbatch_sizes import MicrobatchSizes
from megatron_llava.observe.parameters import Parameter, part_parameters
from megatron_llava.observe.parts import Part
from megatron_llava.observe.rank_settings import RankSettings
from megatron_llava.observe.traffic_kinds import (
    CONTEXT,
    DATA,
    EMBEDDING,
    PIPELINE,
    TENSOR,
    VIEWS,
    Kind,
    bytes_sent,
)


def communication(
    config: RunConfig,
    world_size: int,
    microbatches: Sequence[MicrobatchSizes],
    *,
    pipeline_rank: int = 0,
) -> dict[Kind, int]:
    """Bytes that one rank sends in one optimizer step, by kind; only kinds that it sends.

    Args:
        config: a validated configuration, its placement of layers included.
        world_size: ranks of the run.
        microbatches: those that the rank runs in the step. Stages after the first use the rows
            and, on the last one, the rows with a loss only.
        pipeline_rank: the stage of the rank.
    """
    assert config.parallel.context_exchange == "a2a" or config.parallel.context_parallel_size == 1
    rank = RankSettings(config, config.data_parallel_size(world_size), pipeline_rank)
    # Else the first layer's input has no gradient, and less is sent.
    assert not config.lora.adapts or rank.something_learns_before_the_layers
    payload: Counter[Kind] = Counter()
    for sizes in microbatches:
        for part in rank.parts:
            if part.first:
                payload.update(_first_stage(rank, sizes))
            if config.aligns_only:
                continue
            payload.update(_layers(rank, part, sizes))
            payload.update(_pipeline(rank, part, sizes))
            if part.last:
                payload.update(_last_stage(rank, sizes))
    payload.update(_once_a_step(rank))
    sent = {k: bytes_sent(k[1], total, rank.ranks[k[0]]) for k, total in payload.items()}
    return {kind: total for kind, total in sorted(sent.items()) if total}


def _layers(rank: RankSettings, part: Part, sizes: MicrobatchSizes) -> Counter[Kind]:
    """Decoder layers; all of them have a backward, for something learns before or in them."""
    payload: Counter[Kind] = Counter()
    again = rank.recomputed(part.layers)
    forwards, backwards = part.layers + again, part.layers
    rows = sizes.rows * rank.hidden * rank.activation
    if rank.tensor > 1 and rank.config.parallel.sequence_parallel:
        inputs_again = 2 * backwards * rank.learning.language
        payload[TENSOR, "all-gather"] = (2 * forwards + 2 * backwards + inputs_again) * rows
        payload[TENSOR, "reduce-scatter"] = (2 * forwards + 2 * backwards) * rows
    elif rank.tensor > 1:
        payload[TENSOR, "all-reduce"] = (2 * forwards + 2 * backwards) * rows
    payload.update(_adapters(rank, sizes, forwards, backwards))
    language = rank.config.language
    head, groups = known(language.head_width), known(language.query_groups)
    heads = known(language.num_attention_heads)
    if groups < rank.tensor:
        fused = sizes.rows * (heads + 2 * groups) * head * rank.activation
        payload[TENSOR, "all-gather"] += forwards * fused
        payload[TENSOR, "reduce-scatter"] += backwards * fused
    if rank.context > 1:
        here, shared = heads // rank.tensor, max(groups // rank.tensor, 1)
        exchanged = 2 * here + 2 * math.lcm(shared, rank.context)
        attentions = part.layers if rank.recompute == "selective" else again
        rows = sizes.rows * exchanged * head * rank.activation
        to_others = rows * (rank.context - 1) // rank.context
        payload[CONTEXT, "all-to-all"] = (2 * part.layers + attentions) * to_others
    return payload


def _adapters(
    rank: RankSettings, sizes: MicrobatchSizes, forwards: int, backwards: int
) -> Counter[Kind]:
    """What the adapters of so many layers send, products of rank-wide factors."""
    lora = rank.config.lora
    if not lora.adapts or rank.tensor == 1:
        return Counter()
    each = sizes.rows * lora.lora_rank * rank.activation
    parts = {linear: len(targeted_parts(linear, lora.lora_target_modules)) for linear in PARTS}
    column = each * (parts["linear_qkv"] + parts["linear_fc1"])
    row = each * (parts["linear_proj"] + parts["linear_fc2"])
    if not rank.config.parallel.sequence_parallel:
        return Counter({(TENSOR, "all-reduce"): backwards * column + forwards * row})
    return Counter(
        {
            (TENSOR, "all-gather"): forwards * column + backwards * row,
            (TENSOR, "reduce-scatter"): backwards * column + forwards * row,
        }
    )


def _pipeline(rank: RankSettings, part: Part, sizes: MicrobatchSizes) -> Counter[Kind]:
    """Activations to the part after this one, gradients to the one before."""
    if rank.ranks[PIPELINE] == 1:
        return Counter()
    split = rank.tensor if rank.config.parallel.sequence_parallel else 1
    rows = sizes.rows // split * rank.hidden * rank.activation
    return Counter({(PIPELINE, "send"): rows * ((not part.last) + (not part.first))})


def _first_stage(rank: RankSettings, sizes: MicrobatchSizes) -> Counter[Kind]:
    """Tiles, tower, exchange of features, projector and embedding."""
    payload: Counter[Kind] = Counter()
    tower, adapter = rank.learning.tower, rank.learning.projector
    if rank.ranks[VIEWS] > 1:
        rows = sizes.features_sent + sizes.features_received * tower
        whole = rank.config.parallel.vision_parallel == "data"
        group = VIEWS if whole else CONTEXT
        payload[group, "all-to-all"] = rows * rank.width * rank.activation
    aligns = bool(rank.config.training.align_loss_coeff)
    if aligns and rank.context > 1:
        payload[CONTEXT, "all-reduce"] = 2 * sizes.samples * (rank.hidden + 1) * 4
    if rank.tensor == 1:
        return payload
    if rank.tower_is_split:
        payload[TENSOR, "broadcast"] = sizes.tile_bytes
        payload[TENSOR, "all-reduce"] += _tower(rank, sizes) * rank.activation
    rows = (sizes.features + _behind_projector(rank, sizes)) * rank.hidden
    if adapter or tower:
        rows += sizes.features * rank.width + _behind_projector(rank, sizes) * rank.hidden
    payload[TENSOR, "all-reduce"] += rows * rank.activation
    tokens = sizes.text_tokens + sizes.loss_rows * aligns
    payload[TENSOR, "all-reduce"] += tokens * rank.hidden * rank.activation
    if rank.config.parallel.sequence_parallel:
        payload[TENSOR, "all-gather"] = sizes.rows * rank.hidden * rank.activation
    return payload


def _behind_projector(rank: RankSettings, sizes: MicrobatchSizes) -> int:
    """Rows that temporal encoder and cross-image attention all-reduce in their forward."""
    vision = rank.config.vision
    rows = sizes.features * vision.cross_image_attention
    if vision.temporal_encoder_layers:
        of_videos = sizes.frames * sizes.features // max(sizes.views, 1)
        rows += 2 * vision.temporal_encoder_layers * of_videos
    return rows


def _tower(rank: RankSettings, sizes: MicrobatchSizes) -> int:
    """Elements that the layers of a split tower all-reduce."""
    vision = rank.config.vision
    patches = (known(vision.vision_image_size) // known(vision.vision_patch_size)) ** 2
    rows = sizes.views * (patches + vision.kind.front_rows)
    layers = known(vision.built_layers)
    passes = layers
    if rank.learning.tower:
        again = rank.recomputed(layers) if rank.config.recompute.recompute_vision else 0
        passes = 2 * layers + again
    return 2 * passes * rows * rank.width


def _last_stage(rank: RankSettings, sizes: MicrobatchSizes) -> Counter[Kind]:
    """Output layer and softmax."""
    payload: Counter[Kind] = Counter()
    if rank.tensor > 1:
        hidden = rank.hidden * rank.activation
        payload[TENSOR, "all-reduce"] = sizes.loss_rows * (hidden + 3 * 4)
        if rank.config.parallel.sequence_parallel:
            payload[TENSOR, "all-gather"] = sizes.rows * hidden
    return payload


def _once_a_step(rank: RankSettings) -> Counter[Kind]:
    """Gradients and parameters."""
    payload: Counter[Kind] = Counter()
    tied = not rank.config.language.untie_embeddings_and_output_weights
    for part in rank.parts:
        parameters = [
            parameter
            for parameter in part_parameters(
                rank.config, layers=part.layers, first=part.first, last=part.last
            )
            if rank.learning.learns(parameter.name)
        ]
        shared = {
            parameter
            for parameter in parameters
            if tied and rank.ranks[PIPELINE] > 1 and is_vocabulary(parameter)
        }
        payload[EMBEDDING, "all-reduce"] += sum(p.numel for p in shared) * rank.gradient
        payload[TENSOR, "all-reduce"] += _unsplit(rank, parameters) * rank.gradient
        if rank.config.parallel.use_distributed_optimizer:
            numel = padded_numel(
                parameters,
                shared,
                bucket_size(rank.config, part, rank.data_ranks),
                rank.ranks[DATA],
            )
            payload[DATA, "reduce-scatter"] += numel * rank.gradient
            payload[DATA, "all-gather"] += numel * rank.activation
        else:
            payload[DATA, "all-reduce"] += sum(p.numel for p in parameters) * rank.gradient
    return payload


def _unsplit(rank: RankSettings, parameters: Sequence[Parameter]) -> int:
    """Elements whose gradients tensor-parallel ranks sum, having seen other rows or views."""
    sums = rank.config.parallel.sequence_parallel
    return sum(
        parameter.numel
        for parameter in parameters
        if (rank.tower_is_whole and parameter.name.startswith("vision_model."))
        or (sums and _saw_a_share(parameter.name))
    )


def _saw_a_share(name: str) -> bool:
    """Whether a parameter met a share of the positions, with sequence parallelism: norms, and those
    factors of adapters that are not split."""
    column = ("linear_qkv.lora.a", "linear_fc1.lora.a")
    row = ("linear_proj.lora.b", "linear_fc2.lora.b")
    return name.startswith("language_model.") and ("norm." in name or name.endswith(column + row))
