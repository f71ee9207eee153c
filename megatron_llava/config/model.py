"""What the model is: language model, vision tower, and how images become tokens.

A checkpoint's ``model.yaml`` fills the fields that no flag sets; see ``model_yaml.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_llava.config.fields import flag

TEMPORAL_MLP_WIDTHS = 4
"""Width of the temporal encoder's MLP over the language model's, as in Vaswani et al., section
3.3."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The language model's architecture."""

    num_layers: int | None = flag(None, "Decoder layers", minimum=1, from_checkpoint="fixed")
    hidden_size: int | None = flag(
        None, "Width of the residual stream", minimum=1, from_checkpoint="fixed"
    )
    ffn_hidden_size: int | None = flag(
        None, "Width of the gated MLP", minimum=1, from_checkpoint="fixed"
    )
    num_attention_heads: int | None = flag(None, "Query heads", minimum=1, from_checkpoint="fixed")
    num_query_groups: int | None = flag(
        None,
        "Key-value heads",
        minimum=1,
        from_checkpoint="fixed",
        default_text="from the checkpoint, else --num-attention-heads",
    )
    kv_channels: int | None = flag(
        None,
        "Width of one head",
        minimum=1,
        from_checkpoint="fixed",
        default_text="from the checkpoint, else --hidden-size / --num-attention-heads",
    )
    max_position_embeddings: int | None = flag(
        None, "Longest sequence the model was made for", minimum=1, from_checkpoint="fixed"
    )
    vocab_size: int | None = flag(
        None, "Rows of the embedding before padding", minimum=1, from_checkpoint="fixed"
    )
    make_vocab_size_divisible_by: int = flag(
        128,
        "The embedding is padded to a multiple of this times --tensor-model-parallel-size",
        minimum=1,
        from_checkpoint="overridable",
    )
    norm_epsilon: float | None = flag(
        None, "Epsilon of the RMS norms", above=0, from_checkpoint="fixed"
    )
    rotary_base: float | None = flag(
        None, "Base of the rotary position embedding", above=0, from_checkpoint="fixed"
    )
    add_qkv_bias: bool | None = flag(
        None, "Biases on the query, key and value projections", from_checkpoint="fixed"
    )
    untie_embeddings_and_output_weights: bool | None = flag(
        None, "An output layer of its own instead of the embedding's", from_checkpoint="fixed"
    )
    init_method_std: float = flag(
        0.02,
        "Standard deviation of freshly initialised weights",
        above=0,
        from_checkpoint="overridable",
    )

    @property
    def query_groups(self) -> int | None:
        """Key-value heads; as many as query heads where ``num_query_groups`` is not given."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_width(self) -> int | None:
        """Width of one head; ``hidden_size // num_attention_heads`` where not given."""
        if self.kv_channels is not None:
            return self.kv_channels
        if self.hidden_size is None or self.num_attention_heads is None:
            return None
        return self.hidden_size // self.num_attention_heads

    def padded_vocab_size(self, tensor_model_parallel_size: int) -> int:
        """Rows of the embedding: vocab_size up to the next multiple of the divisor times TP."""
        assert self.vocab_size is not None, "vocab_size is filled before it is padded"
        multiple = self.make_vocab_size_divisible_by * tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower's architecture and the projector."""

    vision_model_type: Literal["clip", "siglip"] | None = flag(
        None, "Family of the vision tower", from_checkpoint="fixed"
    )
    vision_num_layers: int | None = flag(
        None,
        "Encoder layers of the vision tower, up to the one that the projector reads",
        minimum=1,
        from_checkpoint="fixed",
    )
    vision_hidden_size: int | None = flag(
        None, "Width of the vision tower", minimum=1, from_checkpoint="fixed"
    )
    vision_ffn_hidden_size: int | None = flag(
        None, "Width of the vision tower's MLP", minimum=1, from_checkpoint="fixed"
    )
    vision_num_attention_heads: int | None = flag(
        None, "Attention heads of the vision tower", minimum=1, from_checkpoint="fixed"
    )
    vision_image_size: int | None = flag(
        None, "Side of one tile in pixels", minimum=1, from_checkpoint="fixed"
    )
    vision_patch_size: int | None = flag(
        None, "Side of one patch in pixels", minimum=1, from_checkpoint="fixed"
    )
    vision_norm_epsilon: float | None = flag(
        None, "Epsilon of the vision tower's layer norms", above=0, from_checkpoint="fixed"
    )
    vision_hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] | None = flag(
        None, "Activation of the vision tower's MLP", from_checkpoint="fixed"
    )
    mm_vision_select_layer: int | None = flag(
        None,
        "Hidden state of the published tower that the projector reads, counted from its end; "
        "--vision-num-layers counts the layers up to it",
        below=0,
        from_checkpoint="fixed",
    )
    mm_projector_type: str = flag(
        "mlp2x_gelu",
        "Projector from the tower to the language model: linear, mlpNx_gelu, mlpNx_relu, or with "
        "residual blocks mlpNx_resMx_gelu",
        from_checkpoint="fixed",
    )

    cross_image_attention: bool = flag(
        False,
        "An attention behind the projector over all image features of a sample, which changes "
        "nothing at first",
        from_checkpoint="overridable",
    )

    temporal_encoder_layers: int = flag(
        0,
        "Encoder layers behind the projector over all features of a video, which change nothing at "
        "first; 0 for none",
        minimum=0,
        from_checkpoint="overridable",
    )
    temporal_encoder_max_frames: int = flag(
        32,
        "Frames of a video that --temporal-encoder-layers can tell apart; a longer one is refused",
        minimum=1,
        from_checkpoint="overridable",
    )

    @property
    def built_layers(self) -> int | None:
        """Encoder layers up to the selected hidden state.

        A tower of n layers has n + 1 hidden states, the embeddings first, so state -k is the output
        of layer n + 1 - k, counted from 1.
        """
        if self.vision_num_layers is None or self.mm_vision_select_layer is None:
            return None
        return self.vision_num_layers + 1 + self.mm_vision_select_layer


