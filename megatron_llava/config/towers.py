"""The kinds of vision towers, and what of a kind is not in the sizes of a tower.

A tower that Megatron-core's layers compute (CLIP, SigLIP) is split over tensor-parallel ranks. One
that transformers computes is an entry of ``TOWERS`` with ``hf``, and whole on each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Channels = tuple[float, float, float]

_OPENAI: tuple[Channels, Channels] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class HFParts:
    """How transformers computes a tower: embeddings, then layers, each called with hidden states.

    Both are attributes of the model that ``AutoModel.from_config`` makes.
    """

    layers: str
    """Where the list of layers is, below the model, such as ``encoder.layer``."""

    defaults: dict[str, Any]
    """The settings of config.json that decide what is computed, or which parameters there are, with
    the values of their class."""

    fixed: dict[str, Any]
    """Settings that have one value here: nothing is dropped out of a tower."""

    without: dict[str, Any] = field(default_factory=dict)
    """Settings that leave out parameters that no feature comes from, in what is built."""

    unused: tuple[str, ...] = ()
    """Beginnings of the names of those; a folder may lack them."""

    ffn_hidden_size: Callable[[dict[str, Any]], int]
    """Width of the MLP, of the settings."""

    epsilon: str
    """Which setting is the epsilon of the norms."""

    gated: bool = False
    """Whether the MLP is gated (SwiGLU)."""

    rms_norms: bool = False
    """Whether norms are RMS norms, computed in float32."""

    layer_scales: bool = False
    """Whether learned vectors scale what attention and MLP add."""

    stored: tuple[tuple[str, str], ...] = ()
    """Parts of names in a model, and what its files have instead; transformers renames them."""


@dataclass(frozen=True, kw_only=True)
class TowerKind:
    """What all towers of a kind share."""

    hf_model_type: str
    """``model_type`` in the vision_config of transformers."""

    front_rows: int
    """Rows in front of the patches, such as a class token, which are no features."""

    image_mean_std: tuple[Channels, Channels]
    """What the published towers were trained with."""

    image_resize_mode: str
    """How their processor makes a square view of an image: as --image-resize-mode."""

    hf: HFParts | None = None


TOWERS: dict[str, TowerKind] = {
    "clip": TowerKind(
        hf_model_type="clip_vision_model",
        front_rows=1,
        image_mean_std=_OPENAI,
        image_resize_mode="shortest_edge_crop",
    ),
    "siglip": TowerKind(
        hf_model_type="siglip_vision_model",
        front_rows=0,
        image_mean_std=_HALF,
        image_resize_mode="squash",
    ),
    "dinov2": TowerKind(
        hf_model_type="dinov2",
        front_rows=1,
        image_mean_std=_IMAGENET,
        image_resize_mode="shortest_edge_crop",
        hf=HFParts(
            layers="encoder.layer",
            defaults={
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "mlp_ratio": 4,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
                "image_size": 224,
                "patch_size": 14,
                "qkv_bias": True,
                "layerscale_value": 1.0,
                "use_mask_token": True,
            },
            fixed={
                "use_swiglu_ffn": False,
                "num_channels": 3,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "drop_path_rate": 0.0,
            },
            without={"use_mask_token": False},
            unused=("embeddings.mask_token", "layernorm."),
            ffn_hidden_size=lambda settings: int(settings["hidden_size"] * settings["mlp_ratio"]),
            epsilon="layer_norm_eps",
            layer_scales=True,
            stored=(
                (".attention.q_proj.", ".attention.attention.query."),
                (".attention.k_proj.", ".attention.attention.key."),
                (".attention.v_proj.", ".attention.attention.value."),
                (".attention.o_proj.", ".attention.output.dense."),
            ),
        ),
    ),
    "aimv2": TowerKind(
        hf_model_type="aimv2_vision_model",
        front_rows=0,
        image_mean_std=_OPENAI,
        image_resize_mode="shortest_edge_crop",
        hf=HFParts(
            layers="encoder.layers",
            defaults={
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "num_hidden_layers": 24,
                "num_attention_heads": 8,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-5,
                "image_size": 224,
                "patch_size": 14,
                "qkv_bias": False,
                "mlp_bias": False,
                "is_native": False,
                "use_head": True,
            },
            fixed={"num_channels": 3, "attention_dropout": 0.0},
            without={"use_head": False},
            unused=("rms_norm.", "head."),
            ffn_hidden_size=lambda settings: int(settings["intermediate_size"]),
            epsilon="rms_norm_eps",
            gated=True,
            rms_norms=True,
        ),
    ),
}
"""By --vision-model-type."""

HF_TOWERS = tuple(name for name, kind in TOWERS.items() if kind.hf is not None)
"""Those that transformers computes."""


def kind_of(hf_model_type: str) -> str | None:
    """The kind whose towers have this model_type in transformers; None where there is none."""
    found = (name for name, kind in TOWERS.items() if kind.hf_model_type == hf_model_type)
    return next(found, None)
