"""What the pipeline stages of a run cost, estimated in matrix-product FLOPs.

Costs are those of forward and backward over some packs, before tensor and context parallelism,
which divide all of them alike. A product costs as much again for the gradient of its weights, and
again for that of its input; attention twice its forward. Frozen parts need only what something
before them learns from: a frozen tower has no backward at all. Recomputation adds a forward to what
has a backward. Lookups, norms and the visual packing are left out: they move memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.pipeline_balance import costs_of_stages, place_layers
from megatron_llava.peft.targets import targeted_parts


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
    layer, recomputed = _decoder_layer(config, sizes)
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
    own[0] += _tower(config, sizes) + _projector(config, sizes)
    own[-1] += _output_layer(config, sizes)
    return PipelineCost(layer=layer, stages=tuple(own), multiple=multiple, minimum=minimum)


def _learns(config: RunConfig, part: str) -> bool:
    """Whether the weights of a part learn; those beside adapters do not."""
    if part == "mm_language_model" and config.lora.adapts:
        return False
    return part in config.training.mm_tunable_parts


def _decoder_layer(config: RunConfig, sizes: PackSizes) -> tuple[int, int]:
    """(one layer without recomputation, what recomputation adds to it)."""
    language = config.language
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size)
    head = known(language.head_width)
    query = known(language.num_attention_heads) * head
    key_value = 2 * known(language.query_groups) * head
    weights = hidden * (2 * query + key_value) + 3 * hidden * ffn
    products = 2 * sizes.rows * weights
    attention = 2 * sizes.attended * query  # scores and sums, half of them masked
    learns = _learns(config, "mm_language_model")
    # Something learns: the decoder itself, whose embeddings come first, or a part before it.
    adapters = 2 * sizes.rows * _adapter_widths(config, query, key_value)
    cost = products * (2 + learns) + (adapters + attention) * 3
    selective = config.recompute.granularity == "selective"
    return cost, attention if selective else products + adapters + attention


def _adapter_widths(config: RunConfig, query: int, key_value: int) -> int:
    """Factors of a layer's adapters that each row is multiplied by, zeros included."""
    if not config.lora.adapts:
        return 0
    hidden, ffn = known(config.language.hidden_size), known(config.language.ffn_hidden_size)
    widths = {
        "linear_qkv": hidden + query + key_value,
        "linear_proj": query + hidden,
        "linear_fc1": hidden + 2 * ffn,
        "linear_fc2": ffn + hidden,
    }
    rank, targets = config.lora.lora_rank, config.lora.lora_target_modules
    return sum(rank * len(targeted_parts(name, targets)) * widths[name] for name in widths)


def _tower(config: RunConfig, sizes: PackSizes) -> int:
    """The vision tower, whose frozen forward keeps nothing for a backward."""
    vision, recompute = config.vision, config.recompute
    width, ffn = known(vision.vision_hidden_size), known(vision.vision_ffn_hidden_size)
    patch, layers = known(vision.vision_patch_size), known(vision.built_layers)
    patches = _patches(config)
    rows = patches + (vision.vision_model_type == "clip")
    embedding = sizes.views * 2 * patches * 3 * patch**2 * width
    products = sizes.views * 2 * rows * (4 * width**2 + 2 * width * ffn)
    attention = sizes.views * 4 * rows**2 * width
    if not _learns(config, "mm_vision_tower"):
        return embedding + layers * (products + attention)
    # No gradient of the pixels is formed.
    cost = 2 * embedding + 3 * layers * (products + attention)
    if recompute.recompute_vision and recompute.granularity == "selective":
        cost += layers * attention
    elif recompute.recompute_vision and recompute.granularity == "full":
        uniform = recompute.recompute_method == "uniform"
        again = layers if uniform else min(layers, known(recompute.recompute_num_layers))
        cost += again * (products + attention)
    return cost


def _projector(config: RunConfig, sizes: PackSizes) -> int:
    width, hidden = known(config.vision.vision_hidden_size), known(config.language.hidden_size)
    rows = sizes.views * _patches(config)
    learns, tower = _learns(config, "mm_mlp_adapter"), _learns(config, "mm_vision_tower")
    first, second = 2 * rows * width * hidden, 2 * rows * hidden**2
    # Core's linears form the gradient of their input whenever they have a backward.
    return (first + second) * (1 + learns + (learns or tower))


def _output_layer(config: RunConfig, sizes: PackSizes) -> int:
    language = config.language
    columns = language.padded_vocab_size(config.parallel.tensor_model_parallel_size)
    products = 2 * sizes.loss_rows * known(language.hidden_size) * columns
    return products * (2 + _learns(config, "mm_language_model"))


def _patches(config: RunConfig) -> int:
    """Feature rows of one view."""
    vision = config.vision
    return (known(vision.vision_image_size) // known(vision.vision_patch_size)) ** 2


def _listed(numbers: Sequence[object]) -> str:
    return ", ".join(str(number) for number in numbers)


def _percentages(costs: Sequence[int]) -> str:
    return _listed([f"{100 * cost / sum(costs):.1f}" for cost in costs])
