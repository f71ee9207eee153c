"""What the model is: its language model and its vision tower; image_flags.py has the images.

A checkpoint's ``model.yaml`` fills the fields that no flag sets; see ``model_yaml.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag
from megatron_llava.config.towers import TOWERS, TowerKind

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

    vision_model_type: Literal["clip", "siglip", "dinov2", "aimv2"] | None = flag(
        None, "Family of the vision tower", from_checkpoint="fixed"
    )
    vision_hf_config: str | None = flag(
        None,
        "Settings in transformers, as JSON, of a tower that transformers computes",
        from_checkpoint="fixed",
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
    vision_hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh", "silu"] | None = flag(
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
    def kind(self) -> TowerKind:
        """What all towers of this one's kind share."""
        assert self.vision_model_type is not None
        return TOWERS[self.vision_model_type]

    @property
    def built_layers(self) -> int | None:
        """Encoder layers up to the selected hidden state.

        A tower of n layers has n + 1 hidden states, the embeddings first, so state -k is the output
        of layer n + 1 - k, counted from 1.
        """
        if self.vision_num_layers is None or self.mm_vision_select_layer is None:
            return None
        return self.vision_num_layers + 1 + self.mm_vision_select_layer
