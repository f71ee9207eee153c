"""The encoder over the frames of a video, behind the projector (--temporal-encoder-layers).

Of a video of T frames with N features each, all T * N see each other, before the frames are pooled:

    x = x + position of its frame
    x = x + W_o attention(LayerNorm(x))    in each layer
    x = x + W_2 act(W_1 LayerNorm(x))

which are torch's TransformerEncoderLayers with ``norm_first``. Positions, W_o and W_2 begin as
zeros, so that it changes nothing until it learns. Features of images pass by.

Shape suffixes: F features of a pack, H language width, L features of all of its videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.training import TEMPORAL_ENCODER
from megatron_llava.models.feature_attention import (
    ATTENTION_WEIGHTS,
    FeatureAttention,
    draw_rows,
    seeded_generator,
)
from megatron_llava.models.specs import Norm, mlp_submodules

_LAYER_WEIGHTS = (
    *(f"attention.{name}" for name in ATTENTION_WEIGHTS),
    "norm.weight",
    "norm.bias",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc1.bias",
    "mlp.linear_fc2.weight",
    "mlp.linear_fc2.bias",
)


def temporal_encoder_weights(layers: int) -> tuple[str, ...]:
    """Parameters of an encoder, which a checkpoint may lack, as ``image_rows.OPTIONAL_ROWS``."""
    if not layers:
        return ()
    return (
        f"{TEMPORAL_ENCODER}.frame_positions",
        *(
            f"{TEMPORAL_ENCODER}.layer_{number}.{name}"
            for number in range(1, layers + 1)
            for name in _LAYER_WEIGHTS
        ),
    )


class TemporalLayer(MegatronModule):
    """Attention and an MLP, with the projector's activation."""

    def __init__(self, config: TransformerConfig, generator: torch.Generator) -> None:
        super().__init__(config=config)
        self.attention = FeatureAttention(config, generator)
        self.norm = Norm(config, config.hidden_size)
        self.mlp = MLP(config, mlp_submodules(), ffn_hidden_size=config.ffn_hidden_size)
        draw_rows(self.mlp.linear_fc1.weight, config.ffn_hidden_size, config, generator)
        torch.nn.init.zeros_(self.mlp.linear_fc2.weight)

    def forward(self, features_LH: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """[L, H] to the same; lengths as of ``FeatureAttention``."""
        features_LH = self.attention(features_LH, lengths)
        change_LH, bias_H = self.mlp(self.norm(features_LH))
        return features_LH + change_LH + bias_H


class TemporalEncoder(MegatronModule):
    """Layers over the features of each video.

    Args:
        config: all widths are the language model's, but that of the MLP.
        num_layers: layers, at least one.
        max_frames: frames that have a position.
    """

    def __init__(self, config: TransformerConfig, num_layers: int, max_frames: int) -> None:
        super().__init__(config=config)
        zeros = torch.zeros(max_frames, config.hidden_size, dtype=config.params_dtype)
        self.frame_positions = torch.nn.Parameter(zeros)
        generator = seeded_generator()
        # Attributes, as in ``DeepProjector``.
        self.layers = [f"layer_{number}" for number in range(1, num_layers + 1)]
        for name in self.layers:
            self.add_module(name, TemporalLayer(config, generator))

    def forward(
        self, features_FH: torch.Tensor, videos: Sequence[tuple[int, int]], tokens: int
    ) -> torch.Tensor:
        """[F, H] to the same.

        Args:
            videos: the first view and the frames of each video, in order. Without one a frame of
                zeros is encoded and comes to nothing, so that every rank has every gradient.
            tokens: features of a view.

        Raises:
            ValueError: a video has more frames than have a position.
        """
        if not videos:
            nothing_LH = features_FH.new_zeros(tokens, features_FH.shape[1])
            return features_FH + 0.0 * self._encode(nothing_LH, [1], tokens).sum()
        most, limit = max(frames for _, frames in videos), len(self.frame_positions)
        if most > limit:
            raise ValueError(
                f"a video of {most} frames: --temporal-encoder-max-frames is {limit}; choose fewer "
                "with --frames-upbound"
            )
        # Images before, between and behind the videos, and the videos.
        sizes, end = [], 0
        for first, frames in videos:
            sizes += [(first - end) * tokens, frames * tokens]
            end = first + frames
        parts = list(features_FH.split([*sizes, len(features_FH) - end * tokens]))
        encoded_LH = self._encode(torch.cat(parts[1::2]), [frames for _, frames in videos], tokens)
        parts[1::2] = encoded_LH.split(sizes[1::2])
        return torch.cat(parts)

    def _encode(
        self, features_LH: torch.Tensor, frames: Sequence[int], tokens: int
    ) -> torch.Tensor:
        """Videos of so many frames, one behind the other."""
        positions = torch.cat([self.frame_positions[:number] for number in frames])
        features_LH = features_LH + positions.repeat_interleave(tokens, dim=0)
        lengths = [number * tokens for number in frames]
        for name in self.layers:
            features_LH = getattr(self, name)(features_LH, lengths)
        return features_LH
