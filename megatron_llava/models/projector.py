"""The projector from the vision tower's width to the language model's."""

from __future__ import annotations

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.models.specs import mlp_submodules


class Projector(MegatronModule):
    """LLaVA's ``mlp2x_gelu``: Linear, exact-erf GELU, Linear; column- then row-parallel.

    Args:
        config: hidden and intermediate width are the language model's.
        vision_hidden_size: width of the features that come in.
    """

    def __init__(self, config: TransformerConfig, vision_hidden_size: int) -> None:
        super().__init__(config=config)
        self.encoder = MLP(
            config,
            mlp_submodules(),
            input_size=vision_hidden_size,
            ffn_hidden_size=config.ffn_hidden_size,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., vision width] to [..., language width]."""
        output, bias = self.encoder(features)
        return output + bias