def _pinpoints_text(value: Any) -> Any:
    """A YAML list of [width, height] pairs as the text that the grid parser reads."""
    return str([list(pair) for pair in value]) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes tiles and tokens; a flag wins over the checkpoint's value."""

    image_aspect_ratio: str | None = flag(
        None,
        "square, pad, anyres, anyres_max_N, anyres_thresholded_N or nobase",
        from_checkpoint="overridable",
    )
    image_grid_pinpoints: str | None = flag(
        None,
        "Grids: a range (1x1),...,(6x6), tiles 336x{2x2,1x{2,3}}, max_patches=6, or a list of "
        "sizes in pixels",
        from_checkpoint="overridable",
        parse=_pinpoints_text,
    )
    pad_aspect_ratio: float = flag(
        1.0,
        "Width over height that a padded view is padded to, before it is scaled to the square that "
        "the tower sees",
        from_checkpoint="overridable",
    )
    pad_tolerance: float = flag(
        0.0,
        "An image is scaled without padding where its aspect ratio differs from that by less",
        from_checkpoint="overridable",
    )
    grid_choice: Literal["resolution", "aspect_ratio"] = flag(
        "resolution",
        "Which grid an image gets: the one that keeps most of its pixels (LLaVA-NeXT), or the one "
        "of the nearest aspect ratio that wastes few tiles",
        from_checkpoint="overridable",
    )
    grid_waste_weight: float = flag(
        0.1,
        "With --grid-choice aspect_ratio: what the tiles count that a grid has less than the "
        "largest, against a difference of aspect ratios (width / height)",
        from_checkpoint="overridable",
    )
    grid_waste: Literal["share", "tiles"] = flag(
        "share",
        "Whether those tiles count as a share of the largest grid's, or one by one",
        from_checkpoint="overridable",
    )
    mm_patch_merge_type: str | None = flag(
        None,
        "How tiles become tokens: flat, spatial or spatial_unpad, each also with _nobase",
        from_checkpoint="overridable",
    )
    pinpoint_order: Literal["wh", "hw"] = flag(
        "wh",
        "Whether a pair in --image-grid-pinpoints is (width, height) or (height, width)",
        from_checkpoint="overridable",
    )
    unpad_round: Literal["llava", "hf"] = flag(
        "llava",
        "Rounding of the unpadded size: the original code's or transformers'",
        from_checkpoint="overridable",
    )
    multi_image_views: Literal["one_padded", "as_single"] = flag(
        "one_padded",
        "Each image of a sample that has several: one padded view, as the original code trains, or "
        "what --image-aspect-ratio gives an image alone, as transformers does for LlavaNext and "
        "Llava",
        from_checkpoint="overridable",
    )
    image_newline: bool = flag(
        True,
        "A learned row for the ends of unpadded rows; LLaVA-1.5 has none",
        from_checkpoint="overridable",
    )
    image_separator: bool = flag(
        False,
        "A learned row before each image of a sample but the first",
        from_checkpoint="overridable",
    )
    image_start_end: bool = flag(
        False,
        "Learned rows before and behind the tokens of each image",
        from_checkpoint="overridable",
    )
    tile_position_embedding: bool = flag(
        False,
        "A learned row, zero at first, that is added to the features of a tile by its place in the "
        "grid",
        from_checkpoint="overridable",
    )
    image_pool_stride: int = flag(
        1,
        "Features per token along each side of an image's view, pooled as --mm-spatial-pool-mode "
        "says; 1 does not pool",
        from_checkpoint="overridable",
    )
    mm_spatial_pool_mode: Literal["bilinear", "average"] = flag(
        "bilinear",
        "How the features of a video's frame are pooled: bilinear rounds up to 196 tokens of 729, "
        "average down to 169",
        from_checkpoint="overridable",
    )
    mm_spatial_pool_stride: int = flag(
        2,
        "Features per token along each side of a frame; 1 does not pool",
        from_checkpoint="overridable",
    )
    mm_newline_position: Literal["grid", "frame", "one_token", "no_token"] = flag(
        "one_token",
        "Where image_newline stands in a video: after each row of a frame, after each frame, at "
        "its end (LLaVA-OneVision, transformers), or nowhere",
        from_checkpoint="overridable",
    )
    image_mean: tuple[float, ...] | None = flag(
        None,
        "Mean of the red, green and blue channel, of 1",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else the vision tower's usual one",
    )
    image_std: tuple[float, ...] | None = flag(
        None,
        "Standard deviation of the red, green and blue channel, of 1",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else the vision tower's usual one",
    )
    image_resize_mode: Literal["shortest_edge_crop", "squash"] | None = flag(
        None,
        "How --image-aspect-ratio square makes a view: scale and crop, or squash",
        from_checkpoint="overridable",
        default_text="from the checkpoint, else crop for clip and squash for siglip",
    )
