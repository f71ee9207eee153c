"""Matrix-product FLOPs of the parts of a model, forward and backward, over some packs.

Before tensor and context parallelism, which divide all of them alike. A product costs as much again
for the gradient of its weights, and again for that of its input; attention twice its forward.
Frozen parts need only what something before them learns from: a frozen tower has no backward at
all. Lookups, norms and the visual packing are left out: they move memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.lora import targeted_parts
from megatron_llava.config.model import TEMPORAL_MLP_WIDTHS
from megatron_llava.config.projector import parse_projector_type
from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.parallel.trained import Trained
from megatron_llava.vision.hf_tower import layer_weights


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """FLOPs of one part, integers."""

    forward: int
    backward: int
    recomputed: int = 0
    """What recomputation adds; of a decoder layer where that layer is recomputed."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed

    def times(self, number: int) -> PartCost:
        """So many of them."""
        return PartCost(
            forward=number * self.forward,
            backward=number * self.backward,
            recomputed=number * self.recomputed,
        )


def decoder_layer(config: RunConfig, sizes: PackSizes, *, learns: bool) -> PartCost:
    """One layer of the language model; ``recomputed`` is its forward, or its attention."""
    language = config.language
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size)
    head = known(language.head_width)
    query = known(language.num_attention_heads) * head
    key_value = 2 * known(language.query_groups) * head
    weights = hidden * (2 * query + key_value) + 3 * hidden * ffn
    products = 2 * sizes.rows * weights
    attention = 2 * sizes.attended * query  # scores and sums, half of them masked
    adapters = 2 * sizes.rows * _adapter_widths(config, query, key_value)
    forward = products + adapters + attention
    if config.aligns_only:
        return PartCost(forward=0, backward=0)
    # Something learns: the decoder itself, whose embeddings come first, or a part before it.
    return PartCost(
        forward=forward,
        backward=products * (1 + learns) + 2 * (adapters + attention),
        recomputed=attention if config.recompute.granularity == "selective" else forward,
    )


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


def tower(config: RunConfig, sizes: PackSizes, *, learns: bool) -> PartCost:
    """The vision tower, whose frozen forward keeps nothing for a backward."""
    vision, recompute = config.vision, config.recompute
    width = known(vision.vision_hidden_size)
    patch, layers = known(vision.vision_patch_size), known(vision.built_layers)
    patches = _patches(config)
    rows = patches + vision.kind.front_rows
    embedding = sizes.views * 2 * patches * 3 * patch**2 * width
    products = sizes.views * 2 * rows * layer_weights(vision)
    attention = sizes.views * 4 * rows**2 * width
    forward = embedding + layers * (products + attention)
    if not learns:
        return PartCost(forward=forward, backward=0)
    again = 0
    if recompute.recompute_vision and recompute.granularity == "selective":
        again = layers * attention
    elif recompute.recompute_vision and recompute.granularity == "full":
        uniform = recompute.recompute_method == "uniform"
        count = layers if uniform else min(layers, known(recompute.recompute_num_layers))
        again = count * (products + attention)
    # No gradient of the pixels is formed.
    backward = embedding + 2 * layers * (products + attention)
    return PartCost(forward=forward, backward=backward, recomputed=again)


def projector(config: RunConfig, sizes: PackSizes, *, learns: bool, tower_learns: bool) -> PartCost:
    """The projector: its linears, and two linears in each of its blocks."""
    width, hidden = known(config.vision.vision_hidden_size), known(config.language.hidden_size)
    shape = parse_projector_type(config.vision.mm_projector_type)
    square = shape.linears - 1 + 2 * shape.blocks
    products = 2 * sizes.views * _patches(config) * (width * hidden + square * hidden**2)
    # Core's linears form the gradient of their input whenever they have a backward.
    return PartCost(forward=products, backward=products * (learns + (learns or tower_learns)))


def temporal_encoder(
    config: RunConfig, sizes: PackSizes, *, learns: bool, tower_learns: bool
) -> PartCost:
    """The layers over the frames of each video: attention among them, and an MLP."""
    hidden, patches = known(config.language.hidden_size), _patches(config)
    rows = sizes.frames * patches
    layer = _feature_attention(
        rows, patches**2 * sizes.frame_pairs, hidden, learns=learns, before=tower_learns
    )
    mlp = 2 * rows * 2 * TEMPORAL_MLP_WIDTHS * hidden**2
    backward = layer.backward + mlp * (learns + (learns or tower_learns))
    both = PartCost(forward=layer.forward + mlp, backward=backward)
    return both.times(config.vision.temporal_encoder_layers)


def cross_image_attention(
    config: RunConfig, sizes: PackSizes, *, learns: bool, tower_learns: bool
) -> PartCost:
    """The attention over all views of each sample."""
    hidden, patches = known(config.language.hidden_size), _patches(config)
    pairs = patches**2 * sizes.view_pairs
    return _feature_attention(
        sizes.views * patches, pairs, hidden, learns=learns, before=tower_learns
    )


def _feature_attention(
    rows: int, pairs: int, hidden: int, *, learns: bool, before: bool
) -> PartCost:
    """Four square products of each row, and the attention of so many pairs of rows.

    Args:
        learns: its weights do.
        before: something does that its input depends on.
    """
    products, attention = 2 * rows * 4 * hidden**2, 4 * pairs * hidden
    backward = products * (learns + (learns or before)) + 2 * attention * (learns or before)
    return PartCost(forward=products + attention, backward=backward)


def alignment(config: RunConfig, sizes: PackSizes) -> PartCost:
    """The sums over each sample's image rows, which have a gradient, and over its captions."""
    hidden = known(config.language.hidden_size)
    images, captions = 2 * sizes.sample_rows * hidden, 2 * sizes.sample_labels * hidden
    return PartCost(forward=images + captions, backward=images)


def first_stage(config: RunConfig, sizes: PackSizes, learning: Trained) -> dict[str, PartCost]:
    """What the first pipeline stage has beside decoder layers, by name."""
    learns = {"learns": learning.projector, "tower_learns": learning.tower}
    costs = {
        "vision tower": tower(config, sizes, learns=learning.tower),
        "projector": projector(config, sizes, **learns),
    }
    if config.vision.temporal_encoder_layers:
        costs["temporal encoder"] = temporal_encoder(config, sizes, **learns)
    if config.vision.cross_image_attention:
        costs["cross-image attention"] = cross_image_attention(config, sizes, **learns)
    if config.training.align_loss_coeff:
        costs["alignment loss"] = alignment(config, sizes)
    return costs


def output_layer(config: RunConfig, sizes: PackSizes, *, learns: bool) -> PartCost:
    """The output layer, over the rows with a loss."""
    language = config.language
    columns = language.padded_vocab_size(config.parallel.tensor_model_parallel_size)
    if config.aligns_only:
        return PartCost(forward=0, backward=0)
    products = 2 * sizes.loss_rows * known(language.hidden_size) * columns
    return PartCost(forward=products, backward=products * (1 + learns))


def _patches(config: RunConfig) -> int:
    """Feature rows of one view."""
    vision = config.vision
    return (known(vision.vision_image_size) // known(vision.vision_patch_size)) ** 2
