"""CLIP and SigLIP vision towers on core's TransformerBlock.

Shape suffixes: V views, C channels, S tile side in pixels, T patches per view, L encoder rows per
view (T, or T + 1 with a class token), D tower width.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_llava.config.model import VisionConfig
from megatron_llava.models.specs import Norm, vision_block_spec


class VisionTower(MegatronModule):
    """Patch embedding, positions, encoder. Returns the features of the selected layer.

    Only the layers up to ``--mm-vision-select-layer`` are built: hidden state -2 of a CLIP with n
    layers is the output of layer n - 1. CLIP's class token takes part in attention and is dropped
    from the result. There is no norm after the encoder: LLaVA takes hidden states, which have none.

    Args:
        config: core's configuration of the encoder.
        vision: sizes and kind of the tower.
    """

    def __init__(self, config: TransformerConfig, vision: VisionConfig) -> None:
        super().__init__(config=config)
        width, patch = config.hidden_size, vision.vision_patch_size
        self.has_class_token = vision.vision_model_type == "clip"
        self.patches = (vision.vision_image_size // patch) ** 2
        rows = self.patches + int(self.has_class_token)
        dtype = config.params_dtype
        self.conv1 = torch.nn.Conv2d(
            3, width, patch, stride=patch, bias=not self.has_class_token, dtype=dtype
        )
        self.position_embeddings = torch.nn.Embedding(rows, width, dtype=dtype)
        self.register_buffer("positions", torch.arange(rows), persistent=False)
        if self.has_class_token:
            self.class_token = torch.nn.Parameter(torch.randn(1, 1, width, dtype=dtype))
            self.ln_pre = Norm(config, width, config.layernorm_epsilon)
        self.decoder = TransformerBlock(
            config=config,
            spec=vision_block_spec(config),
            post_layer_norm=False,
            pre_process=True,
            post_process=True,
        )

    def forward(self, tiles_VCSS: torch.Tensor) -> torch.Tensor:
        """Encode normalised tiles [V, 3, S, S] to patch features [V, T, D], in raster order."""
        hidden_VTD = self.conv1(tiles_VCSS).flatten(2).transpose(1, 2)
        assert hidden_VTD.shape[1] == self.patches, (hidden_VTD.shape, self.patches)
        if self.has_class_token:
            class_V1D = self.class_token.expand(hidden_VTD.shape[0], -1, -1)
            hidden_VTD = torch.cat((class_V1D, hidden_VTD), dim=1)
        hidden_VLD = hidden_VTD + self.position_embeddings(self.positions)
        if self.has_class_token:
            hidden_VLD = self.ln_pre(hidden_VLD)
        hidden_LVD = self.decoder(hidden_VLD.transpose(0, 1).contiguous(), attention_mask=None)
        return hidden_LVD[int(self.has_class_token) :].transpose(0, 1)
